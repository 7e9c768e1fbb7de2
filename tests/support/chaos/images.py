"""The images that clients of the chaos run send: drawn once from a seed, of several sizes, formats and verdicts."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve.inference.model_folder import find_bundle
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.v1 import digits_pb2 as pb
from support.digits import MODELS
from support.infer_checks import infer_request

DIGITS = find_bundle(MODELS, "digits") / "golden.npz"
MAX_SCORE = -5.0
"""Digits of MNIST, whose scores are below ``MAX_SCORE``, and other images."""

MAX_FADING = 40
NUM_DIGITS = 160
"""Scaled digits; each is one image of 28x28, and some are others too."""

_FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}


class Shape(NamedTuple):
    """Height, width and channels: the images of one request have the same."""

    height: int
    width: int
    channels: int


class Images:
    """The images of a run.

    Attributes:
        pixels: uint8[H,W] or uint8[H,W,C] of each.
        by_shape: indices of the images of each shape.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with np.load(DIGITS) as stored:
            digits = [_crop(image) for image in stored["images"][stored["ood_score"] < MAX_SCORE, ..., 0]]
        chosen = [digits[number] for number in rng.integers(0, len(digits), NUM_DIGITS)]
        self.pixels: list[NDArray[np.uint8]] = []
        for number, digit in enumerate(chosen):
            self.pixels.append(_place(digit, int(rng.integers(18, 22)), (28, 28), rng))
            if number % 8 == 0:
                self.pixels.append(255 - _place(digit, 40, (64, 64), rng))
            elif number % 8 == 1:
                self.pixels.append(np.stack([255 - _place(digit, 30, (48, 40), rng)] * 3, axis=-1))
            elif number % 8 == 2:
                self.pixels.append(_place(digit, int(rng.integers(9, 28)), (28, 28), rng))
        self.pixels += [rng.integers(0, 256, (28, 28), np.uint8) for _ in range(8)]  # unfamiliar
        self.pixels += [np.zeros((28, 28), np.uint8), np.full((64, 64), 200, np.uint8)]  # blank
        two = np.concatenate([_place(digit, 18, (28, 28), rng) for digit in chosen[:2]], axis=1)
        self.pixels.append(two)  # several
        self.by_shape: dict[Shape, list[int]] = defaultdict(list)
        for index in range(len(self.pixels)):
            self.by_shape[self.shape(index)].append(index)

    def shape(self, index: int) -> Shape:
        """Return the shape of an image."""
        return Shape(*(*self.pixels[index].shape, 1)[:3])

    def request(self, indices: Sequence[int]) -> pb.ClassifyRequest:
        """Return the request for images of one shape."""
        height, width, channels = self.shape(indices[0])
        request = pb.ClassifyRequest(pixels=b"".join(self.pixels[index].tobytes() for index in indices))
        if (height, width, channels) != (28, 28, 1):
            request.height, request.width, request.pixel_format = height, width, _FORMATS[channels]
        return request

    def infer_request(self, indices: Sequence[int], *, raw: bool) -> oip.ModelInferRequest:
        """Return the request of the Open Inference Protocol for images of one shape; ``raw`` is how the pixels are sent."""
        pixels = b"".join(self.pixels[index].tobytes() for index in indices)
        return infer_request(pixels, (len(indices), *self.shape(indices[0])), raw=raw)


def _crop(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut an image to the square around its ink."""
    rows, columns = np.nonzero(image)
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    top, left = min(rows.min(), 28 - side), min(columns.min(), 28 - side)
    return image[top : top + side, left : left + side]


def _place(digit: NDArray[np.uint8], side: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scale a digit to ``side`` pixels and place it near the centre of an image of ``size``."""
    scaled = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    # Ink is uneven, so that no two images have the same answer.
    scaled = np.clip(scaled - rng.integers(0, MAX_FADING, scaled.shape), 0, 255).astype(np.uint8)
    image = np.zeros(size, np.uint8)
    top, left = ((length - side) // 2 for length in size)
    shift = int(rng.integers(-1, 2)) if top > 1 and left > 1 else 0
    image[top + shift : top + shift + side, left : left + side] = scaled
    return image
