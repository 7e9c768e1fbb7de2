"""Throughput and CPU time per image of a single ``Client`` and a single ``AsyncClient``.

    python -m benchmarks.client_rate --address 127.0.0.1:50051 --seconds 5

Prints images/s and the client's CPU time per image, for both and for 1 and 64 images per request. CPU time is user and
system time of this process only, so the service must run in another process.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.client import AsyncClient, Client

IMAGES_PER_REQUEST = (1, 64)
TIMEOUT_S = 60.0
REQUESTS_PER_CALL = 256
"""Enough to keep the connection pool full during most of a call."""


@dataclass(frozen=True)
class Rate:
    """The result of a run.

    Attributes:
        images_per_s: images answered per second.
        cpu_us: CPU time of the client per image, in microseconds.
    """

    images_per_s: float
    cpu_us: float


class Meter:
    """Measures repeated calls; the loop over ``calls`` makes one call per iteration."""

    def __init__(self, seconds: float, num_images: int) -> None:
        """Measure calls of ``num_images`` each until ``seconds`` have passed."""
        self._seconds = seconds
        self._num_images = num_images

    def calls(self) -> Iterator[None]:
        """Yield once per call until the time has passed; the first call warms up and does not count."""
        yield
        self._num_calls, self._cpu_s, start = 0, time.process_time(), time.monotonic()
        while time.monotonic() - start < self._seconds:
            yield
            self._num_calls += 1
        self._elapsed_s, self._cpu_s = time.monotonic() - start, time.process_time() - self._cpu_s

    def rate(self) -> Rate:
        """Return the rate, after the loop over ``calls`` has ended."""
        num_images = self._num_calls * self._num_images
        return Rate(num_images / self._elapsed_s, self._cpu_s * 1e6 / num_images)


def measure_blocking(address: str, images: NDArray[np.uint8], images_per_request: int, seconds: float) -> Rate:
    """Measure ``Client``, called by one thread."""
    meter = Meter(seconds, len(images))
    with Client(address, images_per_request=images_per_request, timeout_s=TIMEOUT_S) as client:
        for _ in meter.calls():
            client.classify(images)
    return meter.rate()


async def measure_async(address: str, images: NDArray[np.uint8], images_per_request: int, seconds: float) -> Rate:
    """Measure ``AsyncClient``, called by one task."""
    meter = Meter(seconds, len(images))
    async with AsyncClient(address, images_per_request=images_per_request, timeout_s=TIMEOUT_S) as client:
        for _ in meter.calls():
            await client.classify(images)
    return meter.rate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--seconds", type=float, default=5.0, help="per run; there are four")
    options = parser.parse_args()
    # The same images as ``digitserve bench`` sends, for comparison. Noise would cost the service more: it would have to check
    # each image for several separate shapes.
    generator = np.random.default_rng(0)
    digits = np.stack([draw(digit, Size(28, 28), generator) for digit in range(10)])
    print(f"{'client':<12} {'images/request':>14} {'images/s':>10} {'client CPU us/image':>20}")
    for images_per_request in IMAGES_PER_REQUEST:
        images = np.resize(digits, (images_per_request * REQUESTS_PER_CALL, 28, 28))
        for name, rate in (
            ("Client", measure_blocking(options.address, images, images_per_request, options.seconds)),
            ("AsyncClient", asyncio.run(measure_async(options.address, images, images_per_request, options.seconds))),
        ):
            print(f"{name:<12} {images_per_request:>14} {rate.images_per_s:>10.0f} {rate.cpu_us:>20.1f}", flush=True)


if __name__ == "__main__":
    main()
