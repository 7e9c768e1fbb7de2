"""The request pipeline of a worker: admit, run, answer.

    handlers ──admit──▶ Pipeline ──▶ Batcher ──form──▶ prepare ──▶ Session ──▶ responder.reply

One function admits for every method, and one function runs what was admitted. Owned by the worker and called on its one
thread only. Knows no gRPC: answers go to the caller through the ``Responder`` that the handler passes to ``admit``. Rows of a batch may also
be the candidates of a reading, see ``readings``.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from digitserve.batching.batcher import Batcher
from digitserve.batching.candidates import Candidates
from digitserve.batching.entries import Batch
from digitserve.batching.explain import explain
from digitserve.batching.pending import PendingRequest, Responder, framing_work_of
from digitserve.batching.prepare import Prepared, decide_verdicts, prepare
from digitserve.batching.shadow import Shadow
from digitserve.errors import DeadlineUnmeetable
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.log import get_logger
from digitserve.protocol.codec import Request
from digitserve.protocol.encoder import Encoder
from digitserve.protocol.names import Code, Method
from digitserve.protocol.records import Outcome
from digitserve.telemetry.recorder import Recorder
from digitserve.types import Source

_log = get_logger("digitserve.batching.pipeline")


class Pipeline:
    """Everything between a decoded request and its answer.

    Attributes:
        answered: whether the last iteration has answered requests.
        refusal: the bound method ``Batcher.refusal``: the handler calls it for each call, without another function between.
    """

    def __init__(
        self,
        batcher: Batcher[PendingRequest],
        session: Session,
        bundle: Bundle,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        shadow: Shadow | None = None,
    ) -> None:
        """Answer with ``session``, which runs the graph of ``bundle``; offer answered batches to ``shadow``."""
        manifest = bundle.manifest
        self._batcher = batcher
        self.answered = False
        self.refusal = batcher.refusal
        self._session = session
        self._recorder = recorder
        self._clock = clock
        self._slow_s = recorder.requests.slow_s
        self._shadow = shadow
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        self._ood_threshold = manifest.ood_threshold
        self._completed = 0.0  # monotonic time in seconds at which the last batch was complete

    # Called by the handlers of transport.

    def admit(self, responder: Responder, request: Request, *, patient: bool = False) -> PendingRequest:
        """Queue a request for a batch; see ``Batcher.admit``.

        Raises:
            Draining: the worker is shutting down.
            Overloaded: the queue has no room for it now.
            DeadlineUnmeetable: it cannot be answered by its deadline.
        """
        now = self._clock()
        pending = PendingRequest(responder, request, now)
        self._batcher.admit(pending, now, patient=patient)
        return pending

    def hold(self, request: Request) -> None:
        """Count the memory of a request that was not admitted and that the caller holds.

        Raises:
            Overloaded: it exceeds the limit on the memory of requests.
        """
        if not self._batcher.hold(len(request.pixels)):
            raise self._batcher.held_error()

    def release(self, request: Request) -> None:
        """Subtract what ``hold`` has counted."""
        self._batcher.release(len(request.pixels))

    def is_large(self, request: Request) -> bool:
        """Return whether a request would wait in the queue of large requests."""
        return self._batcher.is_large(request.num_images, framing_work_of(request))

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose caller no longer waits."""
        self._batcher.cancel(pending)

    def is_half_full(self, source: Source) -> bool:
        """Return whether a source uses half of the room of the queue; see ``Batcher.is_half_full``."""
        return self._batcher.is_half_full(source)

    @staticmethod
    def log_failure(num_requests: int) -> None:
        """Log the exception being handled; callers get a fixed text only."""
        _log.exception("request failed", num_requests=num_requests)

    # Called by the worker's loop.

    def run_batch(self) -> bool:
        """Form the next batch, run it and send the answers that are complete; return whether there was a batch."""
        batch = self._batcher.form(self._clock())
        self.answered = False
        if batch is None:
            return False
        for pending in batch.expired:
            pending.responder.reject(DeadlineUnmeetable("the deadline passed while the request waited"))
        if batch.parts:
            try:
                self._run(batch)
            except Exception:
                self._fail([pending for pending, _, _ in batch.parts if not pending.cancelled])
        self._recorder.pending(self._batcher.pending_images)
        return True

    def begin_iteration(self) -> None:
        """Count the next iteration from now: the time before is that of readings, which the estimates of batches leave out."""
        self._completed = self._clock()

    def close(self) -> int:
        """Stop admission and reject the pending requests; return their number."""
        rejected = self._batcher.close()
        for pending in rejected:
            pending.responder.reject(self._batcher.draining_error())
        return len(rejected)

    def _run(self, batch: Batch[PendingRequest]) -> None:
        formed = self._clock()
        prepared = prepare([(pending.request, start, stop) for pending, start, stop in batch.parts])
        ready = self._clock()
        outputs = self._session.run(prepared.images)
        done = self._clock()
        probabilities = outputs.probabilities
        class_indices = probabilities.argmax(axis=1)
        confidences = probabilities[np.arange(batch.num_images), class_indices]
        # Lists too: for the single image of an idle service a numpy call costs more than the loop that it replaces.
        class_index, confidence, ood_score = class_indices.tolist(), confidences.tolist(), outputs.ood_score.tolist()
        verdicts = decide_verdicts(ood_score, self._ood_threshold, prepared)
        plain = [pending.plain for pending, _, _ in batch.parts]
        answers: list[Any] = (
            self._encoder.plain_records(class_index, confidence, verdicts, ood_score)
            if any(plain)
            else [b""] * len(verdicts)
        )
        candidate_rows: list[int] = []
        if not all(plain):
            outcome = Outcome(class_indices, confidences, verdicts, outputs.ood_score, probabilities)
            candidate_rows = self._replace(answers, outcome, batch, prepared)
        # If requests were pending at the end of the last batch, the iteration started then.
        iteration_s = done - max(self._completed, batch.parts[0][0].arrived)
        self._completed = done
        finished = self._batcher.complete(batch, answers, ready - formed, done - ready, iteration_s)
        if candidate_rows:
            # What callers have asked to classify is measured without them: alerts on drift compare it with the past.
            finished = _deliver(finished)
            kept = np.ones(batch.num_images, np.bool_)
            kept[candidate_rows] = False
            class_indices, confidences, probabilities = class_indices[kept], confidences[kept], probabilities[kept]
            prepared = Prepared(
                prepared.images[kept], prepared.blank[kept], prepared.several[kept], prepared.spans_image[kept]
            )
            class_index = class_indices.tolist()
            verdicts = [verdict for verdict, is_kept in zip(verdicts, kept.tolist(), strict=True) if is_kept]
        self._recorder.batch(
            class_indices, verdicts, confidences, ready - formed, done - ready, num_candidates=len(candidate_rows)
        )
        if finished:
            self.answered = True
            self._send(finished, batch.num_images)
        if self._shadow is not None and class_index:
            self._shadow.offer(prepared, class_index, verdicts, probabilities)

    def _replace(
        self, records: list[Any], outcome: Outcome, batch: Batch[PendingRequest], prepared: Prepared
    ) -> list[int]:
        """Replace the records of requests that are not plain by records with alternatives, or by answers for ``_encode``.

        Candidates take their columns of the outcome instead.

        Args:
            records: plain, one for each row of the batch.
            outcome: of the batch.
            batch: as formed.
            prepared: the batch.

        Returns:
            The rows of candidates.
        """
        candidate_rows: list[int] = []
        groups: dict[int, list[int]] = {}
        row, num_labels = 0, outcome.probabilities.shape[1]
        for pending, start, stop in batch.parts:
            request, end = pending.request, row + stop - start
            if isinstance(pending, Candidates):
                pending.add(outcome.probabilities[row:end], outcome.ood_score[row:end])
                candidate_rows.extend(range(row, end))
            elif request.explain or request.form is not None:
                records[row:end] = outcome.answers(row, end)
                if request.explain:
                    pending.preparations += tuple(explain(request, start, stop, prepared, row))
            elif request.top_k:
                groups.setdefault(min(request.top_k, num_labels), []).extend(range(row, end))
            row = end
        for top_k, rows in groups.items():
            if len(rows) == len(records):
                records[:] = self._encoder.records(outcome, top_k)
            else:
                for row, record in zip(rows, self._encoder.records(outcome.rows(rows), top_k), strict=True):
                    records[row] = record
        return candidate_rows

    def _send(self, finished: list[PendingRequest], batch_size: int) -> None:
        """Send answers, after recording their calls: a caller that has its answer finds it in the metrics."""
        answered = self._encode_all(finished, batch_size)
        now = self._clock()
        seconds: dict[Method, list[float]] = {}
        last: Method | None = None
        for responder, _ in answered:
            if (method := responder.completes) is not None:
                # Most calls are of the same method, whose hash takes time.
                if method is not last:
                    durations, last = seconds.setdefault(method, []), method
                durations.append(now - responder.accepted)
        slow = False
        for method, durations in seconds.items():
            self._recorder.calls_answered(method, durations)
            slow = slow or max(durations) >= self._slow_s
        if slow:
            self._log_slow(finished, answered, now)
        if num_messages := len(answered) - sum(map(len, seconds.values())):
            self._recorder.stream_messages_ended(num_messages, Code.OK)
        for responder, body in answered:
            responder.reply(body)

    def _encode_all(self, finished: list[PendingRequest], batch_size: int) -> list[tuple[Responder, bytes]]:
        """Encode the answers to requests, and record how long these waited."""
        answered: list[tuple[Responder, bytes]] = []
        queued_s: list[float] = []
        encode_records = self._encoder.encode_records
        for pending in finished:
            queue_s = pending.first_batch - pending.arrived
            seconds = queue_s, pending.preprocess_s, pending.inference_s
            try:
                if pending.plain:
                    body = encode_records(pending.answers, seconds, batch_size)
                else:
                    body = self._encode(pending, seconds, batch_size)
            except Exception:
                self._fail([pending])  # affects no other request
                continue
            answered.append((pending.responder, body))
            queued_s.append(queue_s)
        self._recorder.requests_queued(queued_s)
        return answered

    def _log_slow(self, finished: list[PendingRequest], answered: list[tuple[Responder, bytes]], now: float) -> None:
        """Log the slow calls among those that are about to be answered."""
        sizes = {id(responder): len(body) for responder, body in answered}
        requests = self._recorder.requests
        for pending in finished:
            responder = pending.responder
            method, response_bytes = responder.completes, sizes.get(id(responder))
            slow = now - responder.accepted >= self._slow_s
            if slow and method is not None and response_bytes is not None and requests.admits_slow(now):
                requests.write(
                    "slow call", method, responder.caller, Code.OK, "slow", now, "", **pending.log_fields(now),
                    response_bytes=response_bytes,
                )  # fmt: skip

    def _encode(self, pending: PendingRequest, seconds: tuple[float, float, float], batch_size: int) -> bytes:
        """Return the answer to a request that is not plain."""
        request = pending.request
        if request.form is not None:
            return request.form.encode(pending.answers)
        if request.explain:
            answers, preparations = pending.answers, pending.preparations
            return self._encoder.encode(answers, request.top_k, seconds, batch_size, preparations)
        return self._encoder.encode_records(pending.answers, seconds, batch_size)

    def _fail(self, requests: list[PendingRequest]) -> None:
        """Answer with an internal error: a fixed text for the callers, the traceback for the log."""
        self.log_failure(len(requests))
        for pending in requests:
            if pending.responder.open:
                pending.responder.fail()
            self._batcher.cancel(pending)


def _deliver(finished: list[PendingRequest]) -> list[PendingRequest]:
    """Give candidates their scores; return the requests."""
    requests = []
    for pending in finished:
        if isinstance(pending, Candidates):
            pending.deliver()
        else:
            requests.append(pending)
    return requests
