"""``AsyncClient``: the same as ``blocking.Client`` for asyncio, on ``grpc.aio`` and its caller's event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from digitserve.client.calls import Refused, Unreachable, health_name
from digitserve.client.parts import Assembly, Group, Prediction, check, options, same_limits, split
from digitserve.client.pool import (
    CHANNEL_OPTIONS,
    HEALTH_REQUEST,
    MAX_IN_FLIGHT,
    NUM_CONNECTIONS,
    Closed,
    Connection,
    Deadline,
    Pool,
    at_least_one,
    connection,
    pause_s,
)
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb


class AsyncClient:
    """As ``Client``, awaited: make it, use it and close it in one running event loop; any number of tasks may call it."""

    def __init__(
        self, address: str, *, num_connections: int = NUM_CONNECTIONS, timeout_s: float = 10.0,
        images_per_request: int = 64, max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:  # fmt: skip
        """Prepare, as ``Client`` does; nothing is sent yet."""
        at_least_one(
            num_connections=num_connections, images_per_request=images_per_request, max_in_flight=max_in_flight
        )
        self._pool = Pool(
            [connection(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)) for _ in range(num_connections)]
        )
        self._timeout_s = timeout_s
        self._images_per_request = images_per_request
        self._max_in_flight = max_in_flight
        self._slots = asyncio.Semaphore(max_in_flight)
        self._limits: pb.Model | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way in other tasks end with Closed."""
        for one in self._pool.close():
            await one.channel.close()

    async def classify(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], *, top_k: int = 0, ink: Ink | None = None,
        framing: Framing | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """Classify images: arguments, answers and errors are those of ``Client.classify``."""
        self._pool.check_open()
        deadline = Deadline(self._timeout_s)
        groups, request_options = check(images), options(top_k, ink, framing)
        limits = self._limits or await self._ask_model(deadline)
        try:
            return await self._classify(groups, request_options, limits, deadline)
        except Refused as error:
            # The service may have been started anew with other limits.
            if not error.may_be_of_limits or same_limits(now := await self._ask_model(deadline), limits):
                raise
        return await self._classify(groups, request_options, now, deadline)

    async def _classify(
        self, groups: list[Group], request_options: pb.ClassifyRequest, limits: pb.Model, deadline: Deadline
    ) -> list[Prediction]:
        assembly = Assembly(split(groups, self._images_per_request, limits), request_options)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._max_in_flight, assembly.num_parts)):
                    tasks.create_task(self._work(assembly, deadline))
        except ExceptionGroup as errors:
            # The first failure cancelled the rest.
            raise errors.exceptions[0] from None
        return assembly.predictions()

    async def model(self) -> pb.Model:
        """Return the facts of the model being served, as ``Client.model``."""
        return await self._ask_model(Deadline(self._timeout_s))

    async def healthy(self) -> bool:
        """Return whether the service says SERVING; false too when nobody answers."""
        try:
            response = await self._call(lambda one: one.health.Check, HEALTH_REQUEST, Deadline(self._timeout_s))
        except (Unreachable, Refused):
            return False
        return health_name(response) == "SERVING"

    async def _ask_model(self, deadline: Deadline) -> pb.Model:
        model: pb.Model = (await self._call(lambda one: one.service.GetModel, pb.GetModelRequest(), deadline)).model
        self._limits = model
        return model

    async def _work(self, assembly: Assembly, deadline: Deadline) -> None:
        """Send parts until none waits."""
        for part, request in assembly:
            async with self._turn(deadline):
                # The service has answered before: if it is away now, it is starting anew, and is waited for.
                response = await self._call(
                    lambda one: one.service.Classify, request, deadline, assembly.what(part), wait_for_ready=True
                )
            assembly.put(part, response)

    @asynccontextmanager
    async def _turn(self, deadline: Deadline) -> AsyncIterator[None]:
        """Wait until one more request may be under way."""
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._slots.acquire()
        except TimeoutError:
            raise deadline.passed() from None
        try:
            yield
        finally:
            self._slots.release()

    async def _call(
        self, method: Callable[[Connection], Any], request: Any, deadline: Deadline, what: str = "", *,
        wait_for_ready: bool = False,
    ) -> Any:  # fmt: skip
        """Call a method on any connection; again, on another, while the service says that it has no room just now."""
        while True:
            try:
                with self._pool.borrow() as one:
                    return await method(one)(request, timeout=deadline.remaining_s(), wait_for_ready=wait_for_ready)
            except asyncio.CancelledError:
                # A channel that is closed cancels its calls, without anybody having cancelled this task.
                if self._pool.closed and not _is_cancelled():
                    raise Closed from None
                raise
            except (grpc.RpcError, grpc.aio.UsageError) as error:
                if self._pool.closed:
                    raise Closed from None
                if isinstance(error, grpc.aio.UsageError):
                    raise
                seconds = pause_s(error, deadline, what)
            await asyncio.sleep(seconds)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
