"""Goodput under overload, simulated: real admission and shares of streams, modelled clients, sockets and costs, a fake clock."""

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from digitserve.batching.batcher import Batcher
from digitserve.batching.entries import Entry
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.native.loop import MAX_OVERLOAD_READ_S, MAX_READ_S
from digitserve.transport.native.shares import ADJUST_S, LOW_READ_SHARE, ROTATE_S, StreamShare
from digitserve.types import Source
from digitserve.worker import MAX_RUN_S
from support.http2_peer import ACK, LIMITS, SETTINGS, Peer, call, raw

BATCH = 8
READ_S, BATCH_IMAGE_S = 0.0001, 0.0003
"""Costs of an answered call: reading it, and its part of a batch. A full batch takes 2.4 ms, about as in the real service."""
SERVED_S = READ_S + BATCH_IMAGE_S
CHECK_S = 0.1
"""Interval at which connections announce how many streams they allow."""


@dataclass(eq=False)
class Client:
    """A connection, its client's queue, and the bytes between them.

    Attributes:
        waiting: times at which calls started that have no stream yet.
        wire: start and end of calls that are sent and not yet read, and the time to the end that they state.
        num_open: streams.
        limit: of streams, as announced.
    """

    source: Source = field(default_factory=Source)
    waiting: deque[float] = field(default_factory=deque)
    wire: deque[tuple[float, float, float]] = field(default_factory=deque)
    num_open: int = 0
    limit: int = 100
    arrived: float = 0.0
    num_rejected: int = 0
    num_ok: int = 0
    sent_ends: deque[float] = field(default_factory=deque)


class SimulatedEntry(Entry):
    """A call in the queue."""

    def __init__(self, client: Client, arrived: float, deadline: float, ends: float) -> None:
        super().__init__(1, 0, 784, arrived, deadline, client.source)
        self.client = client
        self.ends = ends


class Worker:
    """The loop of a worker: reads for a limited time, then runs batches; with a single CPU and a fake clock."""

    def __init__(self, rates: list[float], deadline_s: float, burst: int, rejected_s: float) -> None:
        self.now = self._polled = 0.0
        self.batcher: Batcher[SimulatedEntry] = Batcher(
            max_batch_size=BATCH, max_pending_images=512, max_pending_bytes=1 << 30, max_batch_s=0.05,
            image_s=SERVED_S, work_s=1e-9,
        )  # fmt: skip
        self.share = StreamShare(512)
        self.clients = [Client() for _ in rates]
        self._rates, self._deadline_s, self._burst, self._rejected_s = rates, deadline_s, burst, rejected_s
        # Spread, so that not all clients start at the same time.
        self._due = [burst / rate * index / len(rates) for index, rate in enumerate(rates)]
        self._check_at = 0.0
        self._completed = 0.0
        self.share.update(len(rates))
        self.num_late = 0

    def run(self, seconds: float) -> None:
        """Run for so long."""
        ends = self.now + seconds
        while self.now < ends:
            self._iterate()

    def slow_down(self, rate: float) -> None:
        """Change the rate of all clients."""
        self._rates = [rate] * len(self.clients)

    def _spend(self, seconds: float) -> None:
        """Let time pass, in which clients start, send and end calls."""
        self.now += seconds
        for index, client in enumerate(self.clients):
            gap = self._burst / self._rates[index]
            while self._due[index] <= self.now:
                client.waiting.extend([self._due[index]] * self._burst)
                self._due[index] += gap
            while client.waiting and client.waiting[0] + self._deadline_s <= self.now:
                client.waiting.popleft()
            while client.sent_ends and client.sent_ends[0] <= self.now:
                client.sent_ends.popleft()
                client.num_open -= 1
            while client.waiting and client.num_open < client.limit:
                start = client.waiting.popleft()
                client.wire.append((start, start + self._deadline_s, start + self._deadline_s - self.now))
                client.num_open += 1
                client.sent_ends.append(start + self._deadline_s)

    def _iterate(self) -> None:
        started = self.now
        arrived, self._polled = self._polled, started
        unread = deque(client for client in self.clients if client.wire)
        for client in unread:
            client.arrived = client.arrived or arrived
        num_clients, again = len(unread), []
        while unread and self.now - started <= MAX_READ_S:
            client = unread.popleft()
            if self._read(client) and client.wire:
                again.append(client)
        unread += again
        more_s = MAX_OVERLOAD_READ_S * len(again) / max(1, num_clients)
        ends = min(started + MAX_OVERLOAD_READ_S, self.now + more_s)
        while unread and self.now < ends:
            client = unread.popleft()
            if self._read(client) and client.wire:
                unread.append(client)
        self.share.adjust(self.now, self.now - started, was_cut=bool(unread))
        run_started = self.now
        self._run_batch()
        while self.batcher.has_backlog() and self.now - run_started < MAX_RUN_S:
            self._run_batch()
        if self.now >= self._check_at:
            self._check_at = self.now + CHECK_S
            for client in self.clients:
                self.share.report(client, client.num_rejected)
                client.num_rejected = 0
                client.limit = 0 if self.share.is_paused(client) else self.share.num_streams
        if self.now == started:
            self._spend(0.0005)

    def _read(self, client: Client) -> int:
        """Read up to 10 calls, as many as 8 KiB have; return how many were rejected."""
        num_rejected, spent = 0, 0.0
        for _ in range(min(10, len(client.wire))):
            _, ends, left = client.wire.popleft()
            deadline = client.arrived + left
            if self.batcher.refusal(deadline - self.now, client.source) is None:
                self.batcher.admit(SimulatedEntry(client, self.now, deadline, ends), self.now)
                spent += READ_S
                continue
            spent += self._rejected_s
            num_rejected += 1
            self._end(client, ends)
        if not client.wire:
            client.arrived = 0.0
        client.num_rejected += num_rejected
        self._spend(spent)
        return num_rejected

    def _end(self, client: Client, ends: float) -> bool:
        """End a call, unless its client has cancelled it; return whether it has not."""
        if ends <= self.now or ends not in client.sent_ends:
            return False
        client.sent_ends.remove(ends)
        client.num_open -= 1
        return True

    def _run_batch(self) -> None:
        batch = self.batcher.form(self.now)
        if batch is None:
            return
        for entry in batch.expired:
            self._end(entry.client, entry.ends)
        if not batch.num_images:
            return
        first_arrived = batch.parts[0][0].arrived
        self._spend(0.0002 + BATCH_IMAGE_S * batch.num_images)
        iteration_s = self.now - max(self._completed, first_arrived)
        self._completed = self.now
        inference_s = BATCH_IMAGE_S * batch.num_images
        for entry in self.batcher.complete(batch, [0] * batch.num_images, 0.0, inference_s, iteration_s):
            in_time = self._end(entry.client, entry.ends)
            entry.client.num_ok += in_time
            self.num_late += not in_time


def goodputs(worker: Worker, warm_up_s: float, seconds: float) -> list[float]:
    """Return the answers in time of each client, per second."""
    worker.run(warm_up_s)
    before = [client.num_ok for client in worker.clients]
    worker.run(seconds)
    return [(client.num_ok - ok) / seconds for client, ok in zip(worker.clients, before, strict=True)]


CAPACITY = BATCH / (BATCH * SERVED_S + 0.0002)


@settings(max_examples=15)
@given(
    multiple=st.floats(1.0, 12.0),
    deadline_s=st.sampled_from([0.05, 0.25, math.inf]),
    ratio=st.floats(0.05, 0.25),
    burst=st.integers(1, 8),
    num_clients=st.integers(12, 24),
)
@example(multiple=1.2, deadline_s=0.05, ratio=0.15, burst=1, num_clients=16)
@example(multiple=10.0, deadline_s=0.05, ratio=0.25, burst=1, num_clients=16)
@example(multiple=10.0, deadline_s=0.25, ratio=0.15, burst=4, num_clients=16)
def test_goodput_never_collapses(
    multiple: float, deadline_s: float, ratio: float, burst: int, num_clients: int
) -> None:
    """At any load, the answers in time are near what is left after rejecting the rest, and at least a fifth of the capacity."""
    rate = multiple * CAPACITY / num_clients
    worker = Worker([rate] * num_clients, deadline_s, burst, ratio * SERVED_S)
    goodput = sum(goodputs(worker, 2.0, 1.0)) / CAPACITY
    bound = (1 - multiple * ratio) / (1 - ratio)
    assert goodput >= max(0.2, 0.8 * bound)


@pytest.mark.parametrize("deadline_s", [0.05, math.inf])
@pytest.mark.parametrize("num_others", [1, 7])
@pytest.mark.parametrize("asked", [0.5, 0.9])
def test_a_flood_takes_nothing_from_other_connections(deadline_s: float, num_others: int, asked: float) -> None:
    """While one connection sends ten times the capacity, the calls of each other one are answered, up to half of an equal part."""
    part = CAPACITY / (1 + num_others)
    worker = Worker([10 * CAPACITY] + [asked * part] * num_others, deadline_s, 1, 0.15 * SERVED_S)
    others = goodputs(worker, 2.0, 1.0)[1:]
    assert min(others) >= 0.97 * 0.5 * part


@pytest.mark.parametrize("multiple", [3.0, 10.0])
def test_recovery_is_immediate(multiple: float) -> None:
    """A second after an overload ends, all calls are answered in time again, whether connections were paused or not."""
    worker = Worker([multiple * CAPACITY / 16] * 16, 0.05, 1, 0.2 * SERVED_S)
    worker.run(2.0)
    worker.slow_down(0.8 * CAPACITY / 16)
    worker.run(1.0)
    before = worker.num_late
    assert sum(goodputs(worker, 0.0, 1.0)) >= 0.79 * CAPACITY
    assert worker.num_late == before


def overloaded(share: StreamShare, now: float, seconds: float, *rejected: object) -> float:
    """Let the worker have no time to read all for so long, while calls of these connections are rejected; return the time."""
    ends = now + seconds
    while now < ends:
        now += 0.01
        for connection in rejected:
            share.report(connection, 5)
        share.adjust(now, 0.008, was_cut=True)
    return now


def test_only_connections_with_rejected_calls_are_paused_and_they_take_turns() -> None:
    """Connections whose calls are rejected are paused in turns, if they send more than the worker can read; never all."""
    share = StreamShare(1000)
    floods = [f"flood {number}" for number in range(8)]
    now = overloaded(share, 0.0, 2.0, *floods)
    assert 1 <= sum(not share.is_paused(flood) for flood in floods) <= 2
    assert not share.is_paused("other")
    open_again = set()
    for _ in range(40):
        now = overloaded(share, now, ROTATE_S, *floods)
        open_again |= {flood for flood in floods if not share.is_paused(flood)}
    assert open_again == set(floods)


@pytest.mark.parametrize("seconds", [1.5, 60.0])
def test_all_connections_continue_soon_after_an_overload(seconds: float) -> None:
    """Once reading takes little time, the number of connections that are not paused doubles several times per second, no matter
    how long the overload was.
    """
    share = StreamShare(1000)
    floods = [f"flood {number}" for number in range(64)]
    now = overloaded(share, 0.0, seconds, *floods)
    assert any(share.is_paused(flood) for flood in floods)
    ends = now + 1.0
    while now < ends:
        now += 0.01
        share.adjust(now, 0.9 * LOW_READ_SHARE * 0.01, was_cut=False)
    assert not any(share.is_paused(flood) for flood in floods)


def test_a_connection_is_not_paused_for_calls_that_were_rejected_long_ago() -> None:
    """A connection whose calls were rejected before the overload, and none since, is not paused."""
    share = StreamShare(1000)
    share.report("formerly rejected", 5)
    share.adjust(1.0, 0.0, was_cut=False)
    share.report("formerly rejected", 0)
    now = 1.0
    for _ in range(10):
        now = overloaded(share, now, ROTATE_S, "flood", "another")
        assert not share.is_paused("formerly rejected")


def test_nobody_is_paused_while_everything_is_read() -> None:
    """Rejected calls alone pause no connection; neither does a flood without rejected calls, such as of large messages."""
    share = StreamShare(1000)
    share.report("rejected", 100)
    for step in range(100):
        share.adjust(step * 0.01, 0.004, was_cut=False)
        assert not share.is_paused("rejected")
    share = StreamShare(1000)
    overloaded(share, 0.0, 2.0)
    assert not share.is_paused("large")


def test_a_paused_connection_may_open_no_streams_until_its_turn() -> None:
    """A pause is a limit of 0 streams (RFC 9113, section 5.1.2); the end of the pause restores the limit."""
    peer = Peer()
    peer.unary.refused = Status(Code.RESOURCE_EXHAUSTED, "full")
    share = peer.budget.streams
    normal = min(LIMITS.max_streams, share.num_streams)
    peer.send(call(1))
    assert peer.check() == []
    now = overloaded(share, 0.0, 1.0, "another")
    assert [frame.settings for frame in peer.check()] == [{3: 0 if share.is_paused(peer.connection) else normal}]
    assert share.is_paused(peer.connection)
    peer.send(raw(SETTINGS, ACK))
    for _ in range(100):
        now += ADJUST_S
        share.adjust(now, 0.0, was_cut=False)
    assert [frame.settings for frame in peer.check()] == [{3: normal}]


def test_a_closed_connection_is_forgotten() -> None:
    """Connections that are gone take no turn, and are not kept in memory."""
    peer = Peer()
    peer.unary.refused = Status(Code.RESOURCE_EXHAUSTED, "full")
    peer.send(call(1))
    peer.check()
    overloaded(peer.budget.streams, 0.0, 1.0, "another")
    peer.connection.drop()
    assert set(peer.budget.streams._rejected) | peer.budget.streams._open == {"another"}
