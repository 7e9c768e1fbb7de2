"""PromQL expressions of the dashboard, made from the declarations of the metrics.

    telemetry/block.py, telemetry/supervisor_metrics.py ──SPECS──▶ expressions ──▶ dashboard.py

A name that is not declared, a label that a metric does not have, or the rate of a gauge is an error when the dashboard is
generated.
"""

import re

from digitserve.telemetry import block, supervisor_metrics
from digitserve.telemetry.block import Spec

SPECS = {
    spec.name: spec for spec in (*block.specs(("0",)), *supervisor_metrics.SPECS) if spec.kind != "internal"
}  # fmt: skip
"""All exported metrics, by their names without suffixes."""

TARGET_LABELS = {"job", "namespace", "instance"}
"""Labels that Prometheus adds to each series."""

_SERVICE = 'job=~"$job", namespace=~"$namespace"'
_INSTANCES = f'{_SERVICE}, instance=~"$instance"'


def rate(name: str, *by: str, where: str = "") -> str:
    """Return the events per second of a counter, or the observations per second of a histogram."""
    suffix = {"counter": "_total", "histogram": "_count"}[SPECS[name].kind]
    return _sum_of_rate(name, suffix, by, where)


def mean(name: str, *by: str) -> str:
    """Return the mean of the values that a histogram has observed."""
    return f"{_sum_of_rate(name, '_sum', by)} / ({_sum_of_rate(name, '_count', by)} > 0)"


def quantile(share: float, name: str, *by: str, where: str = "") -> str:
    """Return a quantile of a histogram, estimated within its buckets."""
    return f"histogram_quantile({share}, {_sum_of_rate(name, '_bucket', (*by, 'le'), where)})"


def buckets(name: str, where: str = "") -> str:
    """Return the observations in each bucket of a histogram, for a heatmap."""
    return _sum_of_rate(name, "_bucket", ("le",), where).replace("rate(", "increase(", 1)


def increase(name: str, *by: str) -> str:
    """Return by how much a counter increased within an interval of the graph."""
    return _sum_of_rate(name, "_total", by).replace("rate(", "increase(", 1)


def total(name: str, *by: str) -> str:
    """Return the sum of a gauge over instances."""
    return _aggregate("sum", name, by)


def smallest(name: str, *by: str) -> str:
    """Return the minimum of a gauge over instances."""
    return _aggregate("min", name, by)


def series(name: str) -> str:
    """Return all series of a gauge."""
    return f"{SPECS[name].name}{_selector('')}"


def recorded(name: str) -> str:
    """Return the series of a recording rule of a service."""
    return f"{name}{{{_SERVICE}}}"


def declared_in(expression: str) -> list[Spec]:
    """Return the declarations of the metrics that an expression reads, in the order of their names."""
    names = {re.sub("_(total|bucket|sum|count)$", "", name) for name in re.findall(r"[a-z_]+(?=\{)", expression)}
    return [SPECS[name] for name in sorted(names & set(SPECS))]


def _sum_of_rate(name: str, suffix: str, by: tuple[str, ...], where: str = "") -> str:
    spec = SPECS[name]
    if spec.kind != ("counter" if suffix == "_total" else "histogram"):
        raise ValueError(f"got the rate of {name}, a {spec.kind}; expected a counter or histogram")
    return f"{_grouped('sum', name, by)} (rate({name}{suffix}{_selector(where)}[$__rate_interval]))"


def _aggregate(function: str, name: str, by: tuple[str, ...]) -> str:
    return f"{_grouped(function, name, by)} ({name}{_selector('')})"


def _grouped(function: str, name: str, by: tuple[str, ...]) -> str:
    """Return the head of an aggregation, after a check of its labels."""
    unknown = set(by) - {*SPECS[name].label_names, *TARGET_LABELS, "le"}
    if unknown:
        raise ValueError(f"got the labels {sorted(unknown)} of {name}; expected some of {SPECS[name].label_names}")
    return f"{function} by ({', '.join(by)})" if by else function


def _selector(where: str) -> str:
    return f"{{{_INSTANCES}{', ' * bool(where)}{where}}}"
