"""The batcher's promises, driven exactly: time is passed in, answers tell whose they are."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from digitserve.batching.batcher import LONG_SHARE, Batch, Batcher, Entry, Estimate, framing_work
from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded

IMAGE_S = 0.001
WORK_S = 1e-7
SMALL = framing_work(28, 28)


def make_batcher(**changes: float) -> Batcher:
    """Make a batcher of 8 images a batch, with a bound on time that only framing can reach."""
    limits = {
        "max_batch_size": 8, "max_pending_images": 100, "max_pending_bytes": 1 << 20, "max_batch_s": 0.05,
        "image_s": IMAGE_S, "work_s": WORK_S,
    }  # fmt: skip
    return Batcher(**(limits | changes))


def make_entry(
    name: object = "entry", num_images: int = 1, *, framing_work: int = 0, num_bytes: int = 784, arrived: float = 0.0,
    deadline: float = math.inf,
) -> Entry:  # fmt: skip
    """Make an entry whose work is its name."""
    return Entry(name, num_images, framing_work, num_bytes, arrived, deadline)


def admit(batcher: Batcher, *entries: Entry, now: float = 0.0) -> None:
    """Admit entries in order."""
    for entry in entries:
        batcher.admit(entry, now)


def answers_to(batch: Batch) -> list[tuple[object, int]]:
    """Answer each row with whose it is and which image of that entry."""
    return [(entry.work, index) for entry, start, stop in batch.parts for index in range(start, stop)]


def finish(batcher: Batcher, batch: Batch) -> list[object]:
    """Complete a batch at exactly the estimated speed; return the names of the entries that are done."""
    preprocess_s = batch.framing_work * batcher.work_s.seconds
    inference_s = batch.num_images * batcher.image_s.seconds
    return [entry.work for entry in batcher.complete(batch, answers_to(batch), preprocess_s, inference_s)]


def parts(batch: Batch | None) -> list[tuple[object, int, int]]:
    """Show a batch by name."""
    assert batch is not None
    return [(entry.work, start, stop) for entry, start, stop in batch.parts]


def drain(batcher: Batcher, now: float = 0.0) -> list[object]:
    """Run batches until nothing waits; return the names in the order in which they were done."""
    done = []
    while batcher.waits():
        batch = batcher.form(now)
        assert batch is not None
        done += finish(batcher, batch)
    return done


def test_nothing_waiting_forms_no_batch() -> None:
    """An idle batcher gives no batch, so the loop need not run the network."""
    batcher = make_batcher()
    assert batcher.form(0.0) is None
    assert not batcher.waits()


def test_one_request_is_a_batch_at_once() -> None:
    """There is no timer: what waits alone runs alone, without delay."""
    batcher = make_batcher()
    admit(batcher, make_entry("only"))
    assert parts(batcher.form(0.0)) == [("only", 0, 1)]


def test_requests_share_a_batch_in_the_order_of_their_arrival() -> None:
    """Rows stand in the order of arrival, and answers go back by the same rows."""
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


def test_a_large_request_is_split_and_its_answers_come_whole_and_in_order() -> None:
    """A request of more images than a batch takes is answered once, with every image in its place."""
    batcher = make_batcher()
    large = make_entry("large", 20)
    admit(batcher, large)
    sizes = []
    while batcher.waits():
        batch = batcher.form(0.0)
        assert batch is not None
        sizes.append(batch.num_images)
        done = finish(batcher, batch)
    assert sizes == [8, 8, 4]
    assert done == ["large"]
    assert large.answers == [("large", index) for index in range(20)]


def test_a_small_request_passes_a_large_one() -> None:
    """A small request that comes after a large one is in the next batch, not behind all of the large one's images; and that
    batch is half as large, for it has waited for one already.
    """
    batcher = make_batcher()
    admit(batcher, make_entry("large", 40))
    first = batcher.form(0.0)
    assert first is not None
    finish(batcher, first)
    admit(batcher, make_entry("small"))
    assert parts(batcher.form(0.0)) == [("small", 0, 1), ("large", 8, 11)]


def test_large_requests_take_turns() -> None:
    """Two large requests that wait together advance together."""
    batcher = make_batcher()
    admit(batcher, make_entry("a", 16), make_entry("b", 16))
    names = []
    while batcher.waits():
        batch = batcher.form(0.0)
        assert batch is not None
        names += [name for name, _, _ in parts(batch)]
        finish(batcher, batch)
    assert names == ["a", "b", "a", "b"]


def test_a_large_request_gets_its_share_beside_an_endless_stream_of_small_ones() -> None:
    """When small requests fill batch after batch, every second batch still sets a share aside for a large one."""
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
        assert num_batches <= 2 * math.ceil(16 / (8 // LONG_SHARE)) + 1


@given(
    size=st.integers(1, 16),
    large=st.lists(st.integers(17, 60), min_size=1, max_size=4),
    small=st.lists(st.integers(1, 16), min_size=1, max_size=20),
)
@settings(max_examples=80)
def test_nobody_starves_when_both_lanes_stay_full(size: int, large: list[int], small: list[int]) -> None:
    """However full both lanes are kept, all that waits is answered within a bounded number of batches."""
    batcher = make_batcher(max_batch_size=size, max_pending_images=10_000, max_batch_s=1e6)
    waiting = [make_entry(("large", number), images) for number, images in enumerate(large)]
    waiting += [make_entry(("small", number), min(images, size)) for number, images in enumerate(small)]
    admit(batcher, *waiting)
    left = {entry.work for entry in waiting}
    share = max(1, size // LONG_SHARE)
    most = 2 * (math.ceil(sum(large) / share) + sum(small)) + 4
    for number in range(most):
        # Newcomers of both kinds, as many as a batch takes.
        admit(batcher, make_entry(("late", number), size), make_entry(("late and large", number), size + 1))
        batch = batcher.form(0.0)
        assert batch is not None
        left.difference_update(finish(batcher, batch))
        if not {name for name in left if name[0] == "small"} and number > most // 2:
            break
    assert not {name for name in left if name[0] == "small"}
    # Large newcomers take turns with large ones; without newcomers the rest goes through at once.
    assert left.issubset(drain(batcher)) or not left


def test_images_over_the_bound_are_refused_with_the_time_to_come_back() -> None:
    """Beyond max_pending_images a request is refused at once and told when there should be room."""
    batcher = make_batcher(max_pending_images=10)
    admit(batcher, make_entry("fits", 8))
    with pytest.raises(Overloaded, match="8 images are waiting, at most 10") as refusal:
        batcher.admit(make_entry("too many", 3), 0.0)
    assert refusal.value.retry_after_s == pytest.approx(8 * IMAGE_S)
    assert batcher.pending_images == 8
    admit(batcher, make_entry("just fits", 2))
    assert batcher.full()
    assert isinstance(batcher.refuse(), Overloaded)


def test_half_full_is_crowded() -> None:
    """From half of what may wait on, readers of streams are asked to hold back; nothing is refused yet."""
    batcher = make_batcher(max_pending_images=10)
    admit(batcher, make_entry(num_images=4))
    assert not batcher.crowded()
    admit(batcher, make_entry(num_images=1))

    assert batcher.crowded()
    assert not batcher.full()


def test_bytes_over_the_bound_are_refused_but_one_request_always_fits() -> None:
    """Memory held by what waits is bounded; a single request larger than the bound can still be served."""
    batcher = make_batcher(max_pending_bytes=1000)
    admit(batcher, make_entry("large", num_bytes=5000))
    with pytest.raises(Overloaded, match="5000 bytes are waiting, at most 1000"):
        batcher.admit(make_entry("second", num_bytes=1), 0.0)
    assert drain(batcher) == ["large"]
    admit(batcher, make_entry("second", num_bytes=1))


def test_room_comes_back_when_images_are_taken_or_cancelled() -> None:
    """What is in a batch, cancelled or expired no longer counts as waiting."""
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


def test_cancelling_a_half_taken_request_frees_only_what_still_waits() -> None:
    """Images already in a batch were counted off when they were taken; cancelling counts off the rest."""
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
    """A caller that is gone costs the network nothing."""
    batcher = make_batcher()
    gone, stays = make_entry("gone"), make_entry("stays")
    admit(batcher, gone, stays)
    batcher.cancel(gone)
    assert parts(batcher.form(0.0)) == [("stays", 0, 1)]


def test_a_cancelled_entry_in_a_running_batch_harms_no_neighbour() -> None:
    """Answers of a caller that left during the run are dropped; its neighbours get their own."""
    batcher = make_batcher()
    entries = [make_entry("a", 2), make_entry("gone", 3), make_entry("b", 2)]
    admit(batcher, *entries)
    batch = batcher.form(0.0)
    assert batch is not None
    batcher.cancel(entries[1])
    assert finish(batcher, batch) == ["a", "b"]
    assert entries[1].answers == []
    assert entries[2].answers == [("b", 0), ("b", 1)]


def test_an_expired_entry_never_reaches_a_batch_and_is_handed_back_once() -> None:
    """What cannot be answered in time any more is not run, and is given back to be failed exactly once."""
    batcher = make_batcher()
    late, fine = make_entry("late", deadline=1.0), make_entry("fine", deadline=2.0)
    admit(batcher, late, fine)
    batch = batcher.form(1.0)
    assert batch is not None
    assert batch.expired == [late]
    assert parts(batch) == [("fine", 0, 1)]
    assert late.dead
    finish(batcher, batch)
    assert batcher.form(1.0) is None


def test_a_large_request_that_expires_between_its_batches_is_dropped() -> None:
    """A half-answered request whose deadline passed takes no more of the network's time."""
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


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """By the batcher's own estimate the answer would come too late, so the caller hears so now."""
    batcher = make_batcher()
    with pytest.raises(DeadlineUnmeetable, match=r"needs about 8\.0 ms and the deadline is in 7\.0 ms"):
        batcher.admit(make_entry("hopeless", 8, deadline=10.007), 10.0)
    assert batcher.pending_images == 0
    admit(batcher, make_entry("possible", 8, deadline=10.009), now=10.0)


def test_what_waits_before_a_request_counts_against_its_deadline() -> None:
    """The short lane comes first, so its time is part of the estimate."""
    batcher = make_batcher()
    admit(batcher, *(make_entry(deadline=math.inf) for _ in range(50)))
    with pytest.raises(DeadlineUnmeetable):
        batcher.admit(make_entry("behind", deadline=0.050), 0.0)
    admit(batcher, make_entry("patient", deadline=0.052))


def test_what_can_be_passed_does_not_count_against_a_deadline() -> None:
    """A large request ahead is passed, so it is no reason to refuse a small one."""
    batcher = make_batcher()
    admit(batcher, make_entry("large", 90))
    admit(batcher, make_entry("urgent", deadline=0.002))
    assert ("urgent", 0, 1) in parts(batcher.form(0.0))


def test_a_large_request_is_not_refused_for_small_ones_that_it_takes_turns_with() -> None:
    """The long lane has its share beside any crowd of small requests: only that much waiting is certain."""
    batcher = make_batcher(max_pending_images=1000, max_batch_s=1.0)
    admit(batcher, *(make_entry() for _ in range(900)))
    # Nine images need at most nine shares of two batches: far less than the 900 ms of the crowd.
    admit(batcher, make_entry("large", 9, deadline=0.100))


def test_a_deadline_in_the_past_is_refused() -> None:
    """Nothing is admitted only to expire."""
    batcher = make_batcher()
    with pytest.raises(DeadlineUnmeetable, match=r"deadline is in 0\.0 ms"):
        batcher.admit(make_entry("past", deadline=1.0), 2.0)


def test_one_stopped_moment_does_not_make_every_deadline_unmeetable() -> None:
    """A process that stood still for a minute during one batch must not refuse every caller for ever after."""
    batcher = make_batcher()
    admit(batcher, make_entry("unlucky"))
    batch = batcher.form(0.0)
    assert batch is not None
    batcher.complete(batch, answers_to(batch), 0.0, 60.0)
    admit(batcher, make_entry("next", deadline=61.0), now=60.0)


def test_an_estimate_that_refuses_everybody_corrects_itself() -> None:
    """When each caller is refused by the estimate, no batch can correct it; so refusals on an idle server wear it down."""
    batcher = make_batcher()
    batcher.image_s.seconds = 100 * IMAGE_S  # as after a minute on a starved machine
    for number in range(200):
        try:
            batcher.admit(make_entry("hopeful", deadline=number + 2 * IMAGE_S), number)
        except DeadlineUnmeetable:
            continue
        break
    else:
        pytest.fail("200 callers with time enough were refused by an estimate that nothing corrects")


def test_refusals_do_not_make_an_estimate_smaller_than_it_was_measured() -> None:
    """A flood of hopeless requests is refused to the end: it cannot talk the batcher into running them."""
    batcher = make_batcher()
    for _ in range(1000):
        with pytest.raises(DeadlineUnmeetable):
            batcher.admit(make_entry("hopeless", 8, deadline=0.007), 0.0)
    assert batcher.image_s.seconds == pytest.approx(IMAGE_S)


def test_small_batches_do_not_make_large_requests_look_slow() -> None:
    """One image alone takes longer than one of many: a quiet hour must not have large requests refused."""
    batcher = make_batcher(max_batch_size=64, max_pending_images=4096)
    for _ in range(200):
        admit(batcher, make_entry())
        batch = batcher.form(0.0)
        assert batch is not None
        batcher.complete(batch, answers_to(batch), 0.0, 10 * IMAGE_S)
    admit(batcher, make_entry("large", 640, deadline=0.700))


def test_framing_work_bounds_the_estimated_time_of_a_batch() -> None:
    """Images that are slow to frame come in smaller batches, so that nobody waits behind them for long."""
    work = framing_work(200, 200)
    each_s = IMAGE_S + work * WORK_S
    batcher = make_batcher(max_batch_s=4.5 * each_s, max_batch_size=64)
    admit(batcher, *(make_entry(number, framing_work=work) for number in range(10)))
    sizes = []
    while batcher.waits():
        batch = batcher.form(0.0)
        assert batch is not None
        assert batch.framing_work == batch.num_images * work
        sizes.append(batch.num_images)
        finish(batcher, batch)
    assert sizes == [4, 4, 2]


def test_a_slow_network_bounds_a_batch_of_plain_images_too() -> None:
    """The bound on time holds for images that need no framing, however they are cut into requests."""
    batcher = make_batcher(max_batch_size=64, max_batch_s=50.5 * IMAGE_S)
    admit(batcher, make_entry("a", 20), make_entry("b", 20), make_entry("c", 24))
    batch = batcher.form(0.0)
    assert batch is not None
    assert batch.num_images == 50


def test_one_image_is_always_taken_however_long_it_takes() -> None:
    """An image whose framing alone exceeds the bound on time is still served, by itself."""
    batcher = make_batcher()
    admit(batcher, make_entry("huge", 2, framing_work=framing_work(4096, 4096)))
    sizes = []
    while batcher.waits():
        batch = batcher.form(0.0)
        assert batch is not None
        sizes.append(batch.num_images)
        finish(batcher, batch)
    assert sizes == [1, 1]


def test_a_slow_image_does_not_starve_beside_quick_ones() -> None:
    """An image too slow to share a batch gets its turn while small requests keep coming."""
    batcher = make_batcher()
    admit(batcher, make_entry("slow", framing_work=framing_work(4096, 4096)))
    done: list[object] = []
    for number in range(3):
        admit(batcher, make_entry(("quick", number)))
        batch = batcher.form(0.0)
        assert batch is not None
        done += finish(batcher, batch)
    assert "slow" in done
    assert ("quick", 0) in done


def test_the_times_of_an_entry_add_up_over_its_batches() -> None:
    """The timing in a reply covers all batches that the request was part of, and its wait ends with the first."""
    batcher = make_batcher()
    large = make_entry("large", 16, arrived=1.0)
    admit(batcher, large, now=1.0)
    for now in (2.0, 3.0):
        batch = batcher.form(now)
        assert batch is not None
        batcher.complete(batch, answers_to(batch), 0.25, 0.5)
    assert (large.first_batch, large.preprocess_s, large.inference_s) == (2.0, 0.5, 1.0)


def test_give_up_hands_back_what_waits_and_admits_nothing_more() -> None:
    """At the end of the grace all that waits is handed back to be failed, each once, and newcomers are sent elsewhere."""
    batcher = make_batcher()
    half, whole, gone = make_entry("half", 20), make_entry("whole", 2), make_entry("gone")
    admit(batcher, half, whole, gone)
    batcher.cancel(gone)
    batch = batcher.form(0.0)
    assert batch is not None
    given_up = batcher.give_up()
    assert given_up == [half]
    assert batcher.pending_images == 0
    assert batcher.give_up() == []
    assert finish(batcher, batch) == ["whole"]
    assert batcher.full()
    assert isinstance(batcher.refuse(), Draining)
    with pytest.raises(Draining, match="shutting down"):
        batcher.admit(make_entry("late"), 0.0)


def test_an_estimate_follows_what_is_measured() -> None:
    """A service that became three times slower is believed within some tens of batches."""
    estimate = Estimate(1.0)
    estimate.update(5.0, 0)
    assert estimate.seconds == 1.0
    for _ in range(60):
        estimate.update(6.0, 2)
    assert estimate.seconds == pytest.approx(3.0, rel=0.01)


@dataclass
class Caller:
    """What the model knows of an admitted entry, apart from the batcher."""

    entry: Entry
    outcomes: list[str] = field(default_factory=list)

    @property
    def num_waiting(self) -> int:
        """Images that still wait."""
        return 0 if self.outcomes else self.entry.num_images - self.entry.taken


class BatcherMachine(RuleBasedStateMachine):
    """Any order of calls keeps the promises: one outcome each, own answers, true counts, bounded batches."""

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
        self.callers: dict[int, Caller] = {}
        self.running: Batch | None = None
        self.given_up = False

    @rule(
        num_images=st.one_of(st.just(1), st.integers(1, 30)),
        work=st.sampled_from([0, 0, SMALL, framing_work(300, 300), framing_work(2048, 2048)]),
        image_bytes=st.integers(1, 900),
        patience_s=st.sampled_from([math.inf, math.inf, -1.0, 0.0, 0.003, 0.05, 2.0]),
    )
    def admit(self, num_images: int, work: int, image_bytes: int, patience_s: float) -> None:
        """Admit, or refuse for a reason that holds."""
        name = len(self.callers)
        num_bytes = num_images * image_bytes
        entry = make_entry(name, num_images, framing_work=work, num_bytes=num_bytes, deadline=self.now + patience_s)
        held_bytes = sum(caller.entry.num_bytes for caller in self.callers.values() if caller.num_waiting)
        too_many = self.batcher.pending_images + num_images > self.max_pending_images
        too_heavy = bool(held_bytes) and held_bytes + num_bytes > self.max_pending_bytes
        try:
            self.batcher.admit(entry, self.now)
        except Draining:
            assert self.given_up
        except Overloaded as error:
            assert too_many or too_heavy
            assert error.retry_after_s > 0
        except DeadlineUnmeetable:
            assert patience_s < math.inf
        else:
            assert not (self.given_up or too_many or too_heavy)
            assert patience_s > 0
            self.callers[name] = Caller(entry)

    @precondition(lambda self: self.callers)
    @rule(number=st.integers(0, 1 << 16))
    def cancel(self, number: int) -> None:
        """A caller leaves, perhaps again, perhaps after its answer."""
        caller = self.callers[number % len(self.callers)]
        self.batcher.cancel(caller.entry)
        if not caller.outcomes:
            caller.outcomes.append("cancelled")

    @rule(seconds=st.sampled_from([0.0005, 0.004, 0.06, 3.0]))
    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds

    @precondition(lambda self: self.running is None)
    @rule()
    def form(self) -> None:
        """Form a batch that keeps every bound."""
        batch = self.batcher.form(self.now)
        if batch is None:
            assert not any(caller.num_waiting for caller in self.callers.values())
            return
        for entry in batch.expired:
            assert entry.deadline <= self.now
            assert not self.callers[entry.work].outcomes
            self.callers[entry.work].outcomes.append("expired")
        assert batch.num_images == sum(stop - start for _, start, stop in batch.parts) <= self.max_batch_size
        assert batch.framing_work == sum((stop - start) * entry.framing_work for entry, start, stop in batch.parts)
        seconds = batch.num_images * self.batcher.image_s.seconds + batch.framing_work * self.batcher.work_s.seconds
        assert seconds <= self.max_batch_s * (1 + 1e-9) or batch.num_images == 1
        for entry, start, stop in batch.parts:
            assert 0 <= start < stop <= entry.num_images
            assert entry.deadline > self.now
            assert not self.callers[entry.work].outcomes
        if any(caller.num_waiting for caller in self.callers.values()):
            assert batch.parts, "something waits, and nothing is done for it"
        self.running = batch

    @precondition(lambda self: self.running is not None)
    @rule(slowness=st.sampled_from([0.3, 1.0, 1.0, 1.0, 1.0, 3.0]))
    def complete(self, slowness: float) -> None:
        """Hand the answers out, after a run of any duration."""
        batch, self.running = self.running, None
        assert batch is not None
        preprocess_s, inference_s = batch.framing_work * WORK_S * slowness, batch.num_images * IMAGE_S * slowness
        for entry in self.batcher.complete(batch, answers_to(batch), preprocess_s, inference_s):
            assert entry.answers == [(entry.work, index) for index in range(entry.num_images)]
            self.callers[entry.work].outcomes.append("answered")

    @precondition(lambda self: self.running is not None and len(self.callers) > 10)
    @rule()
    def complete_after_a_stop(self) -> None:
        """The process was stopped for a minute while the batch ran."""
        self.now += 60.0
        self.complete(1e5)

    @precondition(lambda self: self.running is not None)
    @rule()
    def fail(self) -> None:
        """The network fails: the batch's entries are told so, as ``rpc`` does."""
        batch, self.running = self.running, None
        assert batch is not None
        for entry in {id(entry): entry for entry, _, _ in batch.parts}.values():
            if not entry.dead:
                self.callers[entry.work].outcomes.append("failed")
            self.batcher.cancel(entry)

    @precondition(lambda self: len(self.callers) > 12)
    @rule()
    def give_up(self) -> None:
        """The grace is over."""
        self.given_up = True
        waiting = {name for name, caller in self.callers.items() if caller.num_waiting}
        given_up = self.batcher.give_up()
        assert {entry.work for entry in given_up} == waiting
        assert len(given_up) == len(waiting)
        for entry in given_up:
            self.callers[entry.work].outcomes.append("given up")

    @invariant()
    def pending_images_is_the_truth(self) -> None:
        """What is shown as waiting is what waits, and never more than allowed."""
        waiting = sum(caller.num_waiting for caller in self.callers.values())
        assert self.batcher.pending_images == waiting <= self.max_pending_images
        assert self.batcher.waits() or not waiting

    @invariant()
    def nobody_has_two_outcomes(self) -> None:
        """Answered, cancelled, expired, failed or given up: one of them, once."""
        assert all(len(caller.outcomes) <= 1 for caller in self.callers.values())

    def teardown(self) -> None:
        """Whatever happened, a few more batches answer all that is left."""
        if not hasattr(self, "batcher"):
            return
        if self.running is not None:
            self.complete(1.0)
        # Each batch takes an image at least, unless it only drops what is dead or expired.
        for _ in range(self.batcher.pending_images + len(self.callers) + 1):
            if not self.batcher.waits():
                break
            self.form()
            if self.running is not None:
                self.complete(1.0)
            self.nobody_has_two_outcomes()
        assert self.batcher.pending_images == 0
        assert all(len(caller.outcomes) == 1 for caller in self.callers.values())


BatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, report_multiple_bugs=False)


class TestAnyOrderOfCalls(BatcherMachine.TestCase):
    """Whatever callers, clock and network do, in whatever order, every admitted entry gets exactly one outcome."""
