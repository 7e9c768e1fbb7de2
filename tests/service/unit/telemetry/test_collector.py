"""What Prometheus reads: sums over all workers, including those that have ended."""

from collections.abc import Iterable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from digitserve.protocol.names import CLASSIFY, HEALTH_WATCH, Code, Verdict
from digitserve.telemetry.block import OTHER_METHOD, Block, CloseReason
from digitserve.telemetry.collector import ServiceCollector
from digitserve.telemetry.recorder import Recorder

LABELS = tuple("0123456789")
CLASSIFY_LABELS = {"grpc_type": "unary", "grpc_service": "digitserve.v1.DigitService", "grpc_method": "Classify"}


def supervisor_metrics() -> Iterable[Metric]:
    """Return a metric as the supervisor adds it."""
    return [GaugeMetricFamily("digitserve_ready_workers", "Workers that take requests.", 2)]


class Scrape:
    """One scrape, parsed by Prometheus's client library."""

    def __init__(self, collector: ServiceCollector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        self.families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values() for sample in family.samples
        }  # fmt: skip

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a series that must be there."""
        return self.samples[name, frozenset(labels.items())]


@pytest.fixture
def collector() -> ServiceCollector:
    """Make a collector without workers."""
    return ServiceCollector(LABELS, supervisor_metrics)


def start_worker(collector: ServiceCollector) -> tuple[Block, Recorder]:
    """Make a block, and the recorder that its worker would have."""
    block = collector.new_block()
    return block, Recorder(block, LABELS)


def classified(recorder: Recorder, num_images: int) -> None:
    """Record one batch of so many accepted images."""
    recorder.batch([7] * num_images, [Verdict.ACCEPTED] * num_images, [0.5] * num_images, 0.001, 0.001)


def test_cpu_seconds_survive_their_worker(collector: ServiceCollector) -> None:
    """Each worker records the total that it has used; the sum keeps that of ended workers."""
    (ended, first), (_, second) = start_worker(collector), start_worker(collector)
    first.heartbeat(1.0, 2.0)
    second.heartbeat(1.0, 0.5)
    collector.retire(ended)
    assert Scrape(collector).value("digitserve_cpu_seconds_total") == 2.5


def test_names_and_kinds_are_those_that_dashboards_rely_on(collector: ServiceCollector) -> None:
    """All metrics of the design and no others exist before the first request; the heartbeat is not shown."""
    kinds = {name: family.type for name, family in Scrape(collector).families.items()}
    assert kinds == {
        "grpc_server_started": "counter",
        "grpc_server_handled": "counter",
        "grpc_server_handling_seconds": "histogram",
        "digitserve_stream_messages": "counter",
        "digitserve_readings": "counter",
        "digitserve_pending_readings": "gauge",
        "digitserve_reading_images": "counter",
        "digitserve_reading_step_seconds": "histogram",
        "digitserve_read_lines": "counter",
        "digitserve_read_marks": "counter",
        "digitserve_images": "counter",
        "digitserve_batch_size": "histogram",
        "digitserve_cpu_seconds": "counter",
        "digitserve_queue_seconds": "histogram",
        "digitserve_inference_seconds": "histogram",
        "digitserve_preprocess_seconds": "histogram",
        "digitserve_pending_images": "gauge",
        "digitserve_rejected": "counter",
        "digitserve_connections": "gauge",
        "digitserve_connections_accepted": "counter",
        "digitserve_connections_closed": "counter",
        "digitserve_streams_refused": "counter",
        "digitserve_request_lines_omitted": "counter",
        "digitserve_predictions": "counter",
        "digitserve_confidence": "histogram",
        "digitserve_shadow_images": "counter",
        "digitserve_shadow_skipped_images": "counter",
        "digitserve_shadow_probability_difference": "histogram",
        "digitserve_ready_workers": "gauge",
    }


def test_without_a_worker_every_series_that_alerts_need_is_zero(collector: ServiceCollector) -> None:
    """A rate over a counter needs its zero: the series exist before the first event."""
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_started_total", **CLASSIFY_LABELS) == 0
    assert scrape.value("grpc_server_handled_total", **CLASSIFY_LABELS, grpc_code="OK") == 0
    assert scrape.value("grpc_server_handled_total", **CLASSIFY_LABELS, grpc_code="ResourceExhausted") == 0
    assert scrape.value("digitserve_stream_messages_total", grpc_code="Internal") == 0
    assert scrape.value("digitserve_images_total") == 0
    assert scrape.value("digitserve_rejected_total", reason="queue_full") == 0
    assert scrape.value("digitserve_connections_closed_total", reason="flood") == 0
    assert scrape.value("digitserve_streams_refused_total", reason="too_many") == 0
    assert scrape.value("digitserve_predictions_total", label="7", verdict="unfamiliar") == 0
    assert scrape.value("digitserve_queue_seconds_count") == 0


def test_codes_that_have_not_occurred_are_omitted(collector: ServiceCollector) -> None:
    """Codes that are faults of clients are exported once an RPC has ended with them, which saves a hundred lines per scrape."""
    _, recorder = start_worker(collector)
    series = ("grpc_server_handled_total", frozenset({**CLASSIFY_LABELS, "grpc_code": "NotFound"}.items()))
    assert series not in Scrape(collector).samples
    recorder.call_ended(CLASSIFY, Code.NOT_FOUND, 0.1)
    assert Scrape(collector).samples[series] == 1


def test_what_is_recorded_is_what_is_shown(collector: ServiceCollector) -> None:
    """Counter, gauge and histogram show exactly what the worker recorded."""
    _, recorder = start_worker(collector)
    for _ in range(5):
        recorder.call_started(CLASSIFY)
    recorder.calls_answered(CLASSIFY, [0.01] * 4)
    recorder.pending(3)
    recorder.batch([7], [Verdict.ACCEPTED], [0.9], 0.001, 0.001)
    recorder.batch([7, 2, 9], [Verdict.ACCEPTED, Verdict.SEVERAL, Verdict.BLANK], [0.9] * 3, 0.001, 0.001)
    classified(recorder, 8)
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_started_total", **CLASSIFY_LABELS) == 5
    assert scrape.value("grpc_server_handled_total", **CLASSIFY_LABELS, grpc_code="OK") == 4
    assert scrape.value("digitserve_images_total") == 12
    assert scrape.value("digitserve_pending_images") == 3
    assert scrape.value("digitserve_batch_size_bucket", le="2.0") == 1
    assert scrape.value("digitserve_batch_size_bucket", le="4.0") == 2
    assert scrape.value("digitserve_batch_size_bucket", le="+Inf") == 3
    assert scrape.value("digitserve_batch_size_sum") == 12
    assert scrape.value("digitserve_batch_size_count") == 3
    assert scrape.value("digitserve_predictions_total", label="7", verdict="accepted") == 10
    assert scrape.value("digitserve_predictions_total", label="2", verdict="several") == 1
    assert scrape.value("digitserve_predictions_total", label="", verdict="blank") == 1
    assert scrape.value("digitserve_predictions_total", label="9", verdict="accepted") == 0


def test_histograms_are_cumulative_from_a_tenth_of_a_millisecond(collector: ServiceCollector) -> None:
    """The first bucket is 0.1 ms, each includes the ones before it, and the last is the count."""
    _, recorder = start_worker(collector)
    values = np.random.default_rng(1).exponential(0.01, 500)
    recorder.calls_answered(CLASSIFY, [*values])
    scrape = Scrape(collector)
    family = scrape.families["grpc_server_handling_seconds"]
    buckets = [
        (float(s.labels["le"]), s.value) for s in family.samples
        if s.name.endswith("_bucket") and CLASSIFY_LABELS.items() <= s.labels.items()
    ]  # fmt: skip
    assert buckets[0][0] == 0.0001
    assert buckets == [(bound, int(np.sum(values <= bound))) for bound, _ in buckets]
    assert scrape.value("grpc_server_handling_seconds_count", **CLASSIFY_LABELS) == 500
    assert scrape.value("grpc_server_handling_seconds_sum", **CLASSIFY_LABELS) == pytest.approx(values.sum())


def test_workers_are_summed(collector: ServiceCollector) -> None:
    """One scrape shows the whole service."""
    for number in (1, 2, 3):
        _, recorder = start_worker(collector)
        classified(recorder, number)
        recorder.pending(number)
    scrape = Scrape(collector)
    assert scrape.value("digitserve_images_total") == 6
    assert scrape.value("digitserve_pending_images") == 6
    assert scrape.value("digitserve_inference_seconds_count") == 3


def test_counts_survive_their_worker_and_its_gauges_do_not(collector: ServiceCollector) -> None:
    """Replacing a worker keeps its counts; its pending images no longer wait."""
    _, stays = start_worker(collector)
    block, ends = start_worker(collector)
    classified(stays, 10)
    classified(ends, 32)
    stays.pending(1)
    ends.pending(8)
    before = Scrape(collector)
    collector.retire(block)
    after = Scrape(collector)
    assert before.value("digitserve_images_total") == after.value("digitserve_images_total") == 42
    assert before.value("digitserve_confidence_sum") == after.value("digitserve_confidence_sum") == 21
    assert (before.value("digitserve_pending_images"), after.value("digitserve_pending_images")) == (9, 1)
    _, successor = start_worker(collector)
    classified(successor, 1)
    assert Scrape(collector).value("digitserve_images_total") == 43


def test_scraping_twice_does_not_count_twice(collector: ServiceCollector) -> None:
    """A scrape only reads: the counts of ended workers do not grow."""
    block, recorder = start_worker(collector)
    classified(recorder, 5)
    collector.retire(block)
    classified(start_worker(collector)[1], 1)
    assert Scrape(collector).samples == Scrape(collector).samples
    assert Scrape(collector).value("digitserve_images_total") == 6


def test_calls_that_broke_off_with_their_worker_are_unavailable(collector: ServiceCollector) -> None:
    """Started equals handled once a worker has ended: calls that it never answered count as UNAVAILABLE, which is what
    their callers saw.
    """
    block, recorder = start_worker(collector)
    for _ in range(10):
        recorder.call_started(CLASSIFY)
    recorder.calls_answered(CLASSIFY, [0.1] * 6)
    recorder.call_ended(CLASSIFY, Code.INVALID_ARGUMENT, 0.1)
    for _ in range(2):
        recorder.call_started(HEALTH_WATCH)
    recorder.call_started(OTHER_METHOD)
    recorder.call_ended(OTHER_METHOD, Code.UNIMPLEMENTED, 0.1)
    collector.retire(block)
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_handled_total", **CLASSIFY_LABELS, grpc_code="Unavailable") == 3
    handled = [s for s in scrape.families["grpc_server_handled"].samples if s.name == "grpc_server_handled_total"]
    started = [s for s in scrape.families["grpc_server_started"].samples if s.name == "grpc_server_started_total"]
    assert sum(s.value for s in handled) == sum(s.value for s in started) == 13
    assert sum(s.value for s in handled if s.labels["grpc_code"] == "Unavailable") == 5
    assert not [
        s for s in handled if s.value and s.labels["grpc_code"] == "Unavailable" and s.labels["grpc_method"] == "other"
    ]


def test_connections_that_a_worker_left_open_are_closed_by_its_fault(collector: ServiceCollector) -> None:
    """Accepted equals closed once a worker has ended, and none counts as open."""
    block, recorder = start_worker(collector)
    for _ in range(5):
        recorder.connection_accepted()
    recorder.connection_closed(CloseReason.CLIENT)
    assert Scrape(collector).value("digitserve_connections") == 4
    collector.retire(block)
    scrape = Scrape(collector)
    assert scrape.value("digitserve_connections") == 0
    assert scrape.value("digitserve_connections_accepted_total") == 5
    assert scrape.value("digitserve_connections_closed_total", reason="client") == 1
    assert scrape.value("digitserve_connections_closed_total", reason="internal") == 4


def test_a_retired_worker_is_not_read_again(collector: ServiceCollector) -> None:
    """A worker that is retired before its last write does not change what was shown."""
    block, recorder = start_worker(collector)
    classified(recorder, 4)
    collector.retire(block)
    classified(recorder, 400)
    assert Scrape(collector).value("digitserve_images_total") == 4


def test_a_worker_is_retired_once(collector: ServiceCollector) -> None:
    """Retiring a block again is an error, and does not count its worker twice."""
    block, _ = start_worker(collector)
    collector.retire(block)
    with pytest.raises(ValueError, match="not in list"):
        collector.retire(block)


def test_models_with_other_labels_are_summed_by_label(collector: ServiceCollector) -> None:
    """While a model with other labels replaces one, a label of both has one series; counts stay when its workers have ended."""
    old, recorder = start_worker(collector)
    classified(recorder, 2)
    collector.retire(old)
    labels = ("7", "a")
    new = collector.new_block(labels)
    for index in (0, 1):
        Recorder(new, labels).batch([index], [Verdict.ACCEPTED], [0.5], 0.001, 0.001)
    scrape = Scrape(collector)
    assert scrape.value("digitserve_predictions_total", label="7", verdict="accepted") == 3
    assert scrape.value("digitserve_predictions_total", label="a", verdict="accepted") == 1
    assert scrape.value("digitserve_predictions_total", label="6", verdict="accepted") == 0
    assert scrape.value("digitserve_images_total") == 4
    collector.retire(new)
    assert Scrape(collector).value("digitserve_images_total") == 4
