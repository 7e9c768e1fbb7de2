"""Using both clients of the client library in one test."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve.client import AsyncClient, Client, Prediction
from digitserve.protocol.names import SERVICE
from support.bundles import echo_image
from support.serving import PATIENCE_S


@contextmanager
def serve_handlers(handlers: Mapping[str, Any], num_threads: int) -> Iterator[str]:
    """Serve methods of ``DigitService`` with handlers of a test, and yield the address."""
    with ThreadPoolExecutor(num_threads) as pool:
        server = grpc.server(pool)
        server.add_registered_method_handlers(SERVICE, dict(handlers))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield address
        finally:
            server.stop(0).wait(PATIENCE_S)


def images_of(first: int, num_images: int) -> NDArray[np.uint8]:
    """Return uint8[N,28,28] whose answers are consecutive numbers."""
    images = [echo_image(number) for number in range(first, first + num_images)]
    return np.array(images, np.uint8).reshape(-1, 28, 28)


def scores(predictions: list[Prediction]) -> list[int]:
    """Return the numbers that predictions carry."""
    return [int(prediction.ood_score) for prediction in predictions]


def awaited(address: str, use: Callable[[AsyncClient], Awaitable[Any]], **arguments: Any) -> Any:
    """Use an asynchronous client in a separate loop."""

    async def run() -> Any:
        async with AsyncClient(address, **arguments) as client:
            return await use(client)

    return asyncio.run(run())


def classify(kind: str, address: str, images: Any, **arguments: Any) -> list[Prediction]:
    """Classify once with either client."""
    options = {name: arguments.pop(name) for name in ("top_k", "ink", "framing", "explain") if name in arguments}
    if kind == "async":
        return awaited(address, lambda client: client.classify(images, **options), **arguments)
    with Client(address, **arguments) as client:
        return client.classify(images, **options)


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])
