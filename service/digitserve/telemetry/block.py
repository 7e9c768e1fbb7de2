"""Metric declarations, and the shared memory that holds their values.

A worker adds the counts of whole batches to float64 cells in memory that it shares with the supervisor. It does not use
prometheus_client, whose updates cost microseconds each. The supervisor creates the memory and outlives its workers:
``collector`` sums the blocks of the running workers and the counts of those that have ended.

    worker: Recorder ──add──▶ Block (shared memory) ◀──sum── ServiceCollector :supervisor ──▶ /metrics

Each cell is one aligned float64: a reader never gets half a write, and counts are exact up to 2**53.
"""

import functools
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import DeadlineUnmeetable, Draining, InvalidRequest, NotServed, Overloaded, TooLarge, Unsupported
from digitserve.protocol.names import (
    CLASSIFY,
    CLASSIFY_STREAM,
    GET_MODEL,
    HEALTH_CHECK,
    HEALTH_LIST,
    HEALTH_WATCH,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    READ,
    READ_STREAM,
    REFLECTION,
    REFLECTION_V1,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    Code,
    MarkKind,
    Method,
    Verdict,
)  # fmt: skip

Cells = NDArray[np.float64]

LATENCY_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_BUCKETS = tuple(float(1 << power) for power in range(13))
DIFFERENCE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)

OTHER_METHOD = Method("unary", "other", "other")
"""All unknown methods. Clients choose their names, so one series for each of them could fill the memory."""

METHODS = (
    CLASSIFY, GET_MODEL, CLASSIFY_STREAM, READ, READ_STREAM, MODEL_INFER, MODEL_METADATA, MODEL_READY, SERVER_LIVE,
    SERVER_METADATA, SERVER_READY, HEALTH_CHECK, HEALTH_WATCH, HEALTH_LIST, REFLECTION, REFLECTION_V1, OTHER_METHOD,
)  # fmt: skip
METHOD_OF_PATH = {method.path: method for method in METHODS if method is not OTHER_METHOD}

REASONS = tuple(
    error.reason
    for error in (InvalidRequest, NotServed, TooLarge, Unsupported, Overloaded, DeadlineUnmeetable, Draining)
)


class CloseReason(StrEnum):
    """Why a connection was closed: the label ``reason`` of ``digitserve_connections_closed_total``."""

    CLIENT = "client"
    """The client closed it, or the network lost it."""
    AGE = "age"
    """Older than ``max_connection_age_s``."""
    IDLE = "idle"
    """Without a call for ``max_connection_idle_s``."""
    DRAIN = "drain"
    """The worker shuts down or is replaced."""
    TOO_MANY = "too_many"
    """There were more than ``max_connections``, and the client of this one had been silent longest."""
    MEMORY = "memory"
    """All connections together held more than ``max_held_bytes``, and this one held most."""
    TIMEOUT = "timeout"
    """A step of the client took longer than ``handshake_timeout_s`` or ``message_timeout_s``."""
    FLOOD = "flood"
    """Too many resets or control frames, or a header block that is too long."""
    PROTOCOL_ERROR = "protocol_error"
    """The client violated HTTP/2."""
    TLS = "tls"
    """The TLS handshake failed, or a TLS record is invalid."""
    INTERNAL = "internal"
    """A fault of the service."""


class RefusalReason(StrEnum):
    """Why the transport refused or ended a request: the label ``reason`` of ``digitserve_streams_refused_total``.

    Requests refused for ``TOO_MANY`` to ``BAD_TIMEOUT`` are not RPCs: ``grpc_server_started_total`` does not count them. A
    request ended as ``MALFORMED`` may be one.
    """

    TOO_MANY = "too_many"
    """More open streams than ``max_concurrent_streams``."""
    MALFORMED = "malformed"
    """A violation of HTTP/2 by one stream. If it was an RPC already, it is also counted as cancelled."""
    NOT_GRPC = "not_grpc"
    """Not POST, or not ``application/grpc``."""
    HEADERS_TOO_LARGE = "headers_too_large"
    """Header fields over ``max_header_bytes``."""
    BAD_TIMEOUT = "bad_timeout"
    """A ``grpc-timeout`` that cannot be read."""
    RECEIVE_MEMORY = "receive_memory"
    """Its unfinished message exceeded the memory of ``max_receive_bytes``, or its decompression the time budget."""
    MESSAGE_TIMEOUT = "message_timeout"
    """The message did not arrive within ``message_timeout_s``."""
    ANSWER_TIMEOUT = "answer_timeout"
    """The client did not take an answer within ``message_timeout_s``."""


class ShadowResult(StrEnum):
    """How the shadow version would have answered: the label ``result`` of ``digitserve_shadow_images_total``."""

    SAME = "same"
    """The same label, or also not accepted."""
    LABEL = "label"
    """Another label; both versions accept the image."""
    REJECTED = "rejected"
    """Not accepted, while the version that answered accepted the image."""
    ACCEPTED = "accepted"
    """Accepted, while the version that answered did not accept the image."""


LABELLED_VERDICTS = (Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.SEVERAL)
"""Verdicts whose predictions have a label; blank images have none."""


MARK_KINDS: tuple[MarkKind, ...] = tuple(kind for kind in MarkKind if kind is not MarkKind.UNSPECIFIED)


@dataclass(frozen=True)
class Spec:
    """One metric of a block.

    Attributes:
        name: as Prometheus shows it, without the suffix of counters.
        text: the help text.
        kind: ``counter``, ``gauge``, ``histogram``, or ``internal`` when Prometheus does not see it.
        label_names: names of the labels.
        label_values: one tuple for each series.
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
        """Cells per series: one, or the buckets of a histogram, its bucket for infinity and its sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


@functools.lru_cache(16)
def specs(labels: tuple[str, ...]) -> tuple[Spec, ...]:
    """Return the metrics of a worker that serves a model with these labels."""
    method = ("grpc_type", "grpc_service", "grpc_method")
    latency = LATENCY_BUCKETS_S
    predictions = (*product(labels, (verdict.name.lower() for verdict in LABELLED_VERDICTS)), ("", "blank"))
    return (
        Spec("grpc_server_started", "RPCs started on the server.", "counter", method, METHODS),
        Spec(
            "grpc_server_handled", "RPCs completed on the server, by status code.", "counter",
            (*method, "grpc_code"), tuple((*m, code.label) for m, code in product(METHODS, Code)),
        ),
        Spec(
            "grpc_server_handling_seconds", "From the start of an RPC to its status.", "histogram",
            method, METHODS, latency,
        ),
        Spec(
            "digitserve_stream_messages", "Messages of ClassifyStream and ReadStream answered, by the status code of the answer.", "counter",
            ("grpc_code",), tuple((code.label,) for code in Code),
        ),
        Spec("digitserve_images", "Images classified.", "counter"),
        Spec("digitserve_batch_size", "Images in a batch.", "histogram", buckets=BATCH_BUCKETS),
        Spec("digitserve_queue_seconds", "From admission of a request to its first batch.", "histogram", buckets=latency),
        Spec("digitserve_inference_seconds", "One run of the network on a batch.", "histogram", buckets=latency),
        Spec("digitserve_preprocess_seconds", "Framing and checking the images of a batch.", "histogram", buckets=latency),
        Spec("digitserve_pending_images", "Images admitted and not yet in a batch.", "gauge"),
        Spec("digitserve_readings", "Requests to read an image that were answered.", "counter"),
        Spec("digitserve_pending_readings", "Requests to read an image that are admitted and not yet answered.", "gauge"),
        Spec("digitserve_reading_images", "Images that the network classified for readings.", "counter"),
        Spec("digitserve_reading_step_seconds", "One step of a reading, without the network.", "histogram", buckets=latency),
        Spec("digitserve_read_lines", "Lines returned.", "counter"),
        Spec(
            "digitserve_read_marks", "Digits, separators, unread marks and empty cells returned.", "counter",
            ("kind",), tuple((kind.name.lower(),) for kind in MARK_KINDS),
        ),
        Spec(
            "digitserve_rejected", "Requests to classify or to read rejected before admission, or not answered in time.", "counter",
            ("reason",), tuple((reason,) for reason in REASONS),
        ),
        Spec("digitserve_connections", "Open connections.", "gauge"),
        Spec("digitserve_connections_accepted", "Connections accepted.", "counter"),
        Spec(
            "digitserve_connections_closed", "Connections closed.", "counter",
            ("reason",), tuple((reason,) for reason in CloseReason),
        ),
        Spec(
            "digitserve_streams_refused", "Requests that the transport refused or ended.", "counter",
            ("reason",), tuple((reason,) for reason in RefusalReason),
        ),
        Spec(
            "digitserve_request_lines_omitted", "Log lines of failed or slow requests over --log-requests-per-s.", "counter",
        ),
        Spec("digitserve_predictions", "Predictions returned.", "counter", ("label", "verdict"), predictions),
        Spec("digitserve_confidence", "Confidence of accepted predictions.", "histogram", buckets=CONFIDENCE_BUCKETS),
        Spec(
            "digitserve_shadow_images", "Images that the shadow version has classified too, by how its answer differs.", "counter",
            ("result",), tuple((result,) for result in ShadowResult),
        ),
        Spec("digitserve_shadow_skipped_images", "Images that the shadow version has not classified.", "counter"),
        Spec(
            "digitserve_shadow_probability_difference",
            "Largest difference between the probabilities of a label that the two versions give an image.", "histogram",
            buckets=DIFFERENCE_BUCKETS,
        ),
        Spec("digitserve_cpu_seconds", "CPU seconds used by workers.", "counter"),
        Spec("heartbeat", "Monotonic time of the loop's last iteration; read by the supervisor only.", "internal"),
    )  # fmt: skip


class Block:
    """The cells of one worker. The supervisor creates the memory, and the worker maps the same memory.

    Attributes:
        labels: of the model.
        fd: file descriptor of the memory, inherited by the worker.
        specs: the metrics, in the order of the memory.
        cells: float64[series, width] for the name of each metric.
    """

    def __init__(self, labels: Sequence[str], fd: int | None = None) -> None:
        """Create new memory, or map the memory of ``fd``."""
        self.labels = tuple(labels)
        self.specs = specs(self.labels)
        size = 8 * sum(len(spec.label_values) * spec.width for spec in self.specs)
        self.fd = os.memfd_create("digitserve-metrics") if fd is None else fd
        # Its own descriptor is closed with the object at the latest.
        self._close = weakref.finalize(self, os.close, self.fd)
        if fd is None:
            os.ftruncate(self.fd, size)
        else:
            self._close.detach()
        self._memory = mmap.mmap(self.fd, size)
        self.cells: dict[str, Cells] = {}
        offset = 0
        for spec in self.specs:
            shape = (len(spec.label_values), spec.width)
            self.cells[spec.name] = np.frombuffer(self._memory, np.float64, shape[0] * shape[1], offset).reshape(shape)
            offset += 8 * shape[0] * shape[1]

    @property
    def heartbeat(self) -> float:
        """Monotonic time in seconds of the last iteration of the worker's loop; 0 before the first."""
        return float(self.cells["heartbeat"][0, 0])

    def close(self) -> None:
        """Close the file descriptor, unless it was given; the mapping is freed with the object."""
        self._close()
