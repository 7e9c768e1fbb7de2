"""``AsyncClient``: the counterpart of ``blocking.Client`` for asyncio, on ``grpc.aio`` and the caller's event loop."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal, Self, Unpack, overload

import grpc.aio

from digitserve.client.async_stream import AsyncStream, num_cancellations
from digitserve.client.channel import (
    Connection,
    find_cause_async,
    health_name,
    health_request,
    open_connections,
)
from digitserve.client.errors import ClientError, Closed, RequestRejected
from digitserve.client.pool import (
    MAX_IN_FLIGHT,
    NUM_CONNECTIONS,
    Deadline,
    Pool,
    require_positive,
    retry_delay_s,
)
from digitserve.client.predictions import ModelInfo, Prediction
from digitserve.client.read_requests import LayoutName, Reader, ReadOptions
from digitserve.client.readings import Reading
from digitserve.client.requests import Classifier, ClassifyCall, Group, Image, Images, group, request_options, split
from digitserve.client.stream_window import READ_STREAM_IN_FLIGHT, STREAM_IN_FLIGHT, Result, StreamKind, StreamWindow
from digitserve.credentials import Credentials, FilePath
from digitserve.protocol.names import SERVICE, Layout
from digitserve.protocol.readings import DEFAULT_PLACEHOLDER
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import MAX_SIDE, READ_SIDE


class AsyncClient:
    """As ``Client``, with methods to await.

    Create, use and close it in one running event loop; any number of tasks may call it.
    """

    def __init__(  # noqa: PLR0913 - all but the address are keywords with defaults
        self, address: str, *, ca: FilePath | None = None, certificate: FilePath | None = None, key: FilePath | None = None,
        token: str | None = None, token_file: FilePath | None = None, clear_text_token: bool = False,
        num_connections: int = NUM_CONNECTIONS, timeout_s: float = 10.0, images_per_request: int = 64,
        max_in_flight: int = MAX_IN_FLIGHT, max_side: int | None = MAX_SIDE,
        use_proxy: bool = True,
    ) -> None:  # fmt: skip
        """Create the connections, as ``Client`` does; nothing is sent yet."""
        require_positive(
            num_connections=num_connections, timeout_s=timeout_s, images_per_request=images_per_request,
            max_in_flight=max_in_flight, max_side=max_side,
        )  # fmt: skip
        credentials = Credentials(ca, certificate, key, token, token_file, clear_text_token)
        self._pool = Pool(open_connections(grpc.aio, address, credentials, num_connections, use_proxy=use_proxy))
        self._timeout_s = timeout_s
        self._images_per_request = images_per_request
        self._max_in_flight = max_in_flight
        self._max_side = max_side
        self._slots = asyncio.Semaphore(max_in_flight)
        self._streams: weakref.WeakSet[AsyncStream[Any]] = weakref.WeakSet()
        self._model: ModelInfo | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls in progress in other tasks raise Closed."""
        connections = self._pool.close()
        for stream in list(self._streams):
            await stream.interrupt()
        for connection in connections:
            for channel in connection.channels:
                await channel.close()

    async def classify(
        self, images: Images, *, top_k: int = 0, ink: Ink | None = None, framing: Framing | None = None,
        explain: bool = False, timeout_s: float | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """Classify images; arguments, result and errors are those of ``Client.classify``."""
        self._pool.check_open()
        deadline = self._deadline(timeout_s)
        groups, options = group(images, self._max_side), request_options(top_k, ink, framing, explain=explain)
        limits = self._model or await self._get_model(deadline)
        try:
            return await self._classify(groups, options, limits, deadline)
        except RequestRejected as error:
            # The service may have restarted with other limits.
            if not error.may_exceed_limits or limits.has_limits_of(new_limits := await self._get_model(deadline)):
                raise
        return await self._classify(groups, options, new_limits, deadline)

    @overload
    def classify_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, top_k: int = 0, ink: Ink | None = None,
        framing: Framing | None = None, explain: bool = False, timeout_s: float | None = None,
        max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: Literal[False] = False,
    ) -> AsyncGenerator[Prediction, None]: ...  # fmt: skip

    @overload
    def classify_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, top_k: int = 0, ink: Ink | None = None,
        framing: Framing | None = None, explain: bool = False, timeout_s: float | None = None,
        max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: bool,
    ) -> AsyncGenerator[Prediction | ClientError, None]: ...  # fmt: skip

    def classify_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, top_k: int = 0, ink: Ink | None = None,
        framing: Framing | None = None, explain: bool = False, timeout_s: float | None = None,
        max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Prediction | ClientError, None]:  # fmt: skip
        """Classify an unbounded sequence of images on one stream; arguments and errors are those of ``Client.classify_stream``.

        Args:
            images: asynchronous or plain iterable; another task of the same event loop iterates over it.
            top_k: as for ``classify``.
            ink: as for ``classify``.
            framing: as for ``classify``.
            explain: as for ``classify``.
            timeout_s: longest wait for the next prediction while an image is in flight.
            max_in_flight: most images in flight.
            return_exceptions: whether errors of single images are returned in their place instead of raised.

        Returns:
            One prediction per image, in order. To leave the iteration early, use ``contextlib.aclosing`` or the iterator's
            ``aclose``, which ends the stream.
        """
        self._pool.check_open()
        kind = Classifier(request_options(top_k, ink, framing, explain=explain), self._max_side)
        return self._stream(images, kind, timeout_s, max_in_flight, return_exceptions=return_exceptions)

    async def read(  # noqa: PLR0913 - all but the image are keywords with defaults
        self, image: Image, *, layout: Layout | LayoutName = "page", num_digits: int | None = None, pattern: str = "",
        min_confidence: float = 0.0, placeholder: str = DEFAULT_PLACEHOLDER, top_k: int = 0, ink: Ink | None = None,
        max_side: int | None = READ_SIDE, timeout_s: float | None = None,
    ) -> Reading:  # fmt: skip
        """Read the numbers in an image; arguments, result and errors are those of ``Client.read``."""
        self._pool.check_open()
        deadline = self._deadline(timeout_s)
        reader = Reader(layout, num_digits, pattern, min_confidence, placeholder, top_k, ink, max_side)
        sent = reader.prepare(image, 0)
        if self._model is None:
            # A service that never answered is detected here; one that does not listen now is restarting, so wait for it.
            await self._get_model(deadline)
        request = reader.to_message(sent).request
        response = await self._call(lambda one: one.service.Read, request, deadline, wait_for_ready=True)
        return reader.to_result(response, sent.reduction)

    @overload
    def read_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, timeout_s: float | None = None,
        max_in_flight: int = READ_STREAM_IN_FLIGHT, return_exceptions: Literal[False] = False, **options: Unpack[ReadOptions],
    ) -> AsyncGenerator[Reading, None]: ...  # fmt: skip

    @overload
    def read_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, timeout_s: float | None = None,
        max_in_flight: int = READ_STREAM_IN_FLIGHT, return_exceptions: bool, **options: Unpack[ReadOptions],
    ) -> AsyncGenerator[Reading | ClientError, None]: ...  # fmt: skip

    def read_stream(
        self, images: AsyncIterable[Image] | Iterable[Image], *, timeout_s: float | None = None,
        max_in_flight: int = READ_STREAM_IN_FLIGHT, return_exceptions: bool = False, **options: Unpack[ReadOptions],
    ) -> AsyncGenerator[Reading | ClientError, None]:  # fmt: skip
        """Read an unbounded sequence of images on one stream; arguments and errors are those of ``Client.read_stream``.

        ``images`` and the end of the iteration are as for ``classify_stream``.
        """
        self._pool.check_open()
        return self._stream(images, Reader(**options), timeout_s, max_in_flight, return_exceptions=return_exceptions)

    async def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return the model that the service uses and the service's limits, as ``Client.model``."""
        return await self._get_model(self._deadline(timeout_s))

    async def health(self, service: str = SERVICE, *, timeout_s: float | None = None) -> str:
        """Return the health of a service, as ``Client.health``."""
        deadline = self._deadline(timeout_s)
        return health_name(await self._call(lambda one: one.health.Check, health_request(service), deadline))

    async def healthy(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the service reports SERVING; False also if it does not answer."""
        try:
            return await self.health(timeout_s=timeout_s) == "SERVING"
        except Closed:
            raise
        except ClientError:
            return False

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    async def _get_model(self, deadline: Deadline) -> ModelInfo:
        response = await self._call(lambda one: one.service.GetModel, pb.GetModelRequest(), deadline)
        self._model = model = ModelInfo.from_message(response.model)
        return model

    def _stream(
        self, images: AsyncIterable[Image] | Iterable[Image], kind: StreamKind[Result], timeout_s: float | None,
        max_in_flight: int, *, return_exceptions: bool,
    ) -> AsyncGenerator[Result | ClientError, None]:  # fmt: skip
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        require_positive(max_in_flight=max_in_flight, timeout_s=timeout_s)
        stream = AsyncStream(images, kind, StreamWindow(max_in_flight), self._pool, timeout_s)
        self._streams.add(stream)
        return self._outcomes(stream, timeout_s, return_exceptions=return_exceptions)

    async def _outcomes(
        self, stream: AsyncStream[Result], timeout_s: float, *, return_exceptions: bool
    ) -> AsyncGenerator[Result | ClientError, None]:
        if self._model is None:
            # Streams wait for a connection: a service that never answered is detected here.
            await self._get_model(Deadline(timeout_s))
        async with aclosing(stream.outcomes(return_exceptions=return_exceptions)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def _classify(
        self, groups: list[Group], options: pb.ClassifyRequest, limits: ModelInfo, deadline: Deadline
    ) -> list[Prediction]:
        call = ClassifyCall(split(groups, self._images_per_request, limits), options)
        cancellations = num_cancellations()
        # Not a TaskGroup: in Python 3.11 the task that uses it counts as cancelled when one of its tasks has failed.
        tasks = [
            asyncio.create_task(self._send_chunks(call, deadline))
            for _ in range(min(self._max_in_flight, call.num_chunks))
        ]
        try:
            await asyncio.gather(*tasks)
        except ClientError:
            # ``gather`` loses a cancellation that follows a failure in the same iteration of the event loop.
            if num_cancellations() > cancellations:
                raise asyncio.CancelledError from None
            raise
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        return call.predictions()

    async def _send_chunks(self, call: ClassifyCall, deadline: Deadline) -> None:
        """Send chunks until none is left."""
        for chunk, request in call:
            async with self._slot(deadline):
                # The service has answered before. If it does not listen now, it is restarting, so wait for it.
                response = await self._call(
                    lambda one: one.service.Classify, request, deadline, call.error_prefix(chunk), wait_for_ready=True
                )
            call.add_response(chunk, response)

    @asynccontextmanager
    async def _slot(self, deadline: Deadline) -> AsyncIterator[None]:
        """Wait until one more request may be in flight."""
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._slots.acquire()
        except TimeoutError:
            raise deadline.error() from None
        try:
            yield
        finally:
            self._slots.release()

    async def _call(
        self, method: Callable[[Connection], Any], request: Any, deadline: Deadline, prefix: str = "", *,
        wait_for_ready: bool = False,
    ) -> Any:  # fmt: skip
        """Call a method on any connection; retry on another one while the service's queue is full."""
        while True:
            with self._pool.borrow() as one:
                try:
                    return await method(one)(
                        request, timeout=deadline.remaining_s(), metadata=one.metadata(), wait_for_ready=wait_for_ready
                    )
                except asyncio.CancelledError:
                    # Closing a channel cancels its calls although no task was cancelled.
                    if self._pool.closed and not num_cancellations():
                        raise Closed from None
                    raise
                except (grpc.RpcError, grpc.aio.UsageError) as error:
                    if self._pool.closed:
                        raise Closed from None
                    if isinstance(error, grpc.aio.UsageError):
                        raise
                    delay_s = retry_delay_s(error, deadline, prefix, await find_cause_async(one, error))
            await asyncio.sleep(delay_s)
