"""Clients of the chaos run that use the client library and ``grpc.aio``; see ``traffic``."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import aclosing, closing
from functools import partial
from typing import Any

import grpc

from digitserve.client import CHANNEL_OPTIONS, AsyncClient, Client, ClientError, Prediction
from support.chaos import checker
from support.chaos.history import OK, StreamRequests
from support.chaos.images import Images
from support.chaos.traffic import (
    CALLS_PER_S,
    MAX_STREAM_MESSAGES,
    PLAIN,
    SEPARATE,
    TIMEOUT_S,
    Traffic,
    draw_call,
    end_failed,
    end_ok,
    end_unanswered,
    to_answers,
)  # fmt: skip
from support.serving import Service

STREAMS = 0.1
"""Share of streams among the calls of a client."""


def draw_mixed(rng: random.Random, images: Images) -> tuple[tuple[int, ...], int]:
    """Choose some images of any shapes; return them and the number of their shapes."""
    chosen = tuple(rng.choices(range(len(images.pixels)), k=rng.choice([1, 2, 5, 20])))
    return chosen, len({images.shape(index) for index in chosen})


class LibraryStream:
    """A stream of the client library."""

    def __init__(self, traffic: Traffic, client: str, rng: random.Random) -> None:
        self._traffic = traffic
        self._client = client
        self._chosen = rng.choices(range(len(traffic.images.pixels)), k=rng.randrange(1, MAX_STREAM_MESSAGES))
        self._sent = StreamRequests()

    def images(self) -> Iterator[Any]:
        """Return the images, and record each as sent."""
        # The library waits so long for each prediction.
        timeout_s = TIMEOUT_S * len(self._chosen)
        for index in self._chosen:
            begin = partial(self._traffic.history.begin, "stream message", self._client, (index,), timeout_s=timeout_s)
            if not self._sent.begin(begin):
                return
            yield self._traffic.images.pixels[index]

    def end(self, outcome: Prediction | ClientError) -> None:
        """Record the next outcome."""
        request = self._sent.next()
        if isinstance(outcome, ClientError):
            end_failed(request, outcome)
        else:
            request.end(OK, to_answers([outcome]))

    def end_all(self, error: Exception | None) -> None:
        """Record that the stream has ended."""
        end_unanswered(self._sent, error)


class LibraryCalls:
    """The blocking client of the library, which several threads share."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        for _ in traffic.pauses(rng):
            if rng.random() < STREAMS:
                self._stream(traffic, rng)
                continue
            chosen, num_shapes = draw_mixed(rng, traffic.images)
            request = traffic.history.begin(
                "mixed sizes", checker.CLIENT, chosen, timeout_s=TIMEOUT_S, num_calls=num_shapes
            )
            try:
                pixels: Any = [traffic.images.pixels[index] for index in chosen]
                predictions = self._client.classify(pixels, timeout_s=TIMEOUT_S)
            except ClientError as error:
                end_failed(request, error)
            else:
                request.end(OK, to_answers(predictions))

    def abort(self) -> None:
        """End the calls that wait for a connection."""
        self._client.close()

    def close(self) -> None:
        """Close the client; the first of the threads that share it does."""
        self._client.close()

    def _stream(self, traffic: Traffic, rng: random.Random) -> None:
        stream = LibraryStream(traffic, checker.CLIENT, rng)
        try:
            predictions = self._client.classify_stream(stream.images(), timeout_s=TIMEOUT_S, return_exceptions=True)
            with closing(predictions):
                for outcome in predictions:
                    stream.end(outcome)
        except ClientError as error:
            stream.end_all(error)
        else:
            stream.end_all(None)


class AsyncCalls:
    """``grpc.aio`` channels and the asynchronous client of the library, on one event loop."""

    def __init__(self, service: Service, num_tasks: int) -> None:
        self._num_tasks = num_tasks
        # Its end waits for the ends of cancelled calls: without that, gRPC core keeps their channels, which connect again.
        self._runner = asyncio.Runner()
        self._channels: list[tuple[str, Any]] = []
        self._runner.run(self._open(service))

    async def _open(self, service: Service) -> None:
        for client, options in ((checker.AIO, PLAIN), (checker.AIO_RETRIES, (*CHANNEL_OPTIONS, *SEPARATE))):
            self._channels.append((client, grpc.aio.insecure_channel(service.grpc_address, options)))
        self._client = AsyncClient(service.grpc_address, num_connections=2, timeout_s=TIMEOUT_S)

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        self._runner.run(self._run(traffic, rng.getrandbits(32)))

    def abort(self) -> None:
        """End the calls that wait for a connection; called on another thread while ``run`` runs."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._runner.get_loop()).result()

    def close(self) -> None:
        """Close all connections."""

        async def close() -> None:
            await asyncio.gather(*(channel.close() for _, channel in self._channels), self._client.close())

        self._runner.run(close())
        self._runner.close()

    async def _run(self, traffic: Traffic, seed: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._num_tasks):
                for client, channel in self._channels:
                    tasks.create_task(self._call(client, channel, traffic, random.Random(f"{seed} {client} {number}")))
                tasks.create_task(self._use_library(traffic, random.Random(f"{seed} {number}")))

    @staticmethod
    async def _call(client: str, channel: Any, traffic: Traffic, rng: random.Random) -> None:
        while not traffic.stopping.is_set():
            await asyncio.sleep(rng.expovariate(CALLS_PER_S))
            one = draw_call(rng, traffic.images)
            request = traffic.history.begin(
                one.kind, client, one.images, timeout_s=one.timeout_s, num_calls=one.num_calls
            )
            call = channel.unary_unary(one.path)(one.body, timeout=one.timeout_s)
            if one.cancel_after_s is not None:
                await asyncio.sleep(one.cancel_after_s)
                call.cancel()
            if (code := await call.code()) is grpc.StatusCode.OK:
                end_ok(request, one.path, await call)
            else:
                request.end(code.name, detail=await call.details())

    async def _use_library(self, traffic: Traffic, rng: random.Random) -> None:
        while not traffic.stopping.is_set():
            await asyncio.sleep(rng.expovariate(CALLS_PER_S))
            if rng.random() < STREAMS:
                await self._stream(traffic, rng)
                continue
            chosen, num_shapes = draw_mixed(rng, traffic.images)
            request = traffic.history.begin(
                "mixed sizes", checker.ASYNC_CLIENT, chosen, timeout_s=TIMEOUT_S, num_calls=num_shapes
            )
            try:
                pixels: Any = [traffic.images.pixels[index] for index in chosen]
                predictions = await self._client.classify(pixels, timeout_s=TIMEOUT_S)
            except ClientError as error:
                end_failed(request, error)
            else:
                request.end(OK, to_answers(predictions))

    async def _stream(self, traffic: Traffic, rng: random.Random) -> None:
        stream = LibraryStream(traffic, checker.ASYNC_CLIENT, rng)
        try:
            predictions = self._client.classify_stream(stream.images(), timeout_s=TIMEOUT_S, return_exceptions=True)
            async with aclosing(predictions):
                async for outcome in predictions:
                    stream.end(outcome)
        except ClientError as error:
            stream.end_all(error)
        else:
            stream.end_all(None)
