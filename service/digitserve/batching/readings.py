"""Requests to read an image: admits them, and runs their steps between the batches.

    handlers ──admit──▶ ReadingQueue ──▶ ready ──step──┬──▶ answer ──▶ responder.reply
                                           ▲           ├──▶ ready again: others may run
                                           │           └──▶ Candidates ──▶ Batcher, Pipeline
                                           └──────────────── Scores ◀──────────────┘

A reading takes much longer than a batch, so it is a generator that the worker's loop advances: small requests wait for one step
at most. Candidates are rows of ordinary batches, in the queue of large requests, which small requests overtake. Owned by the
worker and called on its one thread only. Knows no gRPC, and nothing of how images are read.
"""

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from digitserve.batching.batcher import OWN_SHARE, Batcher
from digitserve.batching.candidates import Candidates
from digitserve.batching.estimate import Estimate
from digitserve.batching.pending import PendingRequest, Responder
from digitserve.batching.pending_reading import FIXED_PIXELS, CandidateResponder, PendingReading
from digitserve.batching.reading_queue import ReadingQueue
from digitserve.batching.refusals import Refusals, fresh
from digitserve.batching.stepwise import Scores, StepReader, Steps
from digitserve.errors import DeadlineUnmeetable, RequestError, Unsupported
from digitserve.log import get_logger
from digitserve.protocol.names import Code
from digitserve.protocol.read_codec import ReadRequest
from digitserve.protocol.read_encoder import ReadEncoder
from digitserve.protocol.readings import Reading
from digitserve.telemetry.recorder import Recorder
from digitserve.types import Gray, Source

STEPS_S = 0.002
"""Time after which no further step starts before the next batch. Several steps in a row put the candidates of several readings into
one batch; a step takes up to about 10 ms."""

BUSY_SHARE = 2
"""While requests are classified, steps use at most 1/2 of the time."""

PIXEL_S = 1e-7
"""First estimate of seconds per pixel of a reading. Readings correct it."""

DEADLINE_MARGIN = 1.5
"""Estimated times are multiplied by this factor before they are compared with a deadline: images of one size differ."""

_log = get_logger("digitserve.batching.readings")


class Readings:
    """Admitted readings until their answers; implements ``Admission``."""

    def __init__(
        self,
        batcher: Batcher[PendingRequest],
        reader: StepReader | None,
        encoder: ReadEncoder,
        recorder: Recorder,
        *,
        max_readings: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            batcher: takes the candidates, and counts the memory of the requests with that of others.
            reader: for the model that is served; None if its labels are not the ten digits.
            encoder: of the answers.
            recorder: counts them.
            max_readings: most readings that are not answered yet.
            max_bytes: most memory of their requests; less than that of all requests, so that others have room.
            clock: monotonic time in seconds.
        """
        self._batcher = batcher
        self._reader = reader
        self._encoder = encoder
        self._recorder = recorder
        self._max_readings = max_readings
        self._max_bytes = max_bytes
        self._clock = clock
        self._slow_s = recorder.requests.slow_s
        self._all: dict[PendingReading, None] = {}
        self._queue = ReadingQueue()
        self._ready: deque[PendingReading] = deque()
        self._num_bytes = 0
        self._work = 0
        self._work_s = Estimate(PIXEL_S)
        self._next_busy = -math.inf  # monotonic time in seconds
        self._refusals = Refusals(max_readings, max_bytes, "readings", "send a smaller image")
        self._unsupported = Unsupported(
            "the labels of the model that is served are not the ten digits; expected a model of digits: use Classify"
        )

    # Called by the handlers of transport; see Admission.

    def refusal(self, left_s: float, source: Source) -> RequestError | None:
        """Return why a call is rejected before its message is read; the error must not be raised. See ``Batcher.refusal``."""
        if self._batcher.draining:
            return self._refusals.draining
        if self._reader is None:
            return self._unsupported
        if len(self._all) + source.num_readings // OWN_SHARE >= self._max_readings:
            return self._refusals.too_many_images(self._wait_s())
        needed_s = self._needed_s(FIXED_PIXELS)
        return self._late(needed_s) if left_s < needed_s else None

    def admit(self, responder: Responder, request: ReadRequest, *, patient: bool = False) -> PendingReading:
        """Queue a request.

        Args:
            responder: takes the answer.
            request: to read.
            patient: the caller holds the request, and later ones in order, until it is admitted.

        Raises:
            Draining: the worker is shutting down.
            Unsupported: the model that is served cannot read.
            Overloaded: there is no room for it now.
            InvalidRequest: the reader cannot use its options.
            DeadlineUnmeetable: it cannot be answered by its deadline.
        """
        if self._batcher.draining:
            raise self._batcher.draining_error()
        if self._reader is None:
            raise Unsupported(str(self._unsupported))
        reading = PendingReading(responder, request, self._clock())
        source = reading.source
        if len(self._all) + (0 if patient else source.num_readings // OWN_SHARE) >= self._max_readings:
            raise fresh(self._refusals.too_many_images(self._wait_s()))
        # One reading is always admitted; otherwise that of a large image could never be.
        if self._num_bytes and self._num_bytes + reading.num_bytes > self._max_bytes:
            raise fresh(self._refusals.too_many_bytes(self._wait_s()))
        self._reader.check(request.options)
        if reading.deadline != math.inf:
            needed_s = self._needed_s(reading.work)
            if reading.arrived + needed_s > reading.deadline:
                raise DeadlineUnmeetable(str(self._late(needed_s)))
        if not self._batcher.hold(reading.num_bytes):
            raise self._batcher.held_error()
        self._add(reading)
        return reading

    def hold(self, request: ReadRequest) -> None:
        """Count the memory of a request that was not admitted and that the caller holds.

        Raises:
            Overloaded: it exceeds the limit on the memory of requests.
        """
        if not self._batcher.hold(len(request.pixels)):
            raise self._batcher.held_error()

    def release(self, request: ReadRequest) -> None:
        """Subtract what ``hold`` has counted."""
        self._batcher.release(len(request.pixels))

    def is_large(self, request: ReadRequest) -> bool:  # noqa: ARG002 - the interface of admissions
        """Return false: held requests are admitted in one order, whatever their size."""
        return False

    def is_half_full(self, source: Source) -> bool:
        """Return whether a source uses half of the room, or all sources use half of the limit in bytes."""
        used = len(self._all) + source.num_readings
        return used >= self._max_readings or 2 * self._num_bytes >= self._max_bytes

    def cancel(self, reading: PendingReading) -> None:
        """Drop a reading whose caller no longer waits; does nothing if it is over."""
        if not reading.over:
            self._end(reading)

    @staticmethod
    def log_failure(num_requests: int) -> None:
        """Log the exception being handled; callers get a fixed text only."""
        _log.exception("reading failed", num_requests=num_requests)

    # Called by the worker's loop.

    def can_advance(self) -> bool:
        """Return whether a step can run now: false while all readings wait for the network."""
        return bool(self._ready)

    def advance(self, *, busy: bool) -> None:
        """Run the next steps, the readings in turn, for ``STEPS_S`` and the rest of the last step.

        Args:
            busy: whether requests are classified; then the steps may stay for later.
        """
        started = now = self._clock()
        if busy and now < self._next_busy:
            return
        while self._ready and now < started + STEPS_S:
            self._step(self._ready.popleft())
            now = self._clock()
        self._next_busy = now + (now - started) * (BUSY_SHARE - 1)

    def close(self) -> int:
        """Reject all readings because the worker ends; return their number."""
        rejected = [*self._all]
        for reading in rejected:
            self.reject(reading, self._batcher.draining_error())
        return len(rejected)

    # The steps.

    def _step(self, reading: PendingReading) -> None:
        started = self._clock()
        if reading.deadline <= started:
            self.reject(reading, DeadlineUnmeetable("the deadline passed while the image was read"))
            return
        scores, reading.scores = reading.scores, None
        try:
            if reading.steps is None:
                reading.steps = self._start(reading)
            images = _advance(reading.steps, scores)
        except StopIteration as stop:
            self._count_step(reading, started)
            self._answer(reading, stop.value)
        except RequestError as error:
            self.reject(reading, error)
        except Exception:
            self._fail(reading)
        else:
            self._count_step(reading, started)
            if images is None:
                self._ready.append(reading)
            else:
                self._ask(reading, images)

    def _start(self, reading: PendingReading) -> Steps:
        request = reading.request
        pixels = np.frombuffer(request.pixels, np.uint8).reshape(request.height, request.width, request.channels)
        assert self._reader is not None  # otherwise nothing is admitted
        return self._reader.read(pixels, request.options)

    def _count_step(self, reading: PendingReading, started: float) -> None:
        seconds = self._clock() - started
        reading.step_s += seconds
        self._recorder.reading_step(seconds)

    def _ask(self, reading: PendingReading, images: Gray) -> None:
        """Queue candidates for the network."""
        responder = CandidateResponder(self, reading)
        reading.candidates = Candidates(responder, images, self._clock(), reading.deadline, responder.take)
        self._batcher.add(reading.candidates)

    def _answer(self, reading: PendingReading, read: Reading) -> None:
        """Answer, after recording the call: a caller that has its answer finds it in the metrics."""
        seconds = reading.queue_s(reading.arrived), reading.step_s, reading.inference_s
        try:
            body = self._encoder.encode(read, seconds, reading.num_candidates)
        except Exception:
            self._fail(reading)
            return
        compute_s = reading.step_s + reading.num_candidates * self._batcher.image_s.seconds
        self._work_s.update(compute_s, reading.work)
        self._end(reading)
        self._recorder.reading(len(read.lines), [mark.kind for line in read.lines for mark in line.marks])
        self._record_answered(reading, len(body))
        reading.responder.reply(body)

    def _record_answered(self, reading: PendingReading, response_bytes: int) -> None:
        responder, now = reading.responder, self._clock()
        method = responder.completes
        if method is None:
            self._recorder.stream_messages_ended(1, Code.OK)
            return
        seconds = now - responder.accepted
        self._recorder.calls_answered(method, [seconds])
        requests = self._recorder.requests
        if seconds >= self._slow_s and requests.admits_slow(now):
            requests.write(
                "slow call", method, responder.caller, Code.OK, "slow", now, "", **reading.log_fields(now),
                response_bytes=response_bytes,
            )  # fmt: skip

    def _fail(self, reading: PendingReading) -> None:
        """Answer with an internal error, while its exception is handled: the traceback is for the log."""
        self.log_failure(1)
        self.fail(reading)

    # Also called by the responders of candidates.

    def reject(self, reading: PendingReading, error: RequestError) -> None:
        """Answer with an error."""
        self._end(reading)
        reading.responder.reject(error)

    def fail(self, reading: PendingReading) -> None:
        """Answer with an internal error; the pipeline has logged it."""
        self._end(reading)
        reading.responder.fail()

    def resume(self, reading: PendingReading, scores: Scores) -> None:
        """Continue a reading whose candidates are classified."""
        candidates, reading.candidates = reading.candidates, None
        if candidates is not None:
            reading.num_candidates += candidates.num_images
            reading.inference_s += candidates.inference_s
        reading.scores = scores
        self._ready.append(reading)

    # Counts.

    def _add(self, reading: PendingReading) -> None:
        self._all[reading] = None
        reading.source.num_readings += 1
        self._num_bytes += reading.num_bytes
        self._work += reading.work
        self._queue.add(reading)
        self._start_waiting()

    def _end(self, reading: PendingReading) -> None:
        """Free what a reading holds."""
        del self._all[reading]
        reading.over = True
        reading.source.num_readings -= 1
        self._num_bytes -= reading.num_bytes
        self._work -= reading.work
        self._batcher.release(reading.num_bytes)
        if reading in self._ready:
            self._ready.remove(reading)
        self._queue.end(reading)
        steps, candidates = reading.steps, reading.candidates
        reading.steps = reading.candidates = reading.scores = None
        if candidates is not None:
            self._batcher.cancel(candidates)
        if steps is not None:
            steps.close()
        self._start_waiting()

    def _start_waiting(self) -> None:
        for reading in self._queue.take():
            reading.started = self._clock()
            self._ready.append(reading)
        self._recorder.pending_readings(len(self._all))

    # Estimates.

    def _wait_s(self) -> float:
        return self._work * self._work_s.seconds

    def _needed_s(self, work: int) -> float:
        """Return the estimated seconds until a reading with so much work would be answered, if it were admitted now.

        Readings take turns, so each of the others delays it by at most its own time.
        """
        others = min(self._work, len(self._all) * work)
        return DEADLINE_MARGIN * (others + work) * self._work_s.seconds

    def _late(self, needed_s: float) -> DeadlineUnmeetable:
        """Return the error for a request whose answer needs ``needed_s``."""
        if not self._all:
            self._work_s.decay()
        return self._refusals.late(needed_s)


def _advance(steps: Steps, scores: Scores | None) -> Gray | None:
    """Run a step; return what it yields."""
    images = steps.send(scores)
    if images is not None and not len(images):
        raise ValueError("got no candidates; expected at least one, or None")
    return images
