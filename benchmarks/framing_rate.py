"""Microseconds of framing one image: in single calls of ``frame``, in a request, and in single-image requests that a worker
prepares in one batch; and of reducing a photo of 12 megapixels in the client.

    DIGITSERVE_MNIST=mnist.npz python -m benchmarks.framing_rate --json before.json
    DIGITSERVE_MNIST=mnist.npz python -m benchmarks.framing_rate --against before.json

Each round measures all kinds, so that other load on the machine affects all alike. Minima are compared: the cost of the
code without disturbance. Ink is always detected, and OpenBLAS should have one thread, as in a worker.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve.batching.prepare import GrayImages, prepare
from digitserve.types import Framing, Ink
from digitserve.vision.batch_checks import check, verdicts
from digitserve.vision.framing import frame
from digitserve.vision.reduction import MAX_SIDE, Reduction, reduce_by_block_means
from digitserve_training.synth.scans import ScanParameters, simulate_scan
from tests.support.digits import mnist_test

Gray = NDArray[np.uint8]

GROUP = 32
"""Images of a kind, each another digit, and images per request; fewer of large ones."""

MAX_PIXELS = 1 << 23
"""Most pixels of a kind."""

PHOTO_SIZE = 3000, 4000
"""Height and width of a photo of 12 megapixels."""


def enlarged(digit: Gray, side: int) -> Gray:
    """Return a digit resized: light ink on black."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


def on_paper(digit: Gray, side: int, generator: np.random.Generator) -> Gray:
    """Return a digit drawn on uneven, grainy paper."""
    sheet = simulate_scan(digit, ScanParameters(side, side), generator)
    return np.asarray(Image.fromarray(sheet).resize((side, side), Image.Resampling.NEAREST))


def kinds() -> dict[str, Gray]:
    """Return uint8[N, side, side] for each kind of image."""
    digits, _ = mnist_test()
    generator = np.random.default_rng(0)
    images: dict[str, Gray] = {}
    for side in (28, 64, 400, 2048):
        number = max(1, min(GROUP, MAX_PIXELS // side**2))
        images[f"{side}x{side} clean"] = np.stack([enlarged(digit, side) for digit in digits[:number]])
        images[f"{side}x{side} paper"] = np.stack([on_paper(digit, side, generator) for digit in digits[:number]])
    return images


def frame_singly(images: Gray) -> None:
    """Frame each image in a separate call."""
    for image in images:
        frame(image, Ink.AUTO)


def check_singly(images: Gray) -> None:
    """Check each image in a separate call for blank and several."""
    for image in images:
        verdicts(image[None])


def request_of(images: Gray) -> GrayImages:
    """Return all of these images as one request, to be framed."""
    num_images, height, width = images.shape
    return GrayImages(images.tobytes(), num_images, height, width, Ink.AUTO, Framing.MNIST)


def photos() -> dict[str, Gray]:
    """Return a photo of each format: noise, because the time does not depend on the pixels."""
    colors = np.random.default_rng(0).integers(0, 256, (*PHOTO_SIZE, 3), np.uint8)
    opaque = np.full((*PHOTO_SIZE, 1), 255, np.uint8)
    return {
        "GRAY8": np.ascontiguousarray(colors[..., 0]),
        "RGB8": colors,
        "RGBA8, opaque": np.concatenate([colors, opaque], axis=2),
        "RGBA8, translucent": np.concatenate([colors, colors[..., :1]], axis=2),
        "RGBA8, half transparent": np.concatenate(
            [colors, opaque * (np.arange(PHOTO_SIZE[1]) % 1000 < 500)[:, None].astype(np.uint8)], axis=2
        ),
    }


Call = tuple[str, int, Callable[[], object]]
"""Name, images per call, and the call."""


def measured() -> list[Call]:
    """Return the calls to measure."""
    calls: list[Call] = []
    images = kinds()
    np.empty(1 << 22, np.uint8)  # once it is freed, malloc keeps the arrays of a group, as in a worker
    for name, group in images.items():
        request = request_of(group)
        calls += [
            (f"{name}, single", len(group), partial(frame_singly, group)),
            (f"{name}, request of {len(group)}", len(group), partial(prepare, [(request, 0, len(group))])),
            (
                f"{name}, {len(group)} requests",
                len(group),
                partial(prepare, [(request_of(image[None]), 0, 1) for image in group]),
            ),
        ]
    as_is = images["28x28 clean"]
    factor = Reduction.to_side(*PHOTO_SIZE, MAX_SIDE).factor
    return [
        *calls,
        ("28x28 as it is, single", len(as_is), partial(check_singly, as_is)),
        (f"28x28 as it is, batch of {len(as_is)}", len(as_is), partial(verdicts, as_is)),
        *(
            (f"28x28 undecided, batch of {size}", size, partial(check, as_is[:size], undecided=True))
            for size in (1, 4, len(as_is))
        ),
        *(
            (f"12 MP {name}, reduced", 1, partial(reduce_by_block_means, photo, factor))
            for name, photo in photos().items()
        ),
    ]


def time_us(call: Callable[[], object], num_images: int) -> float:
    """Return the microseconds per image of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / num_images * 1e6


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="over all kinds (default 50)")
    parser.add_argument("--json", type=Path, help="write the minima here")
    parser.add_argument("--against", type=Path, help="minima to compare with, as --json wrote them")
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    calls = measured()
    taken: dict[str, list[float]] = {name: [] for name, _, _ in calls}
    for _ in range(options.rounds):
        for name, num_images, call in calls:
            taken[name].append(time_us(call, num_images))
    for name, times_us in taken.items():
        ratio = f"  {min(times_us) / before[name]:5.2f} of before" if name in before else ""
        sys.stdout.write(f"{name:32} min {min(times_us):8.1f}  median {median(times_us):8.1f} us per image{ratio}\n")
    if options.json:
        options.json.write_text(json.dumps({name: min(times_us) for name, times_us in taken.items()}, indent=2))


if __name__ == "__main__":
    main()
