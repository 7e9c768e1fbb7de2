"""Small images of the mistakes: the file, and the 28x28 pixels that the network saw.

``report`` calls ``read_mistakes``; ``sheet`` and ``gallery`` show the result. Does not import TensorFlow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve.batching.prepare import prepare_image
from digitserve.errors import ImageFileError
from digitserve.types import native_framing
from digitserve.vision.image_files import read_image_file
from digitserve_training.evaluate.pictures.figures import Judged

SIDE_PX = 112
"""Longest side of the thumbnail of a file: four times the network's input."""

BEHIND = (150, 150, 150)
"""Grey behind transparent pixels: black ink and white ink are both visible on it."""


@dataclass(frozen=True)
class Mistake:
    """A mistake with its images.

    Attributes:
        judged: file and answer.
        picture: the file, RGB, at most SIDE_PX on a side.
        seen: the network's input, grey, 28x28.
    """

    judged: Judged
    picture: Image.Image = field(repr=False)
    seen: Image.Image = field(repr=False)

    @property
    def title(self) -> str:
        """Label and answer."""
        return f"{self.judged.picture.label or 'no digit'} → {self.judged.answer.label or 'blank'}"


def read_mistakes(folder: Path, mistakes: Iterable[Judged], labels: Sequence[str]) -> Iterator[Mistake]:
    """Read the files of mistakes again; files that have disappeared since are left out.

    Args:
        folder: that holds the files.
        mistakes: files with wrong answers.
        labels: of the model, which decide how 28x28 images are framed.
    """
    native = native_framing(labels)
    for judged in mistakes:
        try:
            pixels = read_image_file(folder / judged.picture.file)
        except ImageFileError:
            continue
        yield Mistake(judged, reduce(pixels), Image.fromarray(prepare_image(pixels, native).images[0, ..., 0]))


def reduce(pixels: NDArray[np.uint8], side_px: int = SIDE_PX) -> Image.Image:
    """Fit an image into a square: large images are smoothed, small ones keep sharp pixels.

    Args:
        pixels: uint8[H,W,C] with C of 1, 3 or 4.
        side_px: side of the square.

    Returns:
        An RGB image.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    scale = side_px / max(image.size)
    width, height = (max(1, round(side * (scale if scale < 1 else int(scale)))) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    if image.mode == "RGBA":
        behind = Image.new("RGBA", image.size, (*BEHIND, 255))
        image = Image.alpha_composite(behind, image)
    return image.convert("RGB")
