"""The text that Prometheus reads, in both of its formats.

    ServiceCollector ──Metric──▶ CollectorRegistry ──Metric──▶ encode ──▶ /metrics

Used on the supervisor's event loop. The encoders of prometheus_client check and escape each name and label again for each scrape. This
one keeps the text that does not change, so that scrapes delay other requests of the HTTP port less. Its bytes are those of
prometheus_client, except that numbers from a million are written as ``1234567.0``, not as ``1.234567e+06``.

Source: prometheus.io, "Exposition formats"; OpenMetrics 1.0.0.
"""

import functools
from collections.abc import Iterable

from prometheus_client.core import Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

MAX_SERIES = 1 << 14
"""Most series whose text is kept: twenty times those of a model with ten labels."""

_NOT_FINITE = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


def choose(accept: str) -> str:
    """Return the content type for a client.

    Args:
        accept: value of the header field; empty without one.
    """
    for accepted in accept.split(","):
        media_type, *parameters = (part.strip() for part in accepted.split(";"))
        versions = [one for one in parameters if one.startswith("version=")]
        if media_type == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
            return OPEN_METRICS
    return TEXT


def encode(metrics: Iterable[Metric], content_type: str) -> bytes:
    """Return metrics as text.

    Args:
        metrics: counters, gauges and histograms, without timestamps, exemplars and units.
        content_type: one that ``choose`` returns.
    """
    lines = []
    for metric in metrics:
        lines.append(_header(metric.name, metric.type, metric.documentation, content_type))
        for name, labels, value, *_ in metric.samples:
            number = repr(float(value))
            lines.append(f"{_series(name, tuple(labels.items()))} {_NOT_FINITE.get(number, number)}\n")
    if content_type == OPEN_METRICS:
        lines.append("# EOF\n")
    return "".join(lines).encode()


@functools.lru_cache(MAX_SERIES)
def _header(name: str, kind: str, text: str, content_type: str) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    if content_type == OPEN_METRICS:
        text = text.replace('"', r"\"")
    elif kind == "counter":
        name += "_total"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


@functools.lru_cache(MAX_SERIES)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    """Return a name with its labels, in alphabetical order."""
    texts = [f'{label}="{_escaped(value)}"' for label, value in sorted(labels)]
    return f"{name}{{{','.join(texts)}}}" if texts else name


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
