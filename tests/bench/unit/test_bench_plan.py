"""Schedule, requests, rate search and report of the load generator, without a socket."""

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.bench import report, slo, wire
from digitserve.bench.coordinator import Measurement
from digitserve.bench.counts import Counts, Recorder
from digitserve.bench.metrics_page import ServiceCounters, parse
from digitserve.bench.plan import Plan, Size
from digitserve.bench.schedule import Schedule
from digitserve.bench.traffic import requests
from digitserve.protocol.names import Code
from digitserve.scrape import NotAvailable
from digitserve.v1 import digits_pb2 as pb

PLAN = Plan("127.0.0.1:1")


@given(rate=st.floats(0.5, 5e4), processes=st.integers(1, 5))
def test_evenly_spaced_times_of_all_processes_interleave(rate: float, processes: int) -> None:
    """The union over processes is one request per 1/rate seconds, from the start."""
    times: list[float] = []
    for index in range(processes):
        schedule = Schedule(rate, index, processes, 100.0)
        schedule.advance(100.0 + 40 / rate)
        times += schedule.backlog
    assert sorted(times)[:40] == pytest.approx([100.0 + number / rate for number in range(40)], rel=1e-9)


@given(st.lists(st.floats(0, 0.3), max_size=20))
def test_a_late_event_loop_does_not_change_intended_times(gaps: list[float]) -> None:
    """However rarely the event loop advances the schedule, every due request keeps its intended time."""
    steady, stalled = Schedule(200.0, 0, 1, 5.0), Schedule(200.0, 0, 1, 5.0)
    now = 5.0
    stalled.advance(now)
    for gap in gaps:
        now += gap
        stalled.advance(now)
        assert stalled.next_s > now
    steady.advance(now)
    assert list(stalled.backlog) == list(steady.backlog)
    assert all(time <= now for time in stalled.backlog)


def test_poisson_times_are_repeatable_and_have_the_rate() -> None:
    """The same seed gives the same times, another seed others; gaps are exponential with mean 1/rate."""

    def times(seed: int, index: int = 0) -> list[float]:
        schedule = Schedule(1000.0, index, 2, 0.0, poisson=True, seed=seed)
        schedule.advance(40.0)
        return list(schedule.backlog)

    assert times(1) == times(1) != times(2)
    assert times(1) != times(1, index=1)
    gaps = np.diff(times(1))
    assert gaps.mean() == pytest.approx(2e-3, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def run_search(capacity: float, first: float) -> tuple[list[float], float | None]:
    """Search with a service that meets the limit up to a rate; return the measured rates, and the rate found."""
    search = slo.search(first)
    rates = [next(search)]
    while True:
        try:
            rates.append(search.send(rates[-1] <= capacity))
        except StopIteration as ended:
            return rates, ended.value


@given(capacity=st.floats(1.5, 1e6), first=st.floats(1, 1e5))
def test_the_search_finds_the_highest_rate(capacity: float, first: float) -> None:
    """The rate found was measured and met the limit, 3 % more does not, and the search is short."""
    rates, found = run_search(capacity, first)
    assert found in rates
    assert found is not None and found <= capacity < found * (1 + slo.TOLERANCE) * 1.0001
    assert len(rates) <= abs(math.log2(capacity / first)) + 9


def test_the_ends_of_the_search() -> None:
    """It ends below one request per second, and above the rate that any machine can send."""
    assert run_search(0.0, 8.0) == ([8.0, 4.0, 2.0, 1.0], None)
    assert run_search(math.inf, 6e6) == ([6e6, 12e6], 12e6)


def test_requests_follow_the_plan() -> None:
    """Each request has the planned images; sizes occur in proportion to their weights; the same seed gives the same requests."""
    plan = replace(PLAN, images=3, sizes=(Size(28, 28, 3), Size(40, 64, 1)), seed=7)
    decoded = [pb.ClassifyRequest.FromString(request.body[5:]) for request in islice(requests(plan, 0), 2000)]
    assert {(r.height, r.width, r.num_images, len(r.pixels)) for r in decoded} == {
        (28, 28, 3, 3 * 784), (40, 64, 3, 3 * 2560),
    }  # fmt: skip
    assert np.mean([request.width == 64 for request in decoded]) == pytest.approx(0.25, abs=0.04)
    first = [request.body for request in islice(requests(plan, 0), 50)]
    assert first == [request.body for request in islice(requests(plan, 0), 50)]
    assert first != [request.body for request in islice(requests(plan, 1), 50)]
    assert len(set(first)) > 25


def test_messages_of_streams_are_wrapped() -> None:
    """On a stream, the same request is inside a ClassifyStreamRequest."""
    request = next(requests(replace(PLAN, method="stream"), 0))
    assert pb.ClassifyStreamRequest.FromString(request.body[5:]).request.num_images == 1


def test_plan_and_counts_round_trip_through_json() -> None:
    """The messages between coordinator and process do not change in JSON."""
    plan = replace(PLAN, rate=3.5, sizes=(Size(1, 2, 0.5), Size(3, 4)))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    recorder = Recorder()
    recorder.set_window(0.0, 10.0)
    recorder.request_ended(1.0, wire.OK, 1.25)
    recorder.request_ended(1.0, wire.Status(Code.INVALID_ARGUMENT, "bad"), 1.5)
    counts = recorder.take()
    both = Counts.from_json(json.loads(json.dumps(counts.to_json())))
    both.add(counts)
    assert (both.codes, both.timeline) == ({"OK": 2, "InvalidArgument": 2}, {12: 2})
    assert (both.latencies.num, both.messages) == (2, {"InvalidArgument": "bad"})


def test_only_requests_of_the_measured_time_are_measured() -> None:
    """Latency counts from the intended time; requests of the warm-up count only in the timeline; the waiting time of
    unfinished requests is included in percentiles.
    """
    recorder = Recorder()
    recorder.set_window(10.0, 20.0)
    recorder.request_ended(9.9, wire.OK, 10.05)
    recorder.request_ended(19.9, wire.OK, 25.0)
    recorder.request_unfinished(19.0, 20.0, sent=False)
    recorder.request_unfinished(9.0, 20.0, sent=True)
    counts = recorder.take()
    assert (counts.codes, counts.timeline, counts.unsent, counts.unanswered) == ({"OK": 1}, {0: 1}, 1, 0)
    assert (counts.latencies.num, counts.latencies.max_s) == (1, pytest.approx(5.1))
    assert (counts.waits.num, counts.waits.max_s) == (1, pytest.approx(1.0))
    assert counts.measured == counts.latencies_and_waits().num == 2


def measurement(ok_s: list[float], errors: int = 0, **changes: object) -> Measurement:
    counts = Counts()
    counts.codes.update({"OK": len(ok_s)} | ({"ResourceExhausted": errors} if errors else {}))
    counts.latencies.record(ok_s)
    counts.timeline.update({0: len(ok_s)})
    return replace(Measurement(PLAN, counts, measured_s=1.0, busy=[0.5]), **changes)  # type: ignore[arg-type]


def test_errors_count_as_late() -> None:
    """A service does not meet the limit by refusing requests."""
    fast = [0.001] * 990
    assert report.meets_slo(measurement([*fast, *[1.0] * 10]), 0.01)
    assert not report.meets_slo(measurement([*fast, *[1.0] * 11]), 0.01)
    assert report.meets_slo(measurement(fast, errors=10), 0.01)
    assert not report.meets_slo(measurement(fast, errors=11), 0.01)
    assert not report.meets_slo(measurement([]), 0.01)


@pytest.mark.parametrize("sent", [True, False])
def test_unfinished_requests_count_as_late(sent: bool) -> None:
    """A service does not meet the limit because the measurement ended before waiting requests were late; percentiles
    include them.
    """
    recorder = Recorder()
    recorder.set_window(0.0, 1.0)
    for _ in range(98):
        recorder.request_ended(0.5, wire.OK, 0.501)
    for _ in range(2):
        recorder.request_unfinished(0.999, 1.0, sent=sent)
    seen = Measurement(PLAN, Counts.from_json(json.loads(json.dumps(recorder.take().to_json()))))

    assert seen.counts.measured == seen.counts.latencies_and_waits().num == 100
    assert not report.meets_slo(seen, 0.01)
    for _ in range(100):
        recorder.request_ended(0.5, wire.OK, 0.501)
    seen.counts.add(recorder.take())
    assert report.meets_slo(seen, 0.01)


def test_the_report_warns_of_a_saturated_load_generator() -> None:
    """When a load generator process had no CPU time to spare, both reports say that it limited the rate."""
    assert "was the limit" not in report.as_text(measurement([0.1]))
    busy = measurement([0.1], busy=[0.2, 0.95])
    assert "was the limit" in report.as_text(busy)
    assert report.as_json(busy)["load_generator"]["was_the_limit"] is True  # type: ignore[index]


def test_a_report_without_answers_is_valid_json() -> None:
    """It has no NaN, which JSON does not allow."""
    text = json.dumps(report.as_json(measurement([], errors=2)), allow_nan=False)
    assert json.loads(text)["latency_s"]["p99"] is None
    assert "no answers" in report.as_text(measurement([], errors=2))


PAGE = """\
# TYPE digitserve_images_total counter
digitserve_images_total {images}
# TYPE digitserve_cpu_seconds_total counter
digitserve_cpu_seconds_total {cpu}
# TYPE digitserve_batch_size histogram
digitserve_batch_size_bucket{{le="1.0"}} {one}
digitserve_batch_size_bucket{{le="2.0"}} {one}
digitserve_batch_size_bucket{{le="4.0"}} {all}
digitserve_batch_size_bucket{{le="+Inf"}} {all}
digitserve_batch_size_sum {images}
digitserve_batch_size_count {all}
"""


def test_service_counters_are_differences() -> None:
    """Batch sizes and CPU seconds per image are computed from the differences of two readings."""
    before = parse(PAGE.format(images=10, cpu=1.0, one=10, all=10), "page")
    increase = parse(PAGE.format(images=25, cpu=1.3, one=13, all=17), "page").since(before)
    assert (increase.images, increase.cpu_s_per_image) == (15, pytest.approx(0.02))
    assert {bound: num for bound, num in increase.batches.items() if num} == {1.0: 3, 4.0: 4}
    assert increase.mean_batch_size == pytest.approx(15 / 7)
    text = report.as_text(measurement([0.1], service=increase))
    assert "mean 2.1 images; 1: 43%, 3-4: 57%" in text
    assert "20000.0 us per image" in text


def test_unusable_metrics_pages() -> None:
    """A page that is not digitserve's, and counters of a restarted service, are reported as not available."""
    for text in ("<html>", "# TYPE up gauge\nup 1\n"):
        with pytest.raises(NotAvailable):
            parse(text, "page")
    with pytest.raises(NotAvailable, match="restarted"):
        ServiceCounters(1, 1).since(ServiceCounters(2, 1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1e-6, "1000n"), (1e-12, "1n"), (0.25, "250000u"), (2.0, "2000000u"), (5e4, "50000000m"), (1e6, "1000000S")],
)
def test_deadlines_fit_eight_digits(seconds: float, text: str) -> None:
    """``grpc-timeout`` has at most eight digits and a unit."""
    assert wire.timeout(seconds) == text


@given(messages=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(0, 400))
def test_messages_are_split_independently_of_frames(messages: list[bytes], cut: int) -> None:
    """Complete messages are returned once; an incomplete one stays until it is complete."""
    stream = b"".join(map(wire.add_prefix, messages))
    first, rest = wire.split(stream[:cut])
    second, nothing = wire.split(rest + stream[cut:])
    assert (first + second, nothing) == (messages, b"")


def test_statuses_of_plain_http() -> None:
    """Answers in plain HTTP are mapped by gRPC's table; an unknown status is UNKNOWN."""

    def code(*headers: tuple[str, str]) -> int:
        return wire.read_status(headers).code

    assert code((":status", "503")) == Code.UNAVAILABLE
    assert code((":status", "418")) == code(("grpc-status", "99")) == Code.UNKNOWN
    assert code((":status", "200"), ("grpc-status", "8")) == 8
    assert code((":status", "200")) == Code.OK
