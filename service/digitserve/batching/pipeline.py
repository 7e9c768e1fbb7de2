"""The heart of a worker: admits requests, runs their batches, and hands each answer to whoever asked.

    rpc, streams ──admit──▶ Classifier ──▶ Batcher ──form──▶ frame ──▶ Session ──▶ asker.reply

One function admits for every method, and one runs what was admitted. Belongs to the worker and is called on its one
thread only; knows no gRPC: what a call is, only its asker knows.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog

from digitserve.batching.batcher import Batch, Batcher, Entry
from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded, RequestError
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import ACCEPTED, BLANK, SEVERAL, UNFAMILIAR, Answer, Encoder, Request, rows
from digitserve.telemetry.block import Tally
from digitserve.types import IMAGE_SIZE
from digitserve.vision.framing import verdicts

_FOREVER = 1e18
"""Core says about 9.2e18, in seconds of Unix time, where a call has no deadline."""

_log = structlog.get_logger("digitserve.batching.pipeline")


class Asking(Protocol):
    """What waits for the answer to one request: a call, or a message on a stream.

    Attributes:
        accepted: monotonic time in seconds.
        deadline: Unix time in seconds, infinite when the caller set none.
        open: whether it still waits.
    """

    accepted: float
    deadline: float

    @property
    def open(self) -> bool:
        """Return whether it does."""


class Asker(Protocol):
    """Who took requests on, and gives their answers to their callers."""

    def count(self, entries: Sequence[Entry], now: float) -> None:
        """These are about to be answered: count them first, so that whoever has an answer finds it counted."""

    def reply(self, asking: Any, body: bytes) -> None:
        """Give the answer, a serialized ``ClassifyResponse``."""

    def refuse(self, asking: Any, error: RequestError) -> None:
        """Say why there is no answer."""

    def fail(self, asking: Any) -> None:
        """Say that there is no answer through a fault of ours."""


class Work(NamedTuple):
    """What an entry stands for: ``Entry.work``."""

    asker: Asker
    asking: Asking
    request: Request


class Classifier:
    """Everything between a request that was decoded and its answer."""

    def __init__(
        self,
        batcher: Batcher,
        session: Session,
        bundle: Bundle,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        manifest = bundle.manifest
        self._batcher = batcher
        self._session = session
        self._tally = tally
        self._clock = clock
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        self._ood_threshold = manifest.ood_threshold

    # What those who take requests on call.

    def admit(self, asker: Asker, asking: Asking, request: Request) -> Entry:
        """Let a request wait for its batch.

        Raises:
            Draining: nothing is admitted any more.
            Overloaded: there is no room for it now.
            DeadlineUnmeetable: its answer cannot be ready in time.
        """
        now = self._clock()
        entry = Entry(
            Work(asker, asking, request), request.num_images, request.framing_work, len(request.pixels),
            now, _monotonic(asking.deadline, now),
        )  # fmt: skip
        self._batcher.admit(entry, now)
        return entry

    def cancel(self, entry: Entry) -> None:
        """Forget a request: its caller is gone."""
        self._batcher.cancel(entry)

    @staticmethod
    def log_fault(num_requests: int) -> None:
        """Note the exception being handled: its detail is for the log alone."""
        _log.exception("request failed", num_requests=num_requests)

    def full(self) -> Overloaded | Draining | None:
        """Return why any request would be refused now, whatever it holds."""
        return self._batcher.refuse() if self._batcher.full() else None

    def crowded(self) -> bool:
        """Return whether half of what may wait does: time to take no more than must be taken."""
        return self._batcher.crowded()

    # What the worker's loop calls.

    def run_batch(self) -> bool:
        """Form the next batch, run it and answer what is complete; return whether there was one."""
        batch = self._batcher.form(self._clock())
        if batch is None:
            return False
        for entry in batch.expired:
            _refuse(entry, DeadlineUnmeetable("the deadline passed while the request waited"))
        if batch.parts:
            try:
                self._run(batch)
            except Exception:
                self._fail([entry for entry, _, _ in batch.parts if not entry.dead])
        self._tally.pending_images[0] = self._batcher.pending_images
        return True

    def give_up(self) -> None:
        """Refuse what waits: the grace is over."""
        for entry in self._batcher.give_up():
            _refuse(entry, self._batcher.refuse())

    def _run(self, batch: Batch) -> None:
        formed = self._clock()
        chunks, framed = _gather(batch)
        images = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
        blank, several = verdicts(images[..., 0])
        prepared = self._clock()
        outputs = self._session.run(images)
        done = self._clock()
        # Lists from here on: for the one image of an idle service each call into numpy costs more than the loop that it saves.
        class_index = outputs.probabilities.argmax(axis=1).tolist()
        confidence = outputs.probabilities.max(axis=1).tolist()
        ood_score = outputs.ood_score.tolist()
        verdict = self._judge(ood_score, blank.tolist(), several.tolist(), framed)
        answers = list(map(Answer, class_index, confidence, verdict, ood_score, outputs.probabilities))
        finished = self._batcher.complete(batch, answers, prepared - formed, done - prepared)
        tally = self._tally
        tally.images[0] += len(answers)
        tally.predictions(class_index, verdict)
        tally.confidence.observe_many([one for one, said in zip(confidence, verdict, strict=True) if said == ACCEPTED])
        tally.batch_size.observe(batch.num_images)
        tally.preprocess_s.observe(prepared - formed)
        tally.inference_s.observe(done - prepared)
        self._hand_out(finished, batch.num_images)

    def _judge(
        self, ood_score: list[float], blank: list[bool], several: list[bool], framed: list[tuple[int, list[int]]]
    ) -> list[int]:
        """Return the verdict on each row of a batch; what framing found holds, else what the pixels and the network say."""
        threshold = self._ood_threshold
        verdict = [UNFAMILIAR if score > threshold else ACCEPTED for score in ood_score]
        for found, said in ((several, SEVERAL), (blank, BLANK)):
            if True in found:
                verdict = [said if one else other for one, other in zip(found, verdict, strict=True)]
        for row, seen in framed:
            for place, said in enumerate(seen, start=row):
                if said != ACCEPTED:
                    verdict[place] = said
        return verdict

    def _hand_out(self, finished: list[Entry], batch_size: int) -> None:
        answered = [(entry, body) for entry in finished if (body := self._encode(entry, batch_size)) is not None]
        self._tally.queue_s.observe_many([entry.first_batch - entry.arrived for entry, _ in answered])
        by_asker: dict[Asker, list[Entry]] = {}
        for entry, _ in answered:
            by_asker.setdefault(entry.work.asker, []).append(entry)
        now = self._clock()
        for asker, entries in by_asker.items():
            asker.count(entries, now)
        for entry, body in answered:
            entry.work.asker.reply(entry.work.asking, body)

    def _encode(self, entry: Entry, batch_size: int) -> bytes | None:
        """Return a request's answer; None where that failed, which is its own fault and no neighbour's."""
        seconds = (entry.first_batch - entry.arrived, entry.preprocess_s, entry.inference_s)
        try:
            return self._encoder.encode(entry.answers, entry.work.request.top_k, seconds, batch_size)
        except Exception:
            self._fail([entry])
            return None

    def _fail(self, entries: list[Entry]) -> None:
        """Answer for a fault of ours: a fixed text for the callers, the traceback for the log."""
        self.log_fault(len(entries))
        for entry in entries:
            if entry.work.asking.open:
                entry.work.asker.fail(entry.work.asking)
            self._batcher.cancel(entry)


def _refuse(entry: Entry, error: RequestError) -> None:
    entry.work.asker.refuse(entry.work.asking, error)


def _gather(batch: Batch) -> tuple[list[bytes | memoryview], list[tuple[int, list[int]]]]:
    """Collect a batch's pixels, and the verdicts of framing with the row where they begin."""
    chunks: list[bytes | memoryview] = []
    framed: list[tuple[int, list[int]]] = []
    row = 0
    for entry, start, stop in batch.parts:
        request: Request = entry.work.request
        if request.plain and stop - start == request.num_images:
            chunks.append(request.pixels)
        else:
            pixels, seen = rows(request, start, stop)
            chunks.append(pixels)
            if seen:
                framed.append((row, seen))
        row += stop - start
    return chunks, framed


def _monotonic(deadline: float, now: float) -> float:
    """Turn a Unix time into monotonic time."""
    return math.inf if deadline > _FOREVER else now + (deadline - time.time())
