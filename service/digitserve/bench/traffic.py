"""Requests of the load: images of digits drawn from strokes with a random seed, encoded once before the load starts.

Called by ``load`` before it connects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.bench import wire
from digitserve.bench.plan import STREAM, Plan, Size
from digitserve.v1 import digits_pb2 as pb

_STROKES: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0.5, 0.0), (0.15, 0.2), (0.1, 0.6), (0.35, 1.0), (0.7, 0.9), (0.9, 0.45), (0.75, 0.1), (0.5, 0.0)),),
    (((0.55, 0.0), (0.5, 0.5), (0.45, 1.0)),),
    (((0.15, 0.2), (0.5, 0.0), (0.85, 0.2), (0.75, 0.5), (0.15, 1.0), (0.9, 0.95)),),
    (((0.15, 0.1), (0.6, 0.0), (0.85, 0.2), (0.45, 0.45), (0.9, 0.7), (0.6, 1.0), (0.1, 0.9)),),
    (((0.3, 0.0), (0.1, 0.5), (0.9, 0.55)), ((0.75, 0.1), (0.7, 1.0))),
    (((0.85, 0.0), (0.3, 0.05), (0.25, 0.4), (0.65, 0.4), (0.85, 0.7), (0.55, 1.0), (0.1, 0.9)),),
    (((0.7, 0.0), (0.25, 0.4), (0.15, 0.8), (0.5, 1.0), (0.8, 0.8), (0.6, 0.55), (0.2, 0.7)),),
    (((0.1, 0.05), (0.9, 0.0), (0.55, 0.5), (0.4, 1.0)),),
    (((0.75, 0.15), (0.4, 0.0), (0.25, 0.25), (0.75, 0.75), (0.5, 1.0), (0.2, 0.8), (0.75, 0.15)),),
    (((0.8, 0.2), (0.45, 0.0), (0.2, 0.3), (0.5, 0.5), (0.8, 0.2), (0.75, 0.6), (0.6, 1.0)),),
)
"""For each digit its strokes as points (x, y) in the unit square, y downwards."""

_CANVAS = 112
"""Digits are drawn at four times MNIST's size, then resized to the requested size."""

_MAX_POOL_BYTES = 1 << 24
_MAX_REQUESTS = 64
_MIX_LENGTH = 4_096


@dataclass(frozen=True)
class EncodedRequest:
    """A request, ready to send.

    Attributes:
        body: the message with gRPC's prefix.
        num_images: number of predictions that its answer must have.
    """

    body: bytes
    num_images: int


def draw(digit: int, size: Size, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a digit with round stroke ends, light on dark, with random slant, width and stroke width.

    Returns:
        uint8[height, width].
    """
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    drawing = ImageDraw.Draw(canvas)
    width = int(generator.integers(8, 13))
    slant, squeeze = generator.uniform(-0.15, 0.15), generator.uniform(0.7, 0.9)
    for stroke in _STROKES[digit]:
        points = np.array(stroke) - 0.5 + generator.normal(0, 0.015, (len(stroke), 2))
        points[:, 0] = points[:, 0] * squeeze - slant * points[:, 1]
        # A digit of MNIST fills 20 of 28 pixels; the stroke width adds to these 18.
        points = points * _CANVAS * 18 / 28 + _CANVAS / 2
        drawing.line([(float(x), float(y)) for x, y in points], fill=255, width=width, joint="curve")
        for x, y in points[[0, -1]]:
            drawing.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    centered = _center(np.asarray(canvas))
    return np.asarray(Image.fromarray(centered).resize((size.width, size.height), Image.Resampling.BOX))


def _center(canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Move a drawing's centre of mass to MNIST's, the centre of pixel 14, as far as the drawing stays inside.

    The service frames 28x28 images that differ from MNIST's.
    """
    for axis in (0, 1):
        mass = canvas.sum(axis=1 - axis, dtype=np.float64)
        drawn = mass.nonzero()[0]
        shift = _CANVAS * 14.5 / 28 - float(mass @ (np.arange(_CANVAS) + 0.5)) / mass.sum()
        canvas = np.roll(canvas, min(max(round(shift), -int(drawn[0])), _CANVAS - 1 - int(drawn[-1])), axis=axis)
    return canvas


def requests(plan: Plan, index: int) -> Iterator[EncodedRequest]:
    """Draw the requests of the process with this index, now; return an endless mix of them by the weights of their sizes."""
    generator = np.random.default_rng((plan.seed, index))
    pools = [_pool(plan, size, generator) for size in plan.sizes]
    weights = np.array([size.weight for size in plan.sizes])
    of_size = generator.choice(len(pools), _MIX_LENGTH, p=weights / weights.sum())
    mix = [pools[which][turn % len(pools[which])] for turn, which in enumerate(of_size)]
    return cycle(mix)


def _pool(plan: Plan, size: Size, generator: np.random.Generator) -> list[EncodedRequest]:
    num_bytes = plan.images * size.height * size.width
    return [_encode(plan, size, generator) for _ in range(max(1, min(_MAX_REQUESTS, _MAX_POOL_BYTES // num_bytes)))]


def _encode(plan: Plan, size: Size, generator: np.random.Generator) -> EncodedRequest:
    # A few digits, repeated: drawing thousands would take longer than the measurement.
    drawn = [draw(int(digit), size, generator).tobytes() for digit in generator.integers(0, 10, min(plan.images, 16))]
    pixels = b"".join(drawn[number % len(drawn)] for number in range(plan.images))
    request = pb.ClassifyRequest(pixels=pixels, height=size.height, width=size.width, num_images=plan.images)
    if plan.method == STREAM:
        message = pb.ClassifyStreamRequest(request=request).SerializeToString()
    else:
        message = request.SerializeToString()
    return EncodedRequest(wire.add_prefix(message), plan.images)
