"""What is counted, and the memory it is counted in.

A worker adds whole batches into plain float64 arrays in memory that it shares with the supervisor; nothing is counted
request by request through prometheus_client, whose updates cost microseconds each. The supervisor made that memory and
outlives its workers: ``collector`` there sums the blocks of the living and what the dead have left.

    worker: Tally ──add──▶ Block (shared memory) ◀──sum── ServiceCollector :supervisor ──▶ /metrics

Every cell is one float64: aligned, so a reader never sees half a write, and exact for counts up to 2**53.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.float64]

LATENCY_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_BUCKETS = tuple(float(1 << power) for power in range(13))
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)

SERVICE = "digitserve.v1.DigitService"
OTHER_METHOD = ("unary", "other", "other")
METHODS: tuple[tuple[str, str, str], ...] = (
    ("unary", SERVICE, "Classify"),
    ("unary", SERVICE, "GetModel"),
    ("bidi_stream", SERVICE, "ClassifyStream"),
    ("unary", "grpc.health.v1.Health", "Check"),
    ("server_stream", "grpc.health.v1.Health", "Watch"),
    ("unary", "grpc.health.v1.Health", "List"),
    ("bidi_stream", "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"),
    # Callers choose the names of unknown methods: one row for them all, or they could fill the memory.
    OTHER_METHOD,
)
METHOD_ROWS = {f"/{service}/{method}": row for row, (_, service, method) in enumerate(METHODS)}
CLASSIFY_ROW = METHOD_ROWS[f"/{SERVICE}/Classify"]
STREAM_ROW = METHOD_ROWS[f"/{SERVICE}/ClassifyStream"]
OTHER_ROW = METHODS.index(OTHER_METHOD)

CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
"""Label values of ``grpc_code``; the position of each is gRPC's number of the code."""
UNAVAILABLE = CODES.index("Unavailable")

REASONS = ("invalid", "not_served", "too_large", "queue_full", "deadline", "draining")
VERDICTS = ("accepted", "unfamiliar", "blank", "several")
SHOWN_VERDICTS = ("accepted", "unfamiliar", "several")
"""Of each label; blank images have none."""
_PLACES = tuple(SHOWN_VERDICTS.index(verdict) if verdict in SHOWN_VERDICTS else None for verdict in VERDICTS)

FEW = 8
"""Values that are added one by one: for more of them numpy is quicker."""


@dataclass(frozen=True)
class Spec:
    """One metric of a block.

    Attributes:
        name: as Prometheus shows it, without the suffix of counters.
        text: the help text.
        kind: ``counter``, ``gauge`` or ``histogram``.
        label_names: names of the labels.
        label_values: one tuple a series.
        buckets: upper bounds of a histogram, without infinity.
    """

    name: str
    text: str
    kind: str
    label_names: tuple[str, ...] = ()
    label_values: tuple[tuple[str, ...], ...] = ((),)
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Cells a series: one, or a histogram's buckets with infinity and its sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


def specs(labels: Sequence[str]) -> tuple[Spec, ...]:
    """List what a worker counts when it serves a model with these labels."""
    method = ("grpc_type", "grpc_service", "grpc_method")
    latency = LATENCY_BUCKETS_S
    shown = (*product(labels, SHOWN_VERDICTS), ("", "blank"))
    return (
        Spec("grpc_server_started", "RPCs that a server took on.", "counter", method, METHODS),
        Spec(
            "grpc_server_handled", "RPCs that came to an end, by status code.", "counter",
            (*method, "grpc_code"), tuple((*m, code) for m, code in product(METHODS, CODES)),
        ),
        Spec("grpc_server_handling_seconds", "From taking an RPC on to its status.", "histogram", method, METHODS, latency),
        Spec("digitserve_images", "Images classified.", "counter"),
        Spec("digitserve_batch_size", "Images in a batch.", "histogram", buckets=BATCH_BUCKETS),
        Spec("digitserve_queue_seconds", "From admission of a request to its first batch.", "histogram", buckets=latency),
        Spec("digitserve_inference_seconds", "One run of the network on a batch.", "histogram", buckets=latency),
        Spec("digitserve_preprocess_seconds", "Framing and checking the images of a batch.", "histogram", buckets=latency),
        Spec("digitserve_pending_images", "Images admitted and not yet in a batch.", "gauge"),
        Spec(
            "digitserve_rejected", "Requests refused before they were admitted, or not answered in time.", "counter",
            ("reason",), tuple((reason,) for reason in REASONS),
        ),
        Spec("digitserve_predictions", "Predictions given.", "counter", ("label", "verdict"), shown),
        Spec("digitserve_confidence", "Confidence of accepted predictions.", "histogram", buckets=CONFIDENCE_BUCKETS),
        Spec("digitserve_cpu_seconds", "CPU seconds that workers used.", "counter"),
        Spec("heartbeat", "Monotonic time of the loop's last turn; read by the supervisor only.", "internal"),
    )  # fmt: skip


class Block:
    """The cells of one worker; the supervisor makes it, the worker maps the same memory.

    Attributes:
        fd: file descriptor of the memory, to be inherited by the worker.
        cells: for each metric's name, float64[series, width].
    """

    def __init__(self, labels: Sequence[str], fd: int | None = None) -> None:
        """Make new memory, or map what ``fd`` stands for."""
        self.specs = specs(labels)
        size = 8 * sum(len(spec.label_values) * spec.width for spec in self.specs)
        self.fd = os.memfd_create("digitserve-metrics") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self.cells: dict[str, Cells] = {}
        offset = 0
        for spec in self.specs:
            shape = (len(spec.label_values), spec.width)
            self.cells[spec.name] = np.frombuffer(self._memory, np.float64, shape[0] * shape[1], offset).reshape(shape)
            offset += 8 * shape[0] * shape[1]

    @property
    def heartbeat(self) -> float:
        """Monotonic time, in seconds, when the worker's loop last turned; 0 before it first did."""
        return float(self.cells["heartbeat"][0, 0])

    def close(self) -> None:
        """Give the file descriptor back; the mapping goes with the object."""
        os.close(self.fd)


def _view(cells: Cells) -> MutableSequence[float]:
    """Return the same memory as plain floats: reading or writing one costs a fraction of what it costs through numpy."""
    return memoryview(cells)  # type: ignore[arg-type, return-value] # numpy's stubs do not tell that arrays are buffers


class Histogram:
    """A series of a histogram in a block, filled a batch at a time."""

    def __init__(self, row: Cells, buckets: tuple[float, ...]) -> None:
        self._counts = row[:-1]
        self._cells = _view(row)
        self._bounds = buckets
        self._sorted = np.array(buckets)

    def observe(self, value: float) -> None:
        """Add one value."""
        self._cells[bisect_left(self._bounds, value)] += 1
        self._cells[-1] += value

    def observe_many(self, values: Sequence[float] | NDArray[np.floating]) -> None:
        """Add the values of a batch."""
        if len(values) <= FEW:
            for value in values:
                self.observe(value)
            return
        array = np.asarray(values, np.float64)
        self._counts += np.bincount(self._sorted.searchsorted(array), minlength=len(self._counts))
        self._cells[-1] += float(array.sum())


class Tally:
    """A block as its worker writes it.

    ``started`` and ``handled`` are float64 arrays by row of ``METHODS`` (and code); each row has one writing thread.
    """

    def __init__(self, block: Block, labels: Sequence[str]) -> None:
        cells = block.cells
        by_name = {spec.name: spec for spec in block.specs}

        def histogram(name: str, row: int = 0) -> Histogram:
            return Histogram(cells[name][row], by_name[name].buckets)

        self.started = cells["grpc_server_started"][:, 0]
        self.handled = cells["grpc_server_handled"].reshape(len(METHODS), len(CODES))
        self.handling_s = [histogram("grpc_server_handling_seconds", row) for row in range(len(METHODS))]
        self.batch_size = histogram("digitserve_batch_size")
        self.queue_s = histogram("digitserve_queue_seconds")
        self.inference_s = histogram("digitserve_inference_seconds")
        self.preprocess_s = histogram("digitserve_preprocess_seconds")
        self.confidence = histogram("digitserve_confidence")
        self.images = cells["digitserve_images"][:, 0]
        self.pending_images = cells["digitserve_pending_images"][:, 0]
        self.cpu_s = cells["digitserve_cpu_seconds"][:, 0]
        self.heartbeat = cells["heartbeat"][:, 0]
        self._rejected = dict(zip(REASONS, cells["digitserve_rejected"], strict=True))
        self._predictions = _view(cells["digitserve_predictions"][:, 0])
        self._num_labels = len(labels)

    def reject(self, reason: str) -> None:
        """Count a request that is refused."""
        self._rejected[reason][0] += 1

    def end(self, row: int, code: int, seconds: float) -> None:
        """Count an RPC that is over.

        Args:
            row: of ``METHODS``.
            code: gRPC's number.
            seconds: that it took.
        """
        self.handled[row, code] += 1
        self.handling_s[row].observe(seconds)

    def predictions(self, class_index: Sequence[int], verdict: Sequence[int]) -> None:
        """Count a batch's predictions.

        Args:
            class_index: of each image, column of the most probable label.
            verdict: of each image, position in ``VERDICTS``.
        """
        counts, of_blank = self._predictions, len(SHOWN_VERDICTS) * self._num_labels
        for index, said in zip(class_index, verdict, strict=True):
            # Series stand label by label, each with its verdicts; the last series is the blank one.
            place = _PLACES[said]
            counts[of_blank if place is None else len(SHOWN_VERDICTS) * index + place] += 1
