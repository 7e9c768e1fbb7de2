"""The batcher's promises: time is passed in, and each answer carries the name of its entry."""

import contextlib
import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from digitserve.batching.batcher import DEADLINE_MARGIN, LARGE_SHARE, OWN_SHARE, WAIT_MARGIN, Batcher
from digitserve.batching.entries import Batch, Entry
from digitserve.batching.estimate import Estimate
from digitserve.batching.overload import OVERLOAD_AFTER_S, OVERLOAD_ENDS_S, OVERLOAD_SHARE
from digitserve.batching.prepare import framing_work
from digitserve.batching.refusals import STEPS_MS
from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded
from digitserve.types import Source

IMAGE_S = 0.001
WORK_S = 1e-7
SMALL = framing_work(28, 28)
MAX_IMAGES = 30
"""Of a request of the state machine."""


class NamedEntry(Entry):
    """An entry whose answers carry its name, which proves whose they are."""

    def __init__(
        self,
        name: object,
        num_images: int,
        work: int,
        num_bytes: int,
        arrived: float,
        deadline: float,
        source: Source | None,
    ) -> None:
        super().__init__(num_images, work, num_bytes, arrived, deadline, source)
        self.name = name


def make_batcher(**changes: float) -> Batcher[NamedEntry]:
    """Make a batcher of 8 images per batch, with a bound on time that only framing can reach."""
    limits = {
        "max_batch_size": 8, "max_pending_images": 100, "max_pending_bytes": 1 << 20, "max_batch_s": 0.05,
        "image_s": IMAGE_S, "work_s": WORK_S,
    }  # fmt: skip
    return Batcher(**(limits | changes))


def make_entry(
    name: object = "entry", num_images: int = 1, *, framing_work: int = 0, num_bytes: int = 784, arrived: float = 0.0,
    deadline: float = math.inf, source: Source | None = None,
) -> NamedEntry:  # fmt: skip
    """Make an entry with a name; without a source, it has one of its own."""
    return NamedEntry(name, num_images, framing_work, num_bytes, arrived, deadline, source)


def admit(batcher: Batcher[NamedEntry], *entries: NamedEntry, now: float = 0.0) -> None:
    """Admit entries in order."""
    for entry in entries:
        batcher.admit(entry, now)


def answers_to(batch: Batch[NamedEntry]) -> list[tuple[object, int]]:
    """Answer each row with the name of its entry and the index of its image."""
    return [(entry.name, index) for entry, start, stop in batch.parts for index in range(start, stop)]


def finish(batcher: Batcher[NamedEntry], batch: Batch[NamedEntry]) -> list[object]:
    """Complete a batch at exactly the estimated speed; return the names of the entries that are complete."""
    preprocess_s = batch.framing_work * batcher.work_s.seconds
    inference_s = batch.num_images * batcher.image_s.seconds
    iteration_s = preprocess_s + batch.num_images * batcher.iteration_image_s.seconds
    return [entry.name for entry in batcher.complete(batch, answers_to(batch), preprocess_s, inference_s, iteration_s)]


def parts(batch: Batch[NamedEntry] | None) -> list[tuple[object, int, int]]:
    """Return the parts of a batch with names in place of entries."""
    assert batch is not None
    return [(entry.name, start, stop) for entry, start, stop in batch.parts]


def drain(batcher: Batcher[NamedEntry], now: float = 0.0) -> list[object]:
    """Run batches until nothing waits; return the names in the order of completion."""
    done = []
    while batcher.has_pending():
        batch = batcher.form(now)
        assert batch is not None
        done += finish(batcher, batch)
    return done


def test_an_empty_queue_forms_no_batch() -> None:
    """An idle batcher returns no batch, so the loop does not run the network."""
    batcher = make_batcher()
    assert batcher.form(0.0) is None
    assert not batcher.has_pending()


def test_one_request_is_a_batch_at_once() -> None:
    """There is no timer: a single request runs alone, without delay."""
    batcher = make_batcher()
    admit(batcher, make_entry("only"))
    assert parts(batcher.form(0.0)) == [("only", 0, 1)]


def test_requests_share_a_batch_in_the_order_of_arrival() -> None:
    """Rows are in the order of arrival, and answers are distributed by the same rows."""
    batcher = make_batcher()
    entries = [make_entry(name, size) for name, size in (("a", 2), ("b", 1), ("c", 3))]
    admit(batcher, *entries)
    batch = batcher.form(0.0)
    assert parts(batch) == [("a", 0, 2), ("b", 0, 1), ("c", 0, 3)]
    assert batch is not None
    assert batch.num_images == 6
    assert finish(batcher, batch) == ["a", "b", "c"]
    assert [entry.answers for entry in entries] == [
        [("a", 0), ("a", 1)],
        [("b", 0)],
        [("c", 0), ("c", 1), ("c", 2)],
    ]


def test_a_large_request_is_split_and_answered_whole_and_in_order() -> None:
    """A request of more images than fit into a batch is answered once, with every image in its place."""
    batcher = make_batcher()
    large = make_entry("large", 20)
    admit(batcher, large)
    sizes = []
    while batcher.has_pending():
        batch = batcher.form(0.0)
        assert batch is not None
        sizes.append(batch.num_images)
        done = finish(batcher, batch)
    assert sizes == [8, 8, 4]
    assert done == ["large"]
    assert large.answers == [("large", index) for index in range(20)]


def test_a_small_request_passes_a_large_one() -> None:
    """A small request that arrives after a large one is in the next batch, not behind all images of the large one. That
    batch is half as large, because the small request has already waited for one batch.
    """
    batcher = make_batcher()
    admit(batcher, make_entry("large", 40))
    first = batcher.form(0.0)
    assert first is not None
    finish(batcher, first)
    admit(batcher, make_entry("small"))
    assert parts(batcher.form(0.0)) == [("small", 0, 1), ("large", 8, 11)]


def test_large_requests_are_scheduled_round_robin() -> None:
    """Two large requests that wait together progress together."""
    batcher = make_batcher()
    admit(batcher, make_entry("a", 16), make_entry("b", 16))
    names = []
    while batcher.has_pending():
        batch = batcher.form(0.0)
        assert batch is not None
        names += [name for name, _, _ in parts(batch)]
        finish(batcher, batch)
    assert names == ["a", "b", "a", "b"]


def test_a_large_request_gets_its_share_under_a_continuous_load_of_small_ones() -> None:
    """When small requests fill every batch, every second batch still reserves a share for large ones."""
    batcher = make_batcher()
    large = make_entry("large", 16)
    admit(batcher, large)
    num_batches = 0
    while not large.answers[15:]:
        admit(batcher, *(make_entry("small") for _ in range(8)))
        batch = batcher.form(0.0)
        assert batch is not None
        finish(batcher, batch)
        num_batches += 1
        admit(batcher, *(make_entry("small") for _ in range(2)) if batcher.pending_images < 60 else ())
        assert num_batches <= 2 * math.ceil(16 / (8 // LARGE_SHARE)) + 1


@given(
    size=st.integers(1, 16),
    large=st.lists(st.integers(17, 60), min_size=1, max_size=4),
    small=st.lists(st.integers(1, 16), min_size=1, max_size=20),
)
@settings(max_examples=80)
def test_no_request_starves_when_both_queues_stay_full(size: int, large: list[int], small: list[int]) -> None:
    """However full both queues are kept, every waiting request is answered within a bounded number of batches."""
    batcher = make_batcher(max_batch_size=size, max_pending_images=10_000, max_batch_s=1e6)
    waiting = [make_entry(("large", number), images) for number, images in enumerate(large)]
    waiting += [make_entry(("small", number), min(images, size)) for number, images in enumerate(small)]
    admit(batcher, *waiting)
    left = {entry.name for entry in waiting}
    share = max(1, size // LARGE_SHARE)
    most = 2 * (math.ceil(sum(large) / share) + sum(small)) + 4
    for number in range(most):
        # More requests of both kinds, each of them enough for a batch.
        admit(batcher, make_entry(("late", number), size), make_entry(("late and large", number), size + 1))
        batch = batcher.form(0.0)
        assert batch is not None
        left.difference_update(finish(batcher, batch))
        if not {name for name in left if name[0] == "small"} and number > most // 2:
            break
    assert not {name for name in left if name[0] == "small"}
    # Later large requests share the batches of the earlier ones; without further arrivals the rest completes at once.
    assert left.issubset(drain(batcher)) or not left


def test_images_over_the_limit_are_rejected_with_the_time_to_retry() -> None:
    """Beyond max_pending_images a request is rejected at once, with the time after which there should be room."""
    batcher = make_batcher(max_pending_images=10)
    admit(batcher, make_entry("fits", 8))
    with pytest.raises(Overloaded, match="at most 10 images may wait; retry in 10 ms") as rejection:
        batcher.admit(make_entry("too many", 3), 0.0)
    assert rejection.value.retry_after_s == 0.010  # the 8 ms of those that wait, rounded up
    assert batcher.pending_images == 8
    admit(batcher, make_entry("just fits", 2))
    assert isinstance(batcher.refusal(math.inf, Source()), Overloaded)


def test_half_full_is_reported_before_requests_are_rejected() -> None:
    """From half of the room on, streams of a source are to be paused; no request of it, or of others, is rejected yet."""
    batcher = make_batcher(max_pending_images=10)
    one, other = Source(), Source()
    admit(batcher, make_entry(num_images=4, source=one))
    assert not batcher.is_half_full(one)
    admit(batcher, make_entry(num_images=1, source=one))

    assert batcher.is_half_full(one) and batcher.refusal(math.inf, one) is None
    assert not batcher.is_half_full(other) and batcher.refusal(math.inf, other) is None


def test_similar_refusals_are_the_same_error() -> None:
    """Times are rounded up to a step, so there are few error texts; each states the limit and the retry delay."""
    batcher = make_batcher(max_pending_images=10)
    admit(batcher, *(make_entry() for _ in range(10)))
    errors = set()
    for microseconds in range(100, 20_000_000, 10_007):
        batcher.iteration_image_s.seconds = microseconds / 1e6
        error = batcher.refusal(math.inf, Source())
        assert isinstance(error, Overloaded) and "at most 10 images" in str(error)
        wait_s = min(STEPS_MS[-1] / 1e3, 10 * batcher.iteration_image_s.seconds)
        assert wait_s <= error.retry_after_s <= max(0.001, 2.5 * wait_s)
        assert f"retry in {error.retry_after_s * 1e3:.0f} ms" in str(error)
        errors.add(error)
    assert len(errors) <= len(STEPS_MS)


@given(
    waiting=st.lists(st.integers(1, 12), max_size=12),
    left_s=st.floats(-0.01, 0.2) | st.just(math.inf),
    closed=st.booleans(),
)
def test_a_call_is_refused_exactly_if_a_single_image_would_not_be_admitted(
    waiting: list[int], left_s: float, closed: bool
) -> None:
    """Rejection before the message agrees with admission, in result and text: no rejected request could be admitted."""
    batcher = make_batcher(max_pending_images=60)
    for num_images in waiting:
        with contextlib.suppress(Overloaded):
            batcher.admit(make_entry(num_images=num_images), 0.0)
    if closed:
        batcher.close()
    refusal = batcher.refusal(left_s, Source())
    try:
        batcher.admit(make_entry("single", deadline=left_s), 0.0)
    except (Overloaded, DeadlineUnmeetable, Draining) as error:
        assert (type(refusal), str(refusal)) == (type(error), str(error))
        assert refusal is not error, "an error that is raised refers to its frames"
    else:
        assert refusal is None


def test_bytes_over_the_limit_are_rejected_but_one_request_always_fits() -> None:
    """Memory held by waiting requests is bounded; a single request larger than the limit can still be served."""
    batcher = make_batcher(max_pending_bytes=1000)
    admit(batcher, make_entry("large", num_bytes=5000))
    with pytest.raises(Overloaded, match="at most 1000 bytes may wait"):
        batcher.admit(make_entry("second", num_bytes=1), 0.0)
    assert drain(batcher) == ["large"]
    admit(batcher, make_entry("second", num_bytes=1))


def test_room_is_freed_when_images_are_batched_or_cancelled() -> None:
    """Images that are in a batch, cancelled or expired no longer count as waiting."""
    batcher = make_batcher(max_pending_images=10, max_pending_bytes=2500)
    gone, late = make_entry("gone", 4, num_bytes=1000), make_entry("late", 4, num_bytes=1000, deadline=5.0)
    admit(batcher, gone, late)
    batcher.cancel(gone)
    batcher.cancel(gone)
    assert batcher.pending_images == 4
    batch = batcher.form(6.0)
    assert batch is not None
    assert (batch.parts, batch.expired, batch.num_images) == ([], [late], 0)
    assert batcher.pending_images == 0
    admit(batcher, make_entry("new", 8, num_bytes=2500), now=6.0)


def test_cancelling_a_partly_batched_request_frees_only_what_still_waits() -> None:
    """Images that are in a batch no longer count as waiting; cancelling frees the rest."""
    batcher = make_batcher()
    large, other = make_entry("large", 20), make_entry("other", 9)
    admit(batcher, large, other)
    batch = batcher.form(0.0)
    assert batcher.pending_images == 21
    batcher.cancel(large)
    assert batcher.pending_images == 9
    assert batch is not None
    assert finish(batcher, batch) == []
    assert drain(batcher) == ["other"]
    assert batcher.pending_images == 0


def test_a_cancelled_entry_never_reaches_a_batch() -> None:
    """The network does not run for a caller that is gone."""
    batcher = make_batcher()
    gone, stays = make_entry("gone"), make_entry("stays")
    admit(batcher, gone, stays)
    batcher.cancel(gone)
    assert parts(batcher.form(0.0)) == [("stays", 0, 1)]


def test_a_cancelled_entry_in_a_running_batch_affects_no_other() -> None:
    """Answers of an entry that was cancelled during the run are dropped; the other entries get their own."""
    batcher = make_batcher()
    entries = [make_entry("a", 2), make_entry("gone", 3), make_entry("b", 2)]
    admit(batcher, *entries)
    batch = batcher.form(0.0)
    assert batch is not None
    batcher.cancel(entries[1])
    assert finish(batcher, batch) == ["a", "b"]
    assert entries[1].answers == []
    assert entries[2].answers == [("b", 0), ("b", 1)]


def test_an_expired_entry_never_reaches_a_batch_and_is_listed_once() -> None:
    """An entry whose deadline has passed is not run, and is listed as expired exactly once."""
    batcher = make_batcher()
    late, fine = make_entry("late", deadline=1.0), make_entry("fine", deadline=2.0)
    admit(batcher, late, fine)
    batch = batcher.form(1.0)
    assert batch is not None
    assert batch.expired == [late]
    assert parts(batch) == [("fine", 0, 1)]
    assert late.cancelled
    finish(batcher, batch)
    assert batcher.form(1.0) is None


def test_a_large_request_that_expires_between_its_batches_is_dropped() -> None:
    """A partly answered request whose deadline has passed is not run any further."""
    batcher = make_batcher()
    late = make_entry("late", 20, deadline=1.0)
    admit(batcher, late)
    batch = batcher.form(0.0)
    assert batch is not None
    finish(batcher, batch)
    batch = batcher.form(1.5)
    assert batch is not None
    assert (batch.expired, batch.parts) == ([late], [])
    assert batcher.pending_images == 0


def test_a_deadline_that_cannot_be_met_is_rejected_at_once() -> None:
    """If the answer would be too late by the batcher's estimate, the request is rejected immediately."""
    batcher = make_batcher()
    with pytest.raises(DeadlineUnmeetable, match="needs up to 10 ms, and the deadline of the call is earlier"):
        batcher.admit(make_entry("hopeless", 8, deadline=10.007), 10.0)
    assert batcher.pending_images == 0
    admit(batcher, make_entry("possible", 8, deadline=10.0095), now=10.0)


def test_earlier_small_requests_count_against_a_deadline() -> None:
    """Small requests that wait already come first, so their time is part of the estimate; so is that of a full batch."""
    batcher = make_batcher()
    admit(batcher, *(make_entry(deadline=math.inf) for _ in range(50)))
    with pytest.raises(DeadlineUnmeetable):
        batcher.admit(make_entry("behind", deadline=(50 * WAIT_MARGIN + 6 * DEADLINE_MARGIN - 0.1) * IMAGE_S), 0.0)
    admit(batcher, make_entry("patient", deadline=(50 * WAIT_MARGIN + 6 * DEADLINE_MARGIN + 0.1) * IMAGE_S))


def test_large_requests_do_not_count_against_the_deadline_of_a_small_one() -> None:
    """A small request passes a large one, so it is not rejected because of it."""
    batcher = make_batcher()
    admit(batcher, make_entry("large", 90))
    admit(batcher, make_entry("urgent", deadline=0.002))
    assert ("urgent", 0, 1) in parts(batcher.form(0.0))


def test_a_large_request_is_not_rejected_because_of_all_small_ones() -> None:
    """Large requests have their share beside any number of small ones: only that much waiting is certain."""
    batcher = make_batcher(max_pending_images=1000, max_batch_s=1.0)
    admit(batcher, *(make_entry() for _ in range(900)))
    # Nine images need at most nine shares of two batches: far less than the 900 ms of the small ones.
    admit(batcher, make_entry("large", 9, deadline=0.100))


def test_a_deadline_in_the_past_is_rejected() -> None:
    """No request is admitted that has expired already."""
    batcher = make_batcher()
    with pytest.raises(DeadlineUnmeetable, match="needs up to 2 ms"):
        batcher.admit(make_entry("past", deadline=1.0), 2.0)


def test_one_interruption_does_not_make_every_deadline_unmeetable() -> None:
    """After a process was stopped for a minute during one batch, it must not reject every later request."""
    batcher = make_batcher()
    admit(batcher, make_entry("unlucky"))
    batch = batcher.form(0.0)
    assert batch is not None
    batcher.complete(batch, answers_to(batch), 0.0, 60.0, 60.0)
    admit(batcher, make_entry("next", deadline=61.0), now=60.0)


def test_an_estimate_that_rejects_every_request_corrects_itself() -> None:
    """If every request is rejected because of the estimate, no batch can correct it; so rejections on an idle server lower
    it.
    """
    batcher = make_batcher()
    batcher.image_s.seconds = batcher.iteration_image_s.seconds = (
        100 * IMAGE_S
    )  # as after a minute on an overloaded machine
    for number in range(200):
        try:
            batcher.admit(make_entry("hopeful", deadline=number + 2 * IMAGE_S), number)
        except DeadlineUnmeetable:
            continue
        break
    else:
        pytest.fail("200 requests with enough time were rejected by an estimate that nothing corrects")


def test_rejections_do_not_lower_an_estimate_below_its_first_value() -> None:
    """A flood of requests with too short deadlines is rejected to its end."""
    batcher = make_batcher()
    for _ in range(1000):
        with pytest.raises(DeadlineUnmeetable):
            batcher.admit(make_entry("hopeless", 8, deadline=0.007), 0.0)
    assert batcher.image_s.seconds == batcher.iteration_image_s.seconds == pytest.approx(IMAGE_S)


def test_the_estimate_for_deadlines_covers_whole_iterations() -> None:
    """The time of an iteration outside the network (receiving, rejecting, answering) counts in estimates for deadlines. It
    changes neither the size of batches nor which requests are large.
    """
    batcher = make_batcher()
    for _ in range(100):
        admit(batcher, *(make_entry() for _ in range(8)))
        batch = batcher.form(0.0)
        assert batch is not None
        batcher.complete(batch, answers_to(batch), 0.004, 8 * IMAGE_S, 0.004 + 24 * IMAGE_S)
    assert batcher.image_s.seconds == pytest.approx(IMAGE_S)
    assert batcher.iteration_image_s.seconds == pytest.approx(3 * IMAGE_S, rel=0.01)
    admit(batcher, *(make_entry() for _ in range(16)))
    assert batcher.refusal(24 * 3 * IMAGE_S, Source()) is not None
    assert batcher.refusal((16.1 * WAIT_MARGIN + 8 * DEADLINE_MARGIN) * 3 * IMAGE_S, Source()) is None
    assert not batcher.is_large(8, 0)


def test_small_batches_do_not_make_large_requests_look_slow() -> None:
    """One image alone takes longer than one of many: low load must not cause large requests to be rejected."""
    batcher = make_batcher(max_batch_size=64, max_pending_images=4096)
    for _ in range(200):
        admit(batcher, make_entry())
        batch = batcher.form(0.0)
        assert batch is not None
        batcher.complete(batch, answers_to(batch), 0.0, 10 * IMAGE_S, 12 * IMAGE_S)
    admit(batcher, make_entry("large", 640, deadline=0.750))


def test_framing_work_bounds_the_estimated_time_of_a_batch() -> None:
    """Images that are slow to frame run in smaller batches, so that other requests do not wait long."""
    work = framing_work(200, 200)
    each_s = IMAGE_S + work * WORK_S
    batcher = make_batcher(max_batch_s=4.5 * each_s, max_batch_size=64)
    admit(batcher, *(make_entry(number, framing_work=work) for number in range(10)))
    sizes = []
    while batcher.has_pending():
        batch = batcher.form(0.0)
        assert batch is not None
        assert batch.framing_work == batch.num_images * work
        sizes.append(batch.num_images)
        finish(batcher, batch)
    assert sizes == [4, 4, 2]


def test_a_slow_network_bounds_a_batch_of_plain_images_too() -> None:
    """The bound on time holds for images that need no framing, however they are divided into requests."""
    batcher = make_batcher(max_batch_size=64, max_batch_s=50.5 * IMAGE_S)
    admit(batcher, make_entry("a", 20), make_entry("b", 20), make_entry("c", 24))
    batch = batcher.form(0.0)
    assert batch is not None
    assert batch.num_images == 50


def test_one_image_always_fits_however_long_it_takes() -> None:
    """An image whose framing alone exceeds the bound on time is still served, in a separate batch."""
    batcher = make_batcher()
    admit(batcher, make_entry("huge", 2, framing_work=framing_work(4096, 4096)))
    sizes = []
    while batcher.has_pending():
        batch = batcher.form(0.0)
        assert batch is not None
        sizes.append(batch.num_images)
        finish(batcher, batch)
    assert sizes == [1, 1]


def test_a_slow_image_does_not_starve_beside_fast_ones() -> None:
    """An image too slow to share a batch is run while small requests keep arriving."""
    batcher = make_batcher()
    admit(batcher, make_entry("slow", framing_work=framing_work(4096, 4096)))
    done: list[object] = []
    for number in range(3):
        admit(batcher, make_entry(("fast", number)))
        batch = batcher.form(0.0)
        assert batch is not None
        done += finish(batcher, batch)
    assert "slow" in done
    assert ("fast", 0) in done


def test_the_times_of_an_entry_add_up_over_its_batches() -> None:
    """The timing of a request covers all batches that it was part of, and its wait ends with the first."""
    batcher = make_batcher()
    large = make_entry("large", 16, arrived=1.0)
    admit(batcher, large, now=1.0)
    for now in (2.0, 3.0):
        batch = batcher.form(now)
        assert batch is not None
        batcher.complete(batch, answers_to(batch), 0.25, 0.5, 1.0)
    assert (large.first_batch, large.preprocess_s, large.inference_s) == (2.0, 0.5, 1.0)


def test_close_returns_what_waits_and_stops_admission() -> None:
    """At the end of the grace period all waiting entries are returned to be rejected, each once, and no more are admitted."""
    batcher = make_batcher()
    half, whole, gone = make_entry("half", 20), make_entry("whole", 2), make_entry("gone")
    admit(batcher, half, whole, gone)
    batcher.cancel(gone)
    batch = batcher.form(0.0)
    assert batch is not None
    closed = batcher.close()
    assert closed == [half]
    assert batcher.pending_images == 0
    assert batcher.close() == []
    assert finish(batcher, batch) == ["whole"]
    assert isinstance(batcher.refusal(math.inf, Source()), Draining)
    with pytest.raises(Draining, match="shutting down"):
        batcher.admit(make_entry("late"), 0.0)


@given(
    held=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    calls=st.lists(st.integers(1, 8), min_size=1, max_size=4),
)
def test_patient_requests_are_admitted_in_order_under_any_load(held: list[int], calls: list[int]) -> None:
    """While unary calls take all room, held requests are admitted in the order of their queue, whatever their size: a small one
    after the next batch, a large one when the large ones before it are answered. Calls are still admitted.
    """
    batcher = make_batcher()
    queues: dict[bool, deque[NamedEntry]] = {False: deque(), True: deque()}
    for number, num_images in enumerate(held):
        entry = make_entry(f"held {number}", num_images)
        queues[batcher.is_large(num_images, 0)].append(entry)
    left = {entry.name for queue in queues.values() for entry in queue}
    num_batches = num_calls = 0
    while left:
        assert num_batches <= 2 * (100 + sum(held)), "a quarter of every second batch is for large requests"
        with contextlib.suppress(Overloaded):
            for number in range(1000):
                batcher.admit(make_entry("call", calls[number % len(calls)]), 0.0)
                num_calls += 1
        batch = batcher.form(0.0)
        assert batch is not None
        left.difference_update(finish(batcher, batch))
        num_batches += 1
        for queue in queues.values():
            with contextlib.suppress(Overloaded):
                while queue:
                    batcher.admit(queue[0], 0.0, patient=True)
                    queue.popleft()
    assert num_calls >= num_batches / 2


def test_held_requests_count_in_bytes() -> None:
    """Held and pending requests share one limit in bytes; a held request is admitted with the bytes that it already has."""
    batcher = make_batcher(max_pending_bytes=1000)
    assert batcher.hold(5000), "one request always fits"
    assert not batcher.hold(1)
    batcher.release(5000)
    assert batcher.hold(600) and not batcher.hold(401)
    with pytest.raises(Overloaded, match="at most 1000 bytes"):
        batcher.admit(make_entry(num_bytes=401), 0.0)
    batcher.admit(make_entry(num_bytes=600), 0.0, patient=True)
    batcher.release(600)
    admit(batcher, make_entry(num_bytes=400))
    assert not batcher.hold(1)
    assert isinstance(batcher.held_error(), Overloaded)


def test_large_requests_keep_no_small_ones_out() -> None:
    """Each queue has its own limit: neither kind of request takes the room of the other or pauses streams of the other."""
    batcher = make_batcher(max_pending_images=80)
    admit(batcher, make_entry("large", 80))
    assert not batcher.is_half_full(Source()) and batcher.pending_images == 80
    with pytest.raises(Overloaded):
        batcher.admit(make_entry("second large", 9), 0.0)
    with pytest.raises(Overloaded):
        batcher.admit(make_entry("second large", 9), 0.0, patient=True)
    admit(batcher, *(make_entry() for _ in range(80)))
    assert isinstance(batcher.refusal(math.inf, Source()), Overloaded)
    batch = batcher.form(0.0)
    assert batch is not None
    finish(batcher, batch)
    finish(batcher, batcher.form(0.0) or batch)
    batcher.admit(make_entry("second large", 80), 0.0, patient=True)


def rejected(batcher: Batcher[NamedEntry], source: Source, count: int, left_s: float = math.inf) -> int:
    """Offer calls of a source, and return how many are rejected."""
    num_rejected = 0
    for _ in range(count):
        if batcher.refusal(left_s, source) is None:
            admit(batcher, make_entry(deadline=left_s, source=source))
        else:
            num_rejected += 1
    return num_rejected


@pytest.mark.parametrize("left_s", [math.inf, 0.100])
@pytest.mark.parametrize("num_floods", [1, 3, 10])
def test_floods_leave_room_for_other_sources(num_floods: int, left_s: float) -> None:
    """Sources that send too much get equal parts of the queue. A source with less than such a part is not rejected."""
    batcher = make_batcher(max_pending_images=1000 if left_s == math.inf else 100_000)
    floods = [Source() for _ in range(num_floods)]
    for _ in range(1000):
        for flood in floods:
            rejected(batcher, flood, 1, left_s)
    parts = [flood.small_images for flood in floods]
    assert max(parts) - min(parts) <= 1
    room = batcher.pending_images * (1 + 1 / OWN_SHARE / num_floods)
    assert parts[0] == pytest.approx(room * OWN_SHARE / (OWN_SHARE * num_floods + 1), abs=2)
    light = Source()
    assert rejected(batcher, light, int(room / (num_floods + 1) / (OWN_SHARE + 1)) - 1, left_s) == 0
    assert rejected(batcher, floods[0], 1, left_s) == 1


def test_a_flood_of_large_requests_leaves_room_for_other_sources() -> None:
    """The queue of large requests is shared in the same way."""
    batcher = make_batcher(max_pending_images=100)
    flood, light = Source(), Source()
    for _ in range(5):
        admit(batcher, make_entry(num_images=16, source=flood))
    with pytest.raises(Overloaded):
        batcher.admit(make_entry(num_images=16, source=flood), 0.0)
    admit(batcher, make_entry(num_images=16, source=light))


def test_patient_callers_get_room_during_a_flood() -> None:
    """A stream of another connection is neither paused nor held while single calls of one connection flood the queue."""
    batcher = make_batcher(max_pending_images=100)
    flood, light = Source(), Source()
    assert rejected(batcher, flood, 1000) > 0
    assert batcher.is_half_full(flood) and not batcher.is_half_full(light)
    batcher.admit(make_entry(source=light), 0.0, patient=True)


def test_a_backlog_is_several_full_batches_of_small_requests() -> None:
    """Only from four full batches on is there a backlog; large requests do not count, because they get a share of each batch."""
    batcher = make_batcher()
    admit(batcher, make_entry("large", 90), *(make_entry() for _ in range(31)))
    assert not batcher.has_backlog()
    admit(batcher, make_entry())
    assert batcher.has_backlog()


def test_continuous_rejections_shorten_the_queue() -> None:
    """While requests are rejected all the time, fewer may wait: no more are answered with a longer queue. A burst may use all of
    it, and so may requests after a time without rejections.
    """
    batcher = make_batcher(max_pending_images=100)
    assert rejected(batcher, Source(), 200) > 0
    now = 0.0
    while now <= OVERLOAD_AFTER_S:
        assert batcher.limit.images == 100
        assert batcher.form(now) is not None
        now += 0.01
        rejected(batcher, Source(), 200)
    drain(batcher, now)
    assert batcher.limit.images == 100 // OVERLOAD_SHARE
    batcher.form(now + OVERLOAD_ENDS_S - 0.01)
    assert batcher.limit.images == 100 // OVERLOAD_SHARE
    batcher.form(now + OVERLOAD_ENDS_S + 0.01)
    assert batcher.limit.images == 100


def test_a_shorter_queue_rejects_no_calls_of_another_source() -> None:
    """While fewer and fewer images may wait because of a flood, there is room for a source that sends one in each iteration."""
    batcher = make_batcher(max_pending_images=100)
    flood, light, now = Source(), Source(), 0.0
    while now < 4 * OVERLOAD_AFTER_S:
        assert rejected(batcher, flood, 200) > 0
        assert rejected(batcher, light, 1) == 0
        batcher.form(now)
        now += 0.01
    assert batcher.limit.images == 100 // OVERLOAD_SHARE


def test_a_small_request_is_never_rejected_by_an_empty_queue() -> None:
    """Small requests of any size get room once the queue is empty, even while rejections continue and few images may wait."""
    batcher = make_batcher(max_batch_size=16, max_pending_images=32)
    now = 0.0
    while now < 2 * OVERLOAD_AFTER_S:
        rejected(batcher, Source(), 200)
        now += 0.01
        drain(batcher, now)
    admit(batcher, make_entry(num_images=16))


def test_an_estimate_follows_the_measurements() -> None:
    """When the service becomes three times slower, the estimate is correct after some tens of batches."""
    estimate = Estimate(1.0)
    estimate.update(5.0, 0)
    assert estimate.seconds == 1.0
    for _ in range(60):
        estimate.update(6.0, 2)
    assert estimate.seconds == pytest.approx(3.0, rel=0.01)


@dataclass
class Caller:
    """What the test records of an admitted entry, independently of the batcher."""

    entry: NamedEntry
    outcomes: list[str] = field(default_factory=list)

    @property
    def num_waiting(self) -> int:
        """Images that still wait."""
        return 0 if self.outcomes else self.entry.num_images - self.entry.num_batched


class BatcherMachine(RuleBasedStateMachine):
    """Any order of calls keeps the promises: one outcome per entry, its own answers, exact counts, bounded batches."""

    @initialize(
        max_batch_size=st.integers(1, 12),
        max_batch_s=st.sampled_from([0.002, 0.0075, 0.05, 1.0]),
        max_pending_images=st.integers(1, 60),
        max_pending_bytes=st.sampled_from([1500, 10_000, 1 << 30]),
    )
    def start(self, max_batch_size: int, max_batch_s: float, max_pending_images: int, max_pending_bytes: int) -> None:
        """Make an empty batcher."""
        self.max_batch_size, self.max_batch_s = max_batch_size, max_batch_s
        self.max_pending_images, self.max_pending_bytes = max_pending_images, max_pending_bytes
        self.batcher = make_batcher(
            max_batch_size=max_batch_size, max_batch_s=max_batch_s, max_pending_images=max_pending_images,
            max_pending_bytes=max_pending_bytes,
        )  # fmt: skip
        self.now = 100.0
        self.sources = [Source() for _ in range(3)]
        self.callers: dict[int, Caller] = {}
        self.running: Batch[NamedEntry] | None = None
        self.closed = False

    def waiting_images(self, *, large: bool, source: Source | None = None) -> int:
        """Return the images that wait in one of the queues, of all sources or of one."""
        return sum(
            caller.num_waiting for caller in self.callers.values()
            if caller.entry.large is large and source in {None, caller.entry.source}
        )  # fmt: skip

    @rule(
        num_images=st.one_of(st.just(1), st.integers(1, MAX_IMAGES)),
        work=st.sampled_from([0, 0, SMALL, framing_work(300, 300), framing_work(2048, 2048)]),
        image_bytes=st.integers(1, 900),
        patience_s=st.sampled_from([math.inf, math.inf, -1.0, 0.0, 0.003, 0.05, 2.0]),
        patient=st.booleans(),
        source_index=st.integers(0, 2),
    )
    def admit(
        self, num_images: int, work: int, image_bytes: int, patience_s: float, *, patient: bool, source_index: int
    ) -> None:
        """Admit a request, or reject it for a valid reason."""
        name = len(self.callers)
        num_bytes = num_images * image_bytes
        source = self.sources[source_index]
        entry = make_entry(
            name, num_images, framing_work=work, num_bytes=num_bytes, deadline=self.now + patience_s, source=source
        )
        held_bytes = sum(caller.entry.num_bytes for caller in self.callers.values() if caller.num_waiting)
        large = self.batcher.is_large(num_images, work)
        limit = self.max_pending_images if large else self.batcher.limit.images
        needed = 1 if patient else num_images + self.waiting_images(large=large, source=source) // OWN_SHARE
        too_many = self.waiting_images(large=large) + needed > limit
        too_heavy = bool(held_bytes) and held_bytes + (1 if patient else num_bytes) > self.max_pending_bytes
        try:
            self.batcher.admit(entry, self.now, patient=patient)
        except Draining:
            assert self.closed
        except Overloaded as error:
            assert too_many or too_heavy
            assert error.retry_after_s > 0
        except DeadlineUnmeetable:
            assert patience_s < math.inf
        else:
            assert not (self.closed or too_many or too_heavy)
            assert patience_s > 0
            self.callers[name] = Caller(entry)

    @precondition(lambda self: self.callers)
    @rule(number=st.integers(0, 1 << 16))
    def cancel(self, number: int) -> None:
        """Cancel a request, perhaps for the second time, perhaps after its answer."""
        caller = self.callers[number % len(self.callers)]
        self.batcher.cancel(caller.entry)
        if not caller.outcomes:
            caller.outcomes.append("cancelled")

    @rule(seconds=st.sampled_from([0.0005, 0.004, 0.06, 3.0]))
    def wait(self, seconds: float) -> None:
        """Advance the time."""
        self.now += seconds

    @precondition(lambda self: self.running is None)
    @rule()
    def form(self) -> None:
        """Form a batch, which must keep every bound."""
        batch = self.batcher.form(self.now)
        if batch is None:
            assert not any(caller.num_waiting for caller in self.callers.values())
            return
        for entry in batch.expired:
            assert entry.deadline <= self.now
            assert not self.callers[entry.name].outcomes
            self.callers[entry.name].outcomes.append("expired")
        assert batch.num_images == sum(stop - start for _, start, stop in batch.parts) <= self.max_batch_size
        assert batch.framing_work == sum((stop - start) * entry.framing_work for entry, start, stop in batch.parts)
        seconds = batch.num_images * self.batcher.image_s.seconds + batch.framing_work * self.batcher.work_s.seconds
        assert seconds <= self.max_batch_s * (1 + 1e-9) or batch.num_images == 1
        for entry, start, stop in batch.parts:
            assert 0 <= start < stop <= entry.num_images
            assert entry.deadline > self.now
            assert not self.callers[entry.name].outcomes
        if any(caller.num_waiting for caller in self.callers.values()):
            assert batch.parts, "requests wait, and none is in the batch"
        self.running = batch

    @precondition(lambda self: self.running is not None)
    @rule(slowness=st.sampled_from([0.3, 1.0, 1.0, 1.0, 1.0, 3.0]))
    def complete(self, slowness: float) -> None:
        """Complete the batch, after a run of any duration."""
        batch, self.running = self.running, None
        assert batch is not None
        preprocess_s, inference_s = batch.framing_work * WORK_S * slowness, batch.num_images * IMAGE_S * slowness
        for entry in self.batcher.complete(
            batch, answers_to(batch), preprocess_s, inference_s, preprocess_s + 1.5 * inference_s
        ):
            assert entry.answers == [(entry.name, index) for index in range(entry.num_images)]
            self.callers[entry.name].outcomes.append("answered")

    @precondition(lambda self: self.running is not None and len(self.callers) > 10)
    @rule()
    def complete_after_a_stop(self) -> None:
        """Complete a batch during which the process was stopped for a minute."""
        self.now += 60.0
        self.complete(1e5)

    @precondition(lambda self: self.running is not None)
    @rule()
    def fail(self) -> None:
        """Cancel the entries of a batch on which the network failed, as the pipeline does."""
        batch, self.running = self.running, None
        assert batch is not None
        for entry in {id(entry): entry for entry, _, _ in batch.parts}.values():
            if not entry.cancelled:
                self.callers[entry.name].outcomes.append("failed")
            self.batcher.cancel(entry)

    @precondition(lambda self: len(self.callers) > 12)
    @rule()
    def close(self) -> None:
        """End the grace period."""
        self.closed = True
        waiting = {name for name, caller in self.callers.items() if caller.num_waiting}
        closed = self.batcher.close()
        assert {entry.name for entry in closed} == waiting
        assert len(closed) == len(waiting)
        for entry in closed:
            self.callers[entry.name].outcomes.append("closed")

    @invariant()
    def pending_images_is_the_truth(self) -> None:
        """``pending_images`` is the number of images that wait. No queue has more than allowed, except for the last request of
        a patient caller.
        """
        small, large = self.waiting_images(large=False), self.waiting_images(large=True)
        waiting = small + large
        assert self.batcher.pending_images == waiting
        assert small < self.max_pending_images + self.max_batch_size
        assert large < self.max_pending_images + MAX_IMAGES
        for source in self.sources:
            own = self.waiting_images(large=False, source=source)
            assert (source.small_images, source.large_images) == (own, self.waiting_images(large=True, source=source))
            assert self.batcher.is_half_full(source) >= (small + own >= self.max_pending_images)
        assert self.batcher.has_pending() or not waiting

    @invariant()
    def no_entry_has_two_outcomes(self) -> None:
        """Each entry is answered, cancelled, expired, failed or closed: one of them, once."""
        assert all(len(caller.outcomes) <= 1 for caller in self.callers.values())

    def teardown(self) -> None:
        """A few more batches answer all that is left, whatever happened before."""
        if not hasattr(self, "batcher"):
            return
        if self.running is not None:
            self.complete(1.0)
        # Each batch holds at least one image, unless it only drops cancelled or expired entries.
        for _ in range(self.batcher.pending_images + len(self.callers) + 1):
            if not self.batcher.has_pending():
                break
            self.form()
            if self.running is not None:
                self.complete(1.0)
            self.no_entry_has_two_outcomes()
        assert self.batcher.pending_images == 0
        assert all(len(caller.outcomes) == 1 for caller in self.callers.values())


BatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, report_multiple_bugs=False)


class TestAnyOrderOfCalls(BatcherMachine.TestCase):
    """For any order of arrivals, cancellations, time and failures, every admitted entry gets exactly one outcome."""
