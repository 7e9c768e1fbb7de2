"""The images of one ``classify_stream`` or ``read_stream`` that are in flight. No I/O; the streams of both clients share it.

    images ──to_item──▶ StreamWindow.add ──next_after──▶ RPC of StreamKind ──to_outcome──▶ results, in order
                                 ▲                              │
                                 └── sent again on a new stream ┘ when a worker is replaced

A window is changed by one thread or task at a time, under its stream's condition.
"""

import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc

from digitserve.client.channel import Cause, overdue, to_client_error, to_rejection
from digitserve.client.errors import ClientError, InvalidRequest, Unreachable
from digitserve.client.pool import Deadline
from digitserve.client.requests import Sent
from digitserve.vision.reduction import Reduction

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

STREAM_IN_FLIGHT = 256
"""Images in flight on a stream: four batches of the default size, as many as a worker accepts from one stream at a time."""

READ_STREAM_IN_FLIGHT = 32
"""The same for images to read: few, because each takes many times as long."""

MAX_STREAM_BYTES = 64 << 20
"""Pixels in flight on a stream. They are kept until the answer arrives, because they may have to be sent again."""

RESUMABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""Codes with which a stream ends when its worker is replaced. CANCELLED: see ``channel.RETRY_POLICY``."""

LOST_WHILE_OPENED = "Internal error from Core"
"""Details, with INTERNAL, of a stream whose connection is lost while grpc.aio opens it; services send other details."""


class StreamKind(Protocol[Result_co]):
    """What a stream does with its images: ``requests.Classifier`` or ``read_requests.Reader``."""

    @property
    def stream(self) -> str:
        """Name of the RPC."""

    def prepare(self, image: object, index: int) -> Sent:
        """Check an image; raise InvalidRequest if it is not one."""

    def to_message(self, sent: Sent) -> Any:
        """Return the message of an image."""

    def to_result(self, response: Any, reduction: Reduction | None) -> Result_co:
        """Return the result of a response to an image that was reduced in this way."""


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One image of the input.

    Attributes:
        index: position in the input, from 0.
        message: to send; None if the image is invalid.
        error: why the image is invalid; None if it is valid.
        num_bytes: size of the pixels.
        reduction: from the image to what is sent; None if it is sent as it is.
    """

    index: int
    message: Any
    error: InvalidRequest | None = None
    num_bytes: int = 0
    reduction: Reduction | None = None


def to_item(index: int, image: object, kind: StreamKind[Any]) -> StreamItem:
    """Check one image of the input, and copy it into a message."""
    try:
        sent = kind.prepare(image, index)
    except InvalidRequest as error:
        error.index = index
        return StreamItem(index, None, error)
    return StreamItem(index, kind.to_message(sent), num_bytes=sent.pixels.nbytes, reduction=sent.reduction)


class StreamInterrupted(Exception):
    """A stream ended because its worker is being replaced; the head must be sent again on another stream.

    Attributes:
        error: for the caller, if no other stream can be opened in time.
    """

    def __init__(self, error: ClientError) -> None:
        super().__init__(error)
        self.error = error


def to_outcome(item: StreamItem, message: Any, kind: StreamKind[Result]) -> Result | ClientError:
    """Convert the answer to the head; None if the service ended the stream without one.

    Raises:
        StreamInterrupted: the worker shuts down.
    """
    if message is None:
        raise StreamInterrupted(Unreachable(f"image {item.index}: the service ended the stream without an answer"))
    if message.WhichOneof("outcome") == "error":
        rejection = to_rejection(message.error, f"image {item.index}")
        if rejection.code is grpc.StatusCode.UNAVAILABLE:
            raise StreamInterrupted(rejection)
        return _at(item, rejection)
    return kind.to_result(message.response, item.reduction)


def failed_outcome(item: StreamItem, error: grpc.RpcError, timeout_s: float) -> ClientError:
    """Return the outcome of the head when its stream failed because of it: the message is too large for the service.

    Raises:
        StreamInterrupted: the worker shuts down, or the connection was lost.
        ClientError: the stream failed for another reason.
    """
    failure = _at(item, to_client_error(error, timeout_s, f"image {item.index}"))
    if error.code() in RESUMABLE or error.details() == LOST_WHILE_OPENED:
        raise StreamInterrupted(failure) from None
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise failure from None
    return failure


def overdue_outcome(item: StreamItem, timeout_s: float, cause: Cause) -> ClientError:
    """Return the error for a head that was not answered in time.

    Args:
        item: the head.
        timeout_s: the longest wait.
        cause: of ``find_disconnection``.
    """
    return _at(item, overdue(f"image {item.index}: ", timeout_s, cause))


def _at(item: StreamItem, error: ClientError) -> ClientError:
    error.index = item.index
    return error


def resume_delay_s(num_failures: int, deadline: Deadline, error: ClientError) -> float:
    """Return the delay before a stream is opened again: 10 ms to 1 s, with jitter.

    Args:
        num_failures: in a row.
        deadline: of the image that waits for its answer.
        error: of the last stream; raised if the delay is longer than the deadline allows.
    """
    seconds: float = min(1.0, 0.01 * 4 ** min(num_failures - 1, 4)) * random.uniform(0.5, 1)  # noqa: S311 - no secret
    if time.monotonic() + seconds >= deadline.end_s:
        raise error from None
    return seconds


class StreamWindow:
    """Images that were taken from the input and whose outcome was not returned yet, in order. Created per stream.

    Attributes:
        ended: whether the input has ended.
    """

    def __init__(self, max_images: int) -> None:
        self._items: deque[StreamItem] = deque()
        self._max_images = max_images
        self._num_bytes = 0
        self.ended = False

    @property
    def has_room(self) -> bool:
        """Whether one more image may be taken from the input."""
        return len(self._items) < self._max_images and self._num_bytes < MAX_STREAM_BYTES

    @property
    def head(self) -> StreamItem | None:
        """The image whose outcome is returned next; None if none is in flight."""
        return self._items[0] if self._items else None

    def add(self, item: StreamItem) -> None:
        """Append the next image of the input."""
        self._items.append(item)
        self._num_bytes += item.num_bytes

    def pop(self) -> None:
        """Remove the head, because its outcome is about to be returned."""
        self._num_bytes -= self._items.popleft().num_bytes

    def next_after(self, index: int) -> StreamItem | None:
        """Return the first image to send after the position ``index``; None if there is none yet."""
        if not self._items:
            return None
        # Positions are consecutive. A new stream starts at the head.
        for offset in range(max(0, index + 1 - self._items[0].index), len(self._items)):
            if self._items[offset].message is not None:
                return self._items[offset]
        return None
