"""When requests are sent, what they carry, how the highest rate is searched, what is said about it: without a socket."""

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.bench import report, slo, wire
from digitserve.bench.counts import Counts, Tally
from digitserve.bench.fleet import Measured
from digitserve.bench.metrics_page import NotAvailable, Service, parse
from digitserve.bench.plan import Plan, Size
from digitserve.bench.schedule import Schedule
from digitserve.bench.traffic import bodies
from digitserve.v1 import digits_pb2 as pb

PLAN = Plan("127.0.0.1:1")
OK = wire.Status(wire.OK, "")


@given(rate=st.floats(0.5, 5e4), processes=st.integers(1, 5))
def test_even_times_of_all_processes_interleave(rate: float, processes: int) -> None:
    """The union over processes is one request each 1/rate seconds, from the start on."""
    times: list[float] = []
    for index in range(processes):
        schedule = Schedule(rate, index, processes, 100.0)
        schedule.advance(100.0 + 40 / rate)
        times += schedule.line
    assert sorted(times)[:40] == pytest.approx([100.0 + number / rate for number in range(40)], rel=1e-9)


@given(st.lists(st.floats(0, 0.3), max_size=20))
def test_late_looks_do_not_move_the_times(gaps: list[float]) -> None:
    """However rarely the loop comes round, what was due keeps its intended time: nothing is omitted."""
    steady, stalled = Schedule(200.0, 0, 1, 5.0), Schedule(200.0, 0, 1, 5.0)
    now = 5.0
    stalled.advance(now)
    for gap in gaps:
        now += gap
        stalled.advance(now)
        assert stalled.next_s > now
    steady.advance(now)
    assert list(stalled.line) == list(steady.line)
    assert all(time <= now for time in stalled.line)


def test_poisson_times_repeat_and_have_the_rate() -> None:
    """The same seed gives the same times, another one others; gaps are exponential with the mean 1/rate."""

    def times(seed: int, index: int = 0) -> list[float]:
        schedule = Schedule(1000.0, index, 2, 0.0, poisson=True, seed=seed)
        schedule.advance(40.0)
        return list(schedule.line)

    assert times(1) == times(1) != times(2)
    assert times(1) != times(1, index=1)
    gaps = np.diff(times(1))
    assert gaps.mean() == pytest.approx(2e-3, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def searched(bears: float, first: float) -> tuple[list[float], float | None]:
    """Search a service that bears rates up to a limit; return the rates that were tried, and what was found."""
    search = slo.search(first)
    rates = [next(search)]
    while True:
        try:
            rates.append(search.send(rates[-1] <= bears))
        except StopIteration as ended:
            return rates, ended.value


@given(bears=st.floats(1.5, 1e6), first=st.floats(1, 1e5))
def test_the_search_finds_the_highest_rate(bears: float, first: float) -> None:
    """What is found was tried and held, 3 % more does not hold, and the way there is short."""
    rates, found = searched(bears, first)
    assert found in rates
    assert found is not None and found <= bears < found * (1 + slo.TOLERANCE) * 1.0001
    assert len(rates) <= abs(math.log2(bears / first)) + 9


def test_the_ends_of_the_search() -> None:
    """It gives up below one request a second, and above what any machine can send."""
    assert searched(0.0, 8.0) == ([8.0, 4.0, 2.0, 1.0], None)
    assert searched(math.inf, 6e6) == ([6e6, 12e6], 12e6)


def test_requests_are_what_the_plan_says() -> None:
    """Each carries its images; sizes come as often as their weights; the same seed gives the same requests."""
    plan = replace(PLAN, images=3, sizes=(Size(28, 28, 3), Size(40, 64, 1)), seed=7)
    requests = [pb.ClassifyRequest.FromString(body.framed[5:]) for body in islice(bodies(plan, 0), 2000)]
    assert {(r.height, r.width, r.num_images, len(r.pixels)) for r in requests} == {
        (28, 28, 3, 3 * 784), (40, 64, 3, 3 * 2560),
    }  # fmt: skip
    assert np.mean([request.width == 64 for request in requests]) == pytest.approx(0.25, abs=0.04)
    first = [body.framed for body in islice(bodies(plan, 0), 50)]
    assert first == [body.framed for body in islice(bodies(plan, 0), 50)]
    assert first != [body.framed for body in islice(bodies(plan, 1), 50)]
    assert len(set(first)) > 25


def test_messages_of_streams_are_wrapped() -> None:
    """On a stream the same request travels inside ClassifyStreamRequest."""
    body = next(bodies(replace(PLAN, method="stream"), 0))
    assert pb.ClassifyStreamRequest.FromString(body.framed[5:]).request.num_images == 1


def test_a_plan_and_counts_survive_their_journey() -> None:
    """What a process is told and what it tells come through JSON unchanged."""
    plan = replace(PLAN, rate=3.5, sizes=(Size(1, 2, 0.5), Size(3, 4)))
    assert Plan.from_json(plan.to_json()) == plan
    tally = Tally()
    tally.measure(0.0, 10.0)
    tally.ended(1.0, OK, 1.25)
    tally.ended(1.0, wire.Status(3, "bad"), 1.5)
    counts = tally.take()
    both = Counts.from_json(json.loads(json.dumps(counts.to_json())))
    both.add(counts)
    assert (both.codes, both.timeline) == ({"OK": 2, "InvalidArgument": 2}, {12: 2})
    assert (both.latencies.num, both.messages) == (2, {"InvalidArgument": "bad"})


def test_only_requests_of_the_measured_time_are_measured() -> None:
    """Latency counts from the intended time; the warm-up counts towards answers over time only; what was left over
    waits in the percentiles.
    """
    tally = Tally()
    tally.measure(10.0, 20.0)
    tally.ended(9.9, OK, 10.05)
    tally.ended(19.9, OK, 25.0)
    tally.left_over(19.0, 20.0, sent=False)
    tally.left_over(9.0, 20.0, sent=True)
    counts = tally.take()
    assert (counts.codes, counts.timeline, counts.unsent, counts.unanswered) == ({"OK": 1}, {0: 1}, 1, 0)
    assert (counts.latencies.num, counts.latencies.max_s) == (1, pytest.approx(5.1))
    assert (counts.waits.num, counts.waits.max_s) == (1, pytest.approx(1.0))
    assert counts.measured == counts.latencies_and_waits().num == 2


def measured(ok_s: list[float], errors: int = 0, **changes: object) -> Measured:
    counts = Counts()
    counts.codes.update({"OK": len(ok_s)} | ({"ResourceExhausted": errors} if errors else {}))
    counts.latencies.record(ok_s)
    counts.timeline.update({0: len(ok_s)})
    return replace(Measured(PLAN, counts, measured_s=1.0, busy=[0.5]), **changes)  # type: ignore[arg-type]


def test_errors_count_as_late() -> None:
    """A rate does not hold because a service refuses what it cannot bear."""
    fast = [0.001] * 990
    assert report.holds(measured([*fast, *[1.0] * 10]), 0.01)
    assert not report.holds(measured([*fast, *[1.0] * 11]), 0.01)
    assert report.holds(measured(fast, errors=10), 0.01)
    assert not report.holds(measured(fast, errors=11), 0.01)
    assert not report.holds(measured([]), 0.01)


@pytest.mark.parametrize("sent", [True, False])
def test_what_was_never_answered_counts_as_late(sent: bool) -> None:
    """A rate does not hold because the measuring ended before the requests in line were late; percentiles know of them."""
    tally = Tally()
    tally.measure(0.0, 1.0)
    for _ in range(98):
        tally.ended(0.5, OK, 0.501)
    for _ in range(2):
        tally.left_over(0.999, 1.0, sent=sent)
    seen = Measured(PLAN, Counts.from_json(json.loads(json.dumps(tally.take().to_json()))))

    assert seen.counts.measured == seen.counts.latencies_and_waits().num == 100
    assert not report.holds(seen, 0.01)
    for _ in range(100):
        tally.ended(0.5, OK, 0.501)
    seen.counts.add(tally.take())
    assert report.holds(seen, 0.01)


def test_the_report_says_when_the_load_generator_was_the_limit() -> None:
    """A process without CPU time to spare makes the figures its own; both reports say so."""
    assert "was the limit" not in report.as_text(measured([0.1]))
    busy = measured([0.1], busy=[0.2, 0.95])
    assert "was the limit" in report.as_text(busy)
    assert report.as_json(busy)["load_generator"]["was_the_limit"] is True  # type: ignore[index]


def test_a_report_without_answers_is_json_all_the_same() -> None:
    """No NaN, which JSON does not have."""
    text = json.dumps(report.as_json(measured([], errors=2)), allow_nan=False)
    assert json.loads(text)["latency_s"]["p99"] is None
    assert "nothing was answered" in report.as_text(measured([], errors=2))


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


def test_the_services_own_counters_are_what_they_grew_by() -> None:
    """Batch sizes and CPU seconds an image are differences of two readings."""
    before = parse(PAGE.format(images=10, cpu=1.0, one=10, all=10), "page")
    grown = parse(PAGE.format(images=25, cpu=1.3, one=13, all=17), "page").since(before)
    assert (grown.images, grown.cpu_s_per_image) == (15, pytest.approx(0.02))
    assert {bound: num for bound, num in grown.batches.items() if num} == {1.0: 3, 4.0: 4}
    assert grown.mean_batch_size == pytest.approx(15 / 7)
    text = report.as_text(measured([0.1], service=grown))
    assert "mean 2.1 images; 1: 43%, 3-4: 57%" in text
    assert "20000.0 us an image" in text


def test_pages_of_others_are_not_available() -> None:
    """A page that is not the service's, or was begun anew, is said to be so."""
    for text in ("<html>", "# TYPE up gauge\nup 1\n"):
        with pytest.raises(NotAvailable):
            parse(text, "page")
    with pytest.raises(NotAvailable, match="anew"):
        Service(1, 1).since(Service(2, 1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1e-6, "1000n"), (1e-12, "1n"), (0.25, "250000u"), (2.0, "2000000u"), (5e4, "50000000m"), (1e6, "1000000S")],
)
def test_deadlines_fit_eight_digits(seconds: float, text: str) -> None:
    """``grpc-timeout`` has at most eight digits and a unit."""
    assert wire.timeout(seconds) == text


@given(messages=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(0, 400))
def test_messages_are_split_wherever_frames_end(messages: list[bytes], cut: int) -> None:
    """Whole messages come out once, the beginning of the next stays."""
    stream = b"".join(map(wire.frame, messages))
    first, rest = wire.split(stream[:cut])
    second, nothing = wire.split(rest + stream[cut:])
    assert (first + second, nothing) == (messages, b"")


def test_statuses_of_plain_http() -> None:
    """What answers without gRPC is told by gRPC's own table; a code that is none is Unknown."""

    def code(*headers: tuple[str, str]) -> int:
        return wire.read_status(headers).code

    assert code((":status", "503")) == wire.UNAVAILABLE
    assert code((":status", "418")) == code(("grpc-status", "99")) == wire.UNKNOWN
    assert code((":status", "200"), ("grpc-status", "8")) == 8
    assert code((":status", "200")) == wire.OK
