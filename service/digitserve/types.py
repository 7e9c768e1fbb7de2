"""Types shared by the client, the service and the training package. This module imports nothing else of the project."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 28
"""Height and width of the network's input in pixels, as in MNIST."""

Gray = NDArray[np.uint8]
"""One grey image uint8[H, W], or several uint8[N, H, W]; 0 is black, 255 is white."""

FloatImage = NDArray[np.float32]
"""One image float32[H, W]: grey levels from 0 to 255, or ink strength from 0 to 1."""


class Ink(Enum):
    """Polarity of an image: whether its strokes are lighter or darker than their background."""

    LIGHT_ON_DARK = "light_on_dark"
    DARK_ON_LIGHT = "dark_on_light"
    AUTO = "auto"


class Framing(Enum):
    """How an image is converted to the network's input size.

    ``AS_IS`` keeps an image of 28x28 pixels; ``MNIST`` finds, scales and centres the digit. ``AUTO`` keeps an image of
    28x28 pixels that looks like MNIST's, and frames any other.
    """

    AS_IS = "as_is"
    MNIST = "mnist"
    AUTO = "auto"


def native_framing(labels: Sequence[str]) -> Framing:
    """Return the default framing of 28x28 images for a model with these labels.

    ``AUTO`` for digits. Images of other things need not look like MNIST's, so they are used as they are.
    """
    return Framing.AUTO if set(labels) <= set("0123456789") else Framing.AS_IS


def default_framing(height: int, width: int, native: Framing) -> Framing:
    """Return the framing of images of this size, in pixels, when a request states neither framing nor polarity.

    Args:
        height: of the images.
        width: of the images.
        native: of 28x28 images, from ``native_framing``.
    """
    return native if height == width == IMAGE_SIZE else Framing.MNIST


def default_ink(framing: Framing) -> Ink:
    """Return the polarity of images with this framing when a request does not state it."""
    return Ink.LIGHT_ON_DARK if framing is Framing.AS_IS else Ink.AUTO


class Source:
    """Where requests come from: a connection. Sources share the queue of a worker fairly.

    Owned by the connection; the batcher and ``transport.health`` count.

    Attributes:
        is_connection: whether it stands for all RPCs of a connection; false if the transport does not know the connection.
        small_images: pending images of its small requests.
        large_images: pending images of its large requests.
        num_readings: its requests to read an image that are not answered yet.
        num_watches: open health watches.
    """

    __slots__ = ("is_connection", "large_images", "num_readings", "num_watches", "small_images")

    def __init__(self, *, is_connection: bool = True) -> None:
        self.is_connection = is_connection
        self.small_images = 0
        self.large_images = 0
        self.num_readings = 0
        self.num_watches = 0


class Box(NamedTuple):
    """A rectangle in pixels of an image or a mask.

    Attributes:
        top: first row.
        bottom: row after the last one.
        left: first column.
        right: column after the last one.
    """

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    @property
    def longest(self) -> int:
        """Longest side."""
        return max(self.bottom - self.top, self.right - self.left)

    def touches(self, shape: tuple[int, ...]) -> bool:
        """Return whether it reaches the border of a mask of this shape."""
        return self.top == 0 or self.left == 0 or self.bottom == shape[0] or self.right == shape[1]
