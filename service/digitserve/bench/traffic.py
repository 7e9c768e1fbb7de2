"""The requests that are sent: seeded images of digits, drawn with strokes, encoded once before the load begins."""

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
"""For each digit its strokes, in a box of 1 x 1, y downwards."""

_CANVAS = 112
"""Drawn four times as large as MNIST's images, then brought to the size that is asked for."""

_MAX_POOL_BYTES = 1 << 24
_MAX_BODIES = 64
_MIX_LENGTH = 4_096


@dataclass(frozen=True)
class Body:
    """A request, ready to be sent.

    Attributes:
        framed: the message with gRPC's prefix.
        num_images: predictions that its answer must have.
    """

    framed: bytes
    num_images: int


def draw(digit: int, size: Size, chance: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a digit with a round pen, light on dark, each time a little different.

    Returns:
        uint8[height, width].
    """
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(canvas)
    width = int(chance.integers(8, 13))
    slant, squeeze = chance.uniform(-0.15, 0.15), chance.uniform(0.7, 0.9)
    for stroke in _STROKES[digit]:
        points = np.array(stroke) - 0.5 + chance.normal(0, 0.015, (len(stroke), 2))
        points[:, 0] = points[:, 0] * squeeze - slant * points[:, 1]
        # MNIST's ink fills 20 of 28 pixels.
        points = points * _CANVAS * 18 / 28 + _CANVAS / 2
        pen.line([(float(x), float(y)) for x, y in points], fill=255, width=width, joint="curve")
        for x, y in points[[0, -1]]:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return np.asarray(canvas.resize((size.width, size.height), Image.Resampling.BOX))


def bodies(plan: Plan, index: int) -> Iterator[Body]:
    """Draw a process's requests, now; return them for ever: a mix by weight from a pool of different ones."""
    chance = np.random.default_rng((plan.seed, index))
    pools = [_pool(plan, size, chance) for size in plan.sizes]
    weights = np.array([size.weight for size in plan.sizes])
    of_size = chance.choice(len(pools), _MIX_LENGTH, p=weights / weights.sum())
    mix = [pools[which][turn % len(pools[which])] for turn, which in enumerate(of_size)]
    return cycle(mix)


def _pool(plan: Plan, size: Size, chance: np.random.Generator) -> list[Body]:
    num_bytes = plan.images * size.height * size.width
    return [_body(plan, size, chance) for _ in range(max(1, min(_MAX_BODIES, _MAX_POOL_BYTES // num_bytes)))]


def _body(plan: Plan, size: Size, chance: np.random.Generator) -> Body:
    # A few digits, repeated: drawing thousands would take longer than the measuring.
    drawn = [draw(int(digit), size, chance).tobytes() for digit in chance.integers(0, 10, min(plan.images, 16))]
    pixels = b"".join(drawn[number % len(drawn)] for number in range(plan.images))
    request = pb.ClassifyRequest(pixels=pixels, height=size.height, width=size.width, num_images=plan.images)
    if plan.method == STREAM:
        message = pb.ClassifyStreamRequest(request=request).SerializeToString()
    else:
        message = request.SerializeToString()
    return Body(wire.frame(message), plan.images)
