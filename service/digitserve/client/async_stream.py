"""``AsyncClient.classify_stream`` and ``read_stream``: as ``blocking_stream``, on the caller's event loop.

Two tasks: the caller's receives; one of the stream's own takes images from the caller's iterator. gRPC sends them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import ExitStack, suppress
from typing import Any, Generic

import grpc.aio

from digitserve.client.channel import Connection, find_disconnection_async, to_client_error
from digitserve.client.errors import ClientError
from digitserve.client.pool import Deadline, Pool
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

_WRITE_FAILED = "Internal error from Core"
"""Details of the status INTERNAL that grpc.aio itself sets when it writes to a stream that has ended, before it has received
the stream's own status."""


class AsyncStream(Generic[Result]):
    """One call of ``AsyncClient.classify_stream`` or ``read_stream``; lives until its iterator is exhausted or closed."""

    def __init__(
        self, images: AsyncIterable[object] | Iterable[object], kind: StreamKind[Result], window: StreamWindow,
        pool: Pool[Connection], timeout_s: float,
    ) -> None:  # fmt: skip
        self._images = images
        self._kind = kind
        self._window = window
        self._pool = pool
        self._timeout_s = timeout_s
        self._changed = asyncio.Condition()
        self._input_error: BaseException | None = None
        self._borrowed = ExitStack()
        self._call: Any = None
        self._call_number = 0

    async def outcomes(self, *, return_exceptions: bool) -> AsyncGenerator[Result | ClientError, None]:
        """Iterate over the outcomes, in the order of the images."""
        feeder = asyncio.create_task(self._feed())
        try:
            while (item := await self._wait_for_head()) is not None:
                outcome = item.error or await self._receive(item)
                async with self._changed:
                    self._window.pop()
                    self._changed.notify_all()
                if isinstance(outcome, ClientError) and not return_exceptions:
                    raise outcome
                yield outcome
            if self._input_error is not None:
                raise self._input_error
            await self._finish()
        finally:
            feeder.cancel()
            self._abandon_call()

    async def interrupt(self) -> None:
        """Wake the iterator, which raises Closed because the client was closed."""
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for_head(self) -> StreamItem | None:
        """Return the next image; None when all were answered and the input has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._window.head or self._window.ended or self._pool.closed)
            self._pool.check_open()
            return self._window.head

    async def _feed(self) -> None:
        """Take images from the caller's iterator while there is room for them. Runs as a separate task."""
        index = 0
        try:
            async for image in _iterate(self._images):
                item = to_item(index, image, self._kind)
                index += 1
                async with self._changed:
                    self._window.add(item)
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: self._window.has_room)
        except Exception as error:  # raised again in the caller's task
            self._input_error = error
        async with self._changed:
            self._window.ended = True
            self._changed.notify_all()

    async def _receive(self, item: StreamItem) -> Result | ClientError:
        """Wait for the answer to the head; send it again on another stream while workers are being replaced."""
        deadline, num_failures = Deadline(self._timeout_s), 0
        while True:
            try:
                return await self._receive_once(item, deadline)
            except StreamInterrupted as interrupted:
                self._abandon_call()
                num_failures += 1
                await asyncio.sleep(resume_delay_s(num_failures, deadline, interrupted.error))

    async def _receive_once(self, item: StreamItem, deadline: Deadline) -> Result | ClientError:
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                message = await self._open_call().read()
        except TimeoutError:
            with self._pool.borrow() as one:
                raise overdue_outcome(item, self._timeout_s, await find_disconnection_async(one)) from None
        except asyncio.CancelledError:
            # Closing a channel cancels its calls although no task was cancelled.
            if not num_cancellations():
                self._pool.check_open()
            raise
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            self._abandon_call()
            self._pool.check_open()
            if isinstance(error, grpc.aio.UsageError):
                raise
            if error.details() == _WRITE_FAILED:
                raise StreamInterrupted(to_client_error(error, self._timeout_s, f"image {item.index}")) from None
            return failed_outcome(item, error, self._timeout_s)
        return to_outcome(item, None if message is grpc.aio.EOF else message, self._kind)

    async def _finish(self) -> None:
        """Wait for the status of the stream after the last answer, so that the service counts it as OK."""
        if self._call is not None:
            with suppress(grpc.RpcError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._call.read()

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
        if self._call is not None:
            # gRPC cancels the task that waits in ``_messages`` of this call.
            self._call.cancel()
        self._call = None
        self._borrowed.close()
        self._call_number += 1

    async def _messages(self, call_number: int) -> AsyncIterator[Any]:
        """Iterate over the messages of one stream, from the head of the window. A task of gRPC's calls it."""
        index = -1
        while True:
            async with self._changed:
                while (item := self._window.next_after(index)) is None:
                    if self._window.ended:
                        return
                    await self._changed.wait()
            if call_number != self._call_number or item.message is None:
                return
            index = item.index
            yield item.message


def num_cancellations() -> int:
    """Return how often the current task was cancelled itself."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def _iterate(images: AsyncIterable[object] | Iterable[object]) -> AsyncIterator[object]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
