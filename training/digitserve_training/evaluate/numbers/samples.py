"""An image of numbers and what it shows. Made by ``listing`` and ``simulated``; ``report`` reads it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.readings import ReadOptions
from digitserve.types import Box

Pixels = NDArray[np.uint8]


class Digits(NamedTuple):
    """The digits of an image.

    Attributes:
        boxes: of their ink, in pixels of the image.
        labels: of each digit, such as "7".
    """

    boxes: tuple[Box, ...]
    labels: tuple[str, ...]


class Shown(NamedTuple):
    """An image with what it shows.

    Attributes:
        pixels: uint8[H,W,C] with C of 1, 3 or 4.
        text: lines separated by slashes or line breaks.
        digits: all of them; None if only the text is known.
    """

    pixels: Pixels
    text: str
    digits: Digits | None = None


class Sample(NamedTuple):
    """An image that is loaded or drawn when it is needed; equal each time.

    Attributes:
        name: path of the file, or kind and number of a drawing.
        group: set or kind, for tables.
        options: how the reader is asked.
        load: returns the image; raises ``ImageFileError`` if it cannot be read.
    """

    name: str
    group: str
    options: ReadOptions
    load: Callable[[], Shown]
