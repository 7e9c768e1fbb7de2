"""What a worker records: the only writer of its ``Block``.

    transport, pipeline, worker loop ──call_started, batch, ...──▶ Recorder ──add──▶ Block

Counts of a batch are added once per batch. Cells are written through memoryviews, which cost about half of numpy's item
access.
"""

from bisect import bisect_left
from collections.abc import Iterable, MutableSequence, Sequence

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.names import Code, MarkKind, Method, Verdict
from digitserve.telemetry.block import (
    LABELLED_VERDICTS,
    MARK_KINDS,
    METHODS,
    REASONS,
    Block,
    Cells,
    CloseReason,
    RefusalReason,
    ShadowResult,
)  # fmt: skip
from digitserve.telemetry.request_log import RequestLog

_ROWS = {method: row for row, method in enumerate(METHODS)}
_NUM_CODES = len(Code)
_OK = Code.OK
_ACCEPTED = Verdict.ACCEPTED
_COLUMNS = [LABELLED_VERDICTS.index(verdict) if verdict in LABELLED_VERDICTS else None for verdict in Verdict]
"""Place of each verdict among the series of a label; ``None`` for verdicts without a label."""

_ACCEPTED_COLUMN = LABELLED_VERDICTS.index(_ACCEPTED)

_MAX_SINGLE = 8
"""Most values that are added one by one: for more of them numpy is faster."""


def _view(cells: Cells) -> MutableSequence[float]:
    """Return a view of the same memory whose items are Python floats."""
    return memoryview(cells)  # type: ignore[arg-type, return-value] # numpy's stubs omit the buffer protocol


class Histogram:
    """One series of a histogram in a block."""

    def __init__(self, row: Cells, buckets: tuple[float, ...]) -> None:
        """Write to ``row``, float64[len(buckets) + 2]."""
        self._counts = row[:-1]
        self._cells = _view(row)
        self._bounds = buckets
        self._sorted = np.array(buckets)

    def observe(self, value: float) -> None:
        """Add one value."""
        self._cells[bisect_left(self._bounds, value)] += 1
        self._cells[-1] += value

    def observe_zero(self) -> None:
        """Add the value 0, which belongs to the first bucket."""
        self._cells[0] += 1

    def observe_many(self, values: Sequence[float] | NDArray[np.floating]) -> None:
        """Add several values."""
        if len(values) <= _MAX_SINGLE:
            for value in values:
                self.observe(value)
            return
        array = np.asarray(values, np.float64)
        self._counts += np.bincount(self._sorted.searchsorted(array), minlength=len(self._counts))
        self._cells[-1] += float(array.sum())


class Recorder:
    """Writes the metrics of one worker; lives as long as the worker. Called on the worker's one thread.

    Attributes:
        requests: writes log lines of single requests.
    """

    def __init__(self, block: Block, labels: Sequence[str], requests: RequestLog | None = None) -> None:
        """Record in ``block``, which was made for the same labels; without ``requests``, no request is logged."""
        cells = block.cells
        buckets = {spec.name: spec.buckets for spec in block.specs}

        def histogram(name: str, row: int = 0) -> Histogram:
            return Histogram(cells[name][row], buckets[name])

        self._started = _view(cells["grpc_server_started"][:, 0])
        self._handled = _view(cells["grpc_server_handled"][:, 0])
        self._stream_messages = _view(cells["digitserve_stream_messages"][:, 0])
        self._handling_s = [histogram("grpc_server_handling_seconds", row) for row in range(len(METHODS))]
        self._batch_size = histogram("digitserve_batch_size")
        self._queue_s = histogram("digitserve_queue_seconds")
        self._inference_s = histogram("digitserve_inference_seconds")
        self._preprocess_s = histogram("digitserve_preprocess_seconds")
        self._confidence = histogram("digitserve_confidence")
        self._images = _view(cells["digitserve_images"][:, 0])
        self._pending_images = _view(cells["digitserve_pending_images"][:, 0])
        self._cpu_s = _view(cells["digitserve_cpu_seconds"][:, 0])
        self._heartbeat = _view(cells["heartbeat"][:, 0])
        self._rejected = dict(zip(REASONS, map(_view, cells["digitserve_rejected"]), strict=True))
        self._connections = _view(cells["digitserve_connections"][:, 0])
        self._accepted = _view(cells["digitserve_connections_accepted"][:, 0])
        self._closed = dict(zip(CloseReason, map(_view, cells["digitserve_connections_closed"]), strict=True))
        self._refused = dict(zip(RefusalReason, map(_view, cells["digitserve_streams_refused"]), strict=True))
        self._predictions = _view(cells["digitserve_predictions"][:, 0])
        # The series of a label are neighbours, one for each verdict; the series of blank images is the last.
        predictions = cells["digitserve_predictions"][: len(labels) * len(LABELLED_VERDICTS), 0]
        self._accepted_predictions = predictions[_ACCEPTED_COLUMN :: len(LABELLED_VERDICTS)]
        self._lines_omitted = _view(cells["digitserve_request_lines_omitted"][:, 0])
        self.requests = requests or RequestLog()
        self.requests.count_omitted = self._count_omitted_line
        self._shadow = dict(zip(ShadowResult, map(_view, cells["digitserve_shadow_images"]), strict=True))
        self._shadow_skipped = _view(cells["digitserve_shadow_skipped_images"][:, 0])
        self._shadow_difference = histogram("digitserve_shadow_probability_difference")
        self._num_labels = len(labels)
        self._readings = _view(cells["digitserve_readings"][:, 0])
        self._pending_readings = _view(cells["digitserve_pending_readings"][:, 0])
        self._reading_images = _view(cells["digitserve_reading_images"][:, 0])
        self._reading_step_s = histogram("digitserve_reading_step_seconds")
        self._read_lines = _view(cells["digitserve_read_lines"][:, 0])
        self._read_marks = dict(zip(MARK_KINDS, map(_view, cells["digitserve_read_marks"]), strict=True))

    def call_started(self, method: Method) -> None:
        """Count an RPC that a client has started."""
        self._started[_ROWS[method]] += 1

    def call_ended(self, method: Method, code: Code, seconds: float) -> None:
        """Count an RPC that has ended.

        Args:
            method: of the RPC.
            code: its status.
            seconds: from its start.
        """
        row = _ROWS[method]
        self._handled[row * _NUM_CODES + code] += 1
        self._handling_s[row].observe(seconds)

    def call_refused(self, method: Method, code: Code, reason: str) -> None:
        """Count an RPC that is rejected when it starts.

        Args:
            method: of the RPC.
            code: its status.
            reason: that of its ``RequestError``.
        """
        row = _ROWS[method]
        self._started[row] += 1
        self._handled[row * _NUM_CODES + code] += 1
        self._handling_s[row].observe_zero()
        self._rejected[reason][0] += 1

    def calls_answered(self, method: Method, seconds: Sequence[float]) -> None:
        """Count several RPCs of a method that end with OK.

        Args:
            method: of the RPCs.
            seconds: of each, from its start.
        """
        row = _ROWS[method]
        self._handled[row * _NUM_CODES + _OK] += len(seconds)
        self._handling_s[row].observe_many(seconds)

    def stream_messages_ended(self, num_messages: int, code: Code) -> None:
        """Count messages of streams that were answered with a code, or whose stream ended with it before their answers."""
        self._stream_messages[code] += num_messages

    def requests_queued(self, seconds: Sequence[float]) -> None:
        """Record how long requests waited, each from its admission to its first batch."""
        self._queue_s.observe_many(seconds)

    def rejected(self, reason: str) -> None:
        """Count a classification request that is rejected or expired; ``reason`` is that of its ``RequestError``."""
        self._rejected[reason][0] += 1

    def connection_accepted(self) -> None:
        """Count a new connection."""
        self._accepted[0] += 1
        self._connections[0] += 1

    def connection_closed(self, reason: CloseReason) -> None:
        """Count the end of a connection."""
        self._closed[reason][0] += 1
        self._connections[0] -= 1

    def stream_refused(self, reason: RefusalReason) -> None:
        """Count a request that the transport refused or ended."""
        self._refused[reason][0] += 1

    def batch(
        self, class_index: Sequence[int] | NDArray[np.int64], verdicts: Sequence[Verdict],
        confidence: Sequence[float] | NDArray[np.floating], preprocess_s: float, inference_s: float,
        *, num_candidates: int = 0,
    ) -> None:  # fmt: skip
        """Record a batch that has run.

        Args:
            class_index: index of the most probable label, for each image.
            verdicts: for each image.
            confidence: probability of that label, for each image.
            preprocess_s: seconds of preparing the batch.
            inference_s: seconds of the network.
            num_candidates: further images of the batch, which were classified for readings.
        """
        num_images = len(class_index)
        self._images[0] += num_images
        self._batch_size.observe(num_images + num_candidates)
        if num_candidates:
            self._reading_images[0] += num_candidates
        self._preprocess_s.observe(preprocess_s)
        self._inference_s.observe(inference_s)
        if num_images > _MAX_SINGLE and verdicts.count(_ACCEPTED) == num_images:
            self._confidence.observe_many(confidence)
            self._accepted_predictions += np.bincount(class_index, minlength=self._num_labels)
            return
        if isinstance(class_index, np.ndarray):
            class_index = class_index.tolist()
        if isinstance(confidence, np.ndarray):
            # numpy would compare its float32 numbers with limits that it rounds to float32.
            confidence = confidence.tolist()
        self._confidence.observe_many(
            [value for value, verdict in zip(confidence, verdicts, strict=True) if verdict is _ACCEPTED]
        )
        counts, num_columns = self._predictions, len(LABELLED_VERDICTS)
        blank = num_columns * self._num_labels
        for index, verdict in zip(class_index, verdicts, strict=True):
            column = _COLUMNS[verdict]
            counts[blank if column is None else num_columns * index + column] += 1

    def shadow_compared(self, results: Sequence[ShadowResult], differences: NDArray[np.floating]) -> None:
        """Count images that the shadow version has classified.

        Args:
            results: for each image.
            differences: largest difference of a probability, for each image that is not blank.
        """
        for result in results:
            self._shadow[result][0] += 1
        self._shadow_difference.observe_many(differences)

    def shadow_skipped(self, num_images: int) -> None:
        """Count images that the shadow version has not classified."""
        self._shadow_skipped[0] += num_images

    def reading_step(self, seconds: float) -> None:
        """Record a step of a reading."""
        self._reading_step_s.observe(seconds)

    def reading(self, num_lines: int, kinds: Iterable[MarkKind]) -> None:
        """Count a reading that is answered with so many lines, which have marks of these kinds."""
        self._readings[0] += 1
        self._read_lines[0] += num_lines
        for kind in kinds:
            self._read_marks[kind][0] += 1

    def pending_readings(self, num_readings: int) -> None:
        """Set the number of readings that are admitted and not answered yet."""
        self._pending_readings[0] = num_readings

    def pending(self, num_images: int) -> None:
        """Set the number of images that wait for a batch."""
        self._pending_images[0] = num_images

    def heartbeat(self, now: float, cpu_s: float) -> None:
        """Record an iteration of the worker's loop.

        Args:
            now: monotonic time in seconds.
            cpu_s: CPU seconds that this process has used.
        """
        self._heartbeat[0] = now
        self._cpu_s[0] = cpu_s
        if now >= self.requests.report_at:
            self.requests.report()

    def _count_omitted_line(self) -> None:
        self._lines_omitted[0] += 1
