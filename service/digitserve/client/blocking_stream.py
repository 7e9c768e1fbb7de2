"""``Client.classify_stream`` and ``read_stream``: one stream at a time, opened again where it stopped when a worker is replaced.

Three threads: the caller's thread receives; a thread of the stream takes images from the caller's iterator; gRPC's thread
sends them. A fourth, the watchdog, cancels the stream when an answer is overdue, because gRPC's blocking streams have no
timeout per message.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Generic

import grpc

from digitserve.client.channel import Connection, find_disconnection
from digitserve.client.errors import ClientError
from digitserve.client.pool import MAX_TIMEOUT_S, Deadline, Pool
from digitserve.client.stream_window import (
    Result,
    StreamInterrupted,
    StreamItem,
    StreamKind,
    StreamWindow,
    failed_outcome,
    overdue_outcome,
    resume_delay_s,
    to_item,
    to_outcome,
)


class BlockingStream(Generic[Result]):
    """One call of ``Client.classify_stream`` or ``read_stream``; lives until its iterator is exhausted or closed."""

    def __init__(
        self, images: Iterable[object], kind: StreamKind[Result], window: StreamWindow, pool: Pool[Connection],
        timeout_s: float,
    ) -> None:  # fmt: skip
        self._images = images
        self._kind = kind
        self._window = window
        self._pool = pool
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._closed = False
        self._input_error: BaseException | None = None
        self._watchdog = _Watchdog(min(timeout_s, MAX_TIMEOUT_S), self._cancel)
        self._borrowed = ExitStack()
        self._call: Any = None
        self._call_number = 0

    def outcomes(self, *, return_exceptions: bool) -> Generator[Result | ClientError, None, None]:
        """Iterate over the outcomes, in the order of the images."""
        feeder = threading.Thread(target=self._feed, name="digitserve-stream-input", daemon=True)
        feeder.start()
        self._watchdog.start()
        try:
            while (item := self._wait_for_head()) is not None:
                outcome = item.error or self._receive(item)
                with self._changed:
                    self._window.pop()
                    self._changed.notify_all()
                if isinstance(outcome, ClientError) and not return_exceptions:
                    raise outcome
                yield outcome
            if self._input_error is not None:
                raise self._input_error
            self._finish()
        finally:
            self.close()
            self._borrowed.close()

    def close(self) -> None:
        """End the stream; its iterator raises Closed if the client was closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watchdog.stop()
        self._cancel()

    def _cancel(self) -> None:
        if (call := self._call) is not None:
            call.cancel()

    def _wait_for_head(self) -> StreamItem | None:
        """Return the next image; None when all were answered and the input has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._window.head or self._window.ended or self._closed)
            self._pool.check_open()
            return self._window.head

    def _feed(self) -> None:
        """Take images from the caller's iterator while there is room for them. Runs on a separate thread."""
        try:
            images = iter(self._images)
            index = 0
            while self._wait_for_room():
                try:
                    image = next(images)
                except StopIteration:
                    break
                item = to_item(index, image, self._kind)
                index += 1
                with self._changed:
                    self._window.add(item)
                    self._changed.notify_all()
        except BaseException as error:
            self._input_error = error
        with self._changed:
            self._window.ended = True
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._window.has_room or self._closed)
            return not self._closed

    def _receive(self, item: StreamItem) -> Result | ClientError:
        """Wait for the answer to the head; send it again on another stream while workers are being replaced."""
        deadline, num_failures = Deadline(self._timeout_s), 0
        while True:
            try:
                return self._receive_once(item, deadline)
            except StreamInterrupted as interrupted:
                self._abandon_call()
                num_failures += 1
                time.sleep(resume_delay_s(num_failures, deadline, interrupted.error))

    def _receive_once(self, item: StreamItem, deadline: Deadline) -> Result | ClientError:
        self._watchdog.watch(deadline)
        try:
            message = next(self._open_call(), None)
        except (grpc.RpcError, ValueError) as error:
            self._abandon_call()
            # A call on a closed channel raises one or the other.
            self._pool.check_open()
            if isinstance(error, ValueError):
                raise
            if self._watchdog.expired is deadline:
                with self._pool.borrow() as one:
                    raise overdue_outcome(item, self._timeout_s, find_disconnection(one)) from None
            return failed_outcome(item, error, self._timeout_s)
        finally:
            self._watchdog.watch(None)
        return to_outcome(item, message, self._kind)

    def _finish(self) -> None:
        """Wait for the status of the stream after the last answer, so that the service counts it as OK."""
        if self._call is not None:
            self._watchdog.watch(Deadline(self._timeout_s))
            with suppress(grpc.RpcError):
                next(self._call, None)

    def _open_call(self) -> Any:
        """Return the stream; open it if there is none. It waits for a connection, because the service answered before."""
        if self._call is None:
            connection = self._borrowed.enter_context(self._pool.borrow())
            self._call_number += 1
            self._call = getattr(connection.streams, self._kind.stream)(
                self._messages(self._call_number), metadata=connection.metadata(), wait_for_ready=True
            )
        return self._call

    def _abandon_call(self) -> None:
        self._cancel()
        self._call = None
        self._borrowed.close()
        with self._changed:
            self._call_number += 1
            self._changed.notify_all()

    def _messages(self, call_number: int) -> Iterator[Any]:
        """Iterate over the messages of one stream, from the head of the window. gRPC's thread calls it."""
        index = -1
        while True:
            with self._changed:
                while (item := self._window.next_after(index)) is None:
                    if self._window.ended or self._closed or call_number != self._call_number:
                        return
                    self._changed.wait()
            if call_number != self._call_number or item.message is None:
                return
            index = item.index
            yield item.message


class _Watchdog:
    """Cancels a wait that lasts too long. Belongs to one stream; a separate thread runs until ``stop``.

    Attributes:
        expired: the deadline that passed during a wait; None if none did.
    """

    def __init__(self, period_s: float, cancel: Callable[[], None]) -> None:
        self._period_s = period_s
        self._cancel = cancel
        self._deadline: Deadline | None = None
        self._stopped = threading.Event()
        self.expired: Deadline | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="digitserve-stream-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def watch(self, deadline: Deadline | None) -> None:
        """Watch a wait that begins; None when it is over."""
        self._deadline = deadline

    def _run(self) -> None:
        # A wait that begins later ends later than one period from now.
        wait_s = self._period_s
        while not self._stopped.wait(wait_s):
            deadline = self._deadline
            wait_s = self._period_s if deadline is None else deadline.end_s - time.monotonic()
            if deadline is not None and wait_s <= 0:
                self.expired, wait_s = deadline, self._period_s
                self._cancel()
