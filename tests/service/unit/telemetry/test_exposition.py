"""The text of the metrics: that of prometheus_client, which needs more CPU time for it."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from digitserve.telemetry.collector import ServiceCollector
from digitserve.telemetry.exposition import OPEN_METRICS, TEXT, choose, encode

OF_LIBRARY: dict[str, Callable[[CollectorRegistry], bytes]] = {
    TEXT: generate_latest,
    OPEN_METRICS: openmetrics.generate_latest,
}
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""Of Prometheus 3."""


class Metrics(Collector):
    """Metrics as the registry of the service collects them."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> tuple[Metric, ...]:
        return self._metrics


def registry_of(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


@pytest.mark.parametrize("content_type", OF_LIBRARY)
@given(label=st.text(), text=st.text(), value=st.one_of(st.floats(0, 999_999), st.integers(0, 999_999)))
def test_the_text_is_that_of_the_library(content_type: str, label: str, text: str, value: float) -> None:
    """All kinds of metrics, with any label and help text, give the bytes that prometheus_client gives."""
    counter = CounterMetricFamily("requests", text, labels=["path", "code"])
    counter.add_metric(["/", label], value)
    gauge = GaugeMetricFamily("workers", text, value)
    histogram = HistogramMetricFamily("seconds", text, labels=["what"])
    histogram.add_metric([label], [("0.1", value), ("+Inf", value)], value)
    registry = registry_of(Metrics(counter, gauge, histogram))
    assert encode(registry.collect(), content_type) == OF_LIBRARY[content_type](registry)


@pytest.mark.parametrize("content_type", OF_LIBRARY)
def test_all_metrics_of_workers(content_type: str) -> None:
    """Those of a service are encoded as by prometheus_client, also from the second time on, when their names are known."""
    collector = ServiceCollector(tuple("0123456789"), lambda: [GaugeMetricFamily("supervisor", "Its own.", 2)])
    block = collector.new_block()
    registry = registry_of(collector)
    for number in range(3):
        for name in block.cells:
            block.cells[name] += number
        assert encode(registry.collect(), content_type) == OF_LIBRARY[content_type](registry)


@given(st.floats())
def test_numbers_are_exact(value: float) -> None:
    """Any number, also infinity and NaN, is read as it was."""
    (family,) = text_string_to_metric_families(encode([GaugeMetricFamily("some", "Number.", value)], TEXT).decode())
    (sample,) = family.samples
    assert sample.value == value or (math.isnan(value) and math.isnan(sample.value))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT), ("*/*", TEXT), ("text/html,*/*;q=0.8", TEXT), (PROMETHEUS, OPEN_METRICS),
        ("application/openmetrics-text", OPEN_METRICS), ("application/openmetrics-text; version=0.0.1,text/plain", TEXT),
        ("application/openmetrics-text; version=x", TEXT),
    ],
)  # fmt: skip
def test_clients_get_what_they_accept(accept: str, expected: str) -> None:
    """OpenMetrics 1.0.0 if the client names it, otherwise the text format, which all clients read."""
    assert choose(accept) == expected
