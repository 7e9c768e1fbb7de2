"""Types that the client, the service and the training package share. Imports nothing of ours."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 28
"""Height and width of the network's input, in pixels: MNIST's."""

Gray = NDArray[np.uint8]
"""One grey image uint8[H,W], or several uint8[N,H,W]; 0 is black, 255 is white."""


class Ink(Enum):
    """Which side of the grey scale the strokes are on."""

    LIGHT_ON_DARK = "light_on_dark"
    DARK_ON_LIGHT = "dark_on_light"
    AUTO = "auto"


class Framing(Enum):
    """How an image is brought to the network's size."""

    AS_IS = "as_is"
    MNIST = "mnist"
