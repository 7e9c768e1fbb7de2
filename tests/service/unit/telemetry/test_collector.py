"""What is added is what Prometheus sees: summed over workers, and never lost with one."""

from collections.abc import Iterable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from digitserve.telemetry.block import CLASSIFY_ROW, CODES, METHOD_ROWS, OTHER_ROW, Block, Tally
from digitserve.telemetry.collector import ServiceCollector

LABELS = tuple("0123456789")
CLASSIFY = {"grpc_type": "unary", "grpc_service": "digitserve.v1.DigitService", "grpc_method": "Classify"}
OK = CODES.index("OK")


def supervised() -> Iterable[Metric]:
    """Stand for what the supervisor knows itself."""
    return [GaugeMetricFamily("digitserve_ready_workers", "Workers that take requests.", 2)]


class Scrape:
    """One scrape, parsed by Prometheus's own client."""

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
    return ServiceCollector(LABELS, supervised)


def start_worker(collector: ServiceCollector) -> tuple[Block, Tally]:
    """Make a block, and the tally that its worker would have."""
    block = collector.new_block()
    return block, Tally(block, LABELS)


def test_cpu_seconds_survive_their_worker(collector: ServiceCollector) -> None:
    """Each worker writes what it used in all; the sum keeps what the dead have used."""
    (dead, first), (_, second) = start_worker(collector), start_worker(collector)
    first.cpu_s[0], second.cpu_s[0] = 2.0, 0.5
    collector.retire(dead)
    assert Scrape(collector).value("digitserve_cpu_seconds_total") == 2.5


def test_names_and_kinds_are_those_that_dashboards_rely_on(collector: ServiceCollector) -> None:
    """The names of the design, all there before the first request, none more; the heartbeat is nobody's business."""
    kinds = {name: family.type for name, family in Scrape(collector).families.items()}
    assert kinds == {
        "grpc_server_started": "counter",
        "grpc_server_handled": "counter",
        "grpc_server_handling_seconds": "histogram",
        "digitserve_images": "counter",
        "digitserve_batch_size": "histogram",
        "digitserve_cpu_seconds": "counter",
        "digitserve_queue_seconds": "histogram",
        "digitserve_inference_seconds": "histogram",
        "digitserve_preprocess_seconds": "histogram",
        "digitserve_pending_images": "gauge",
        "digitserve_rejected": "counter",
        "digitserve_predictions": "counter",
        "digitserve_confidence": "histogram",
        "digitserve_ready_workers": "gauge",
    }


def test_without_a_worker_every_series_that_alerts_need_is_zero(collector: ServiceCollector) -> None:
    """A rate over a counter needs its zero: the series are there before the first event."""
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_started_total", **CLASSIFY) == 0
    assert scrape.value("grpc_server_handled_total", **CLASSIFY, grpc_code="OK") == 0
    assert scrape.value("digitserve_images_total") == 0
    assert scrape.value("digitserve_rejected_total", reason="queue_full") == 0
    assert scrape.value("digitserve_predictions_total", label="7", verdict="unfamiliar") == 0
    assert scrape.value("digitserve_queue_seconds_count") == 0


def test_codes_that_never_came_are_left_out(collector: ServiceCollector) -> None:
    """A hundred lines of zeros would say nothing; a code shows once it has come."""
    _, tally = start_worker(collector)
    assert ("grpc_server_handled_total", frozenset({**CLASSIFY, "grpc_code": "Internal"}.items())) not in Scrape(
        collector
    ).samples
    tally.handled[CLASSIFY_ROW, CODES.index("Internal")] += 1
    assert Scrape(collector).value("grpc_server_handled_total", **CLASSIFY, grpc_code="Internal") == 1


def test_what_is_added_is_what_is_shown(collector: ServiceCollector) -> None:
    """Counter, gauge and histogram show exactly what the worker added."""
    _, tally = start_worker(collector)
    tally.started[CLASSIFY_ROW] += 5
    tally.handled[CLASSIFY_ROW, OK] += 4
    tally.images[0] += 12
    tally.pending_images[0] = 3
    tally.batch_size.observe_many([1, 3, 8])
    tally.predictions(np.array([7, 7, 2, 9]), np.array([0, 0, 3, 2]))
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_started_total", **CLASSIFY) == 5
    assert scrape.value("grpc_server_handled_total", **CLASSIFY, grpc_code="OK") == 4
    assert scrape.value("digitserve_images_total") == 12
    assert scrape.value("digitserve_pending_images") == 3
    assert scrape.value("digitserve_batch_size_bucket", le="2.0") == 1
    assert scrape.value("digitserve_batch_size_bucket", le="4.0") == 2
    assert scrape.value("digitserve_batch_size_bucket", le="+Inf") == 3
    assert scrape.value("digitserve_batch_size_sum") == 12
    assert scrape.value("digitserve_batch_size_count") == 3
    assert scrape.value("digitserve_predictions_total", label="7", verdict="accepted") == 2
    assert scrape.value("digitserve_predictions_total", label="2", verdict="several") == 1
    assert scrape.value("digitserve_predictions_total", label="", verdict="blank") == 1
    assert scrape.value("digitserve_predictions_total", label="9", verdict="accepted") == 0


def test_histograms_are_cumulative_from_a_tenth_of_a_millisecond(collector: ServiceCollector) -> None:
    """The first bucket is 0.1 ms, each holds the ones before it, and the last is the count."""
    _, tally = start_worker(collector)
    values = np.random.default_rng(1).exponential(0.01, 500)
    tally.handling_s[CLASSIFY_ROW].observe_many(values)
    scrape = Scrape(collector)
    family = scrape.families["grpc_server_handling_seconds"]
    buckets = [
        (float(s.labels["le"]), s.value) for s in family.samples
        if s.name.endswith("_bucket") and CLASSIFY.items() <= s.labels.items()
    ]  # fmt: skip
    assert buckets[0][0] == 0.0001
    assert buckets == [(bound, int(np.sum(values <= bound))) for bound, _ in buckets]
    assert scrape.value("grpc_server_handling_seconds_count", **CLASSIFY) == 500
    assert scrape.value("grpc_server_handling_seconds_sum", **CLASSIFY) == pytest.approx(values.sum())


def test_workers_are_summed(collector: ServiceCollector) -> None:
    """One scrape shows the whole service."""
    for number in (1, 2, 3):
        _, tally = start_worker(collector)
        tally.images[0] += number
        tally.pending_images[0] = number
        tally.inference_s.observe(0.001 * number)
    scrape = Scrape(collector)
    assert scrape.value("digitserve_images_total") == 6
    assert scrape.value("digitserve_pending_images") == 6
    assert scrape.value("digitserve_inference_seconds_count") == 3


def test_counts_survive_their_worker_and_its_gauge_falls(collector: ServiceCollector) -> None:
    """Replacing a worker takes nothing back that was counted; what waited in it waits no more."""
    _, stays = start_worker(collector)
    block, tally = start_worker(collector)
    stays.images[0], tally.images[0] = 10, 32
    stays.pending_images[0], tally.pending_images[0] = 1, 8
    tally.confidence.observe_many([0.5, 0.99])
    before = Scrape(collector)
    collector.retire(block)
    after = Scrape(collector)
    assert before.value("digitserve_images_total") == after.value("digitserve_images_total") == 42
    assert before.value("digitserve_confidence_sum") == after.value("digitserve_confidence_sum")
    assert (before.value("digitserve_pending_images"), after.value("digitserve_pending_images")) == (9, 1)
    _, successor = start_worker(collector)
    successor.images[0] = 1
    assert Scrape(collector).value("digitserve_images_total") == 43


def test_scraping_twice_does_not_count_twice(collector: ServiceCollector) -> None:
    """A scrape only reads: what the dead have left is not added to by looking."""
    block, tally = start_worker(collector)
    tally.images[0] += 5
    collector.retire(block)
    start_worker(collector)[1].images[0] += 1
    assert Scrape(collector).samples == Scrape(collector).samples
    assert Scrape(collector).value("digitserve_images_total") == 6


def test_calls_that_died_with_their_worker_are_unavailable(collector: ServiceCollector) -> None:
    """Started equals handled once it is quiet: what a dead worker never answered is what its callers saw."""
    block, tally = start_worker(collector)
    tally.started[CLASSIFY_ROW] += 10
    tally.handled[CLASSIFY_ROW, OK] += 6
    tally.handled[CLASSIFY_ROW, CODES.index("InvalidArgument")] += 1
    row = METHOD_ROWS["/grpc.health.v1.Health/Watch"]
    tally.started[row] += 2
    tally.started[OTHER_ROW] += 1
    tally.handled[OTHER_ROW, CODES.index("Unimplemented")] += 1
    collector.retire(block)
    scrape = Scrape(collector)
    assert scrape.value("grpc_server_handled_total", **CLASSIFY, grpc_code="Unavailable") == 3
    handled = [s for s in scrape.families["grpc_server_handled"].samples if s.name == "grpc_server_handled_total"]
    started = [s for s in scrape.families["grpc_server_started"].samples if s.name == "grpc_server_started_total"]
    assert sum(s.value for s in handled) == sum(s.value for s in started) == 13
    assert sum(s.value for s in handled if s.labels["grpc_code"] == "Unavailable") == 5
    assert not [s for s in handled if s.labels["grpc_code"] == "Unavailable" and s.labels["grpc_method"] == "other"]


def test_nothing_of_a_worker_is_read_after_it_was_retired(collector: ServiceCollector) -> None:
    """A worker that is retired before its last write cannot change what was shown."""
    block, tally = start_worker(collector)
    tally.images[0] = 4
    collector.retire(block)
    tally.images[0] = 400
    assert Scrape(collector).value("digitserve_images_total") == 4


def test_a_worker_is_retired_once(collector: ServiceCollector) -> None:
    """Retiring the same block again is a fault of ours and must not count its worker twice."""
    block, _ = start_worker(collector)
    collector.retire(block)
    with pytest.raises(ValueError, match="not in list"):
        collector.retire(block)
