"""Choice of the channel of a colour image that shows the ink: luma, red, green, blue or alpha.

``framing`` and ``batching.prepare`` call it for images that may be framed, on the worker's thread. No state is kept.
"""

import numpy as np

from digitserve.types import Gray, Ink
from digitserve.vision.gray import gray_range, to_gray
from digitserve.vision.resample import reduce_by_block_means

LOW_CONTRAST = 64
"""Range of grey levels of the luma below which a single channel may show the ink; no channel is used below that."""

MIN_CHANNEL_GAIN = 2
"""Smallest ratio of a channel's range of grey levels to the luma's."""


def select_channel(pixels: Gray, ink: Ink) -> tuple[Gray, Ink]:
    """Choose the grey image in which the ink of one image is seen.

    That is the luma, unless a single channel shows far more: ink as light as its paper, a yellow highlighter, white on
    transparent.

    Args:
        pixels: uint8[H, W, C]; C is 1 for grey, 3 for RGB, 4 for RGBA with straight alpha.
        ink: polarity of the luma, or AUTO.

    Returns:
        uint8[H, W], and its polarity: ``ink``, or AUTO if it is not the luma.
    """
    height, width, channels = pixels.shape
    luma = to_gray(pixels.reshape(-1), 1, height, width, channels)[0]
    contrast = _contrast(luma)
    if channels == 1 or contrast >= LOW_CONTRAST:
        return luma, ink
    best = luma
    for channel in range(channels):
        candidate = np.ascontiguousarray(pixels[..., channel])
        if (found := _contrast(candidate)) >= max(MIN_CHANNEL_GAIN * contrast, LOW_CONTRAST):
            best, contrast = candidate, found / MIN_CHANNEL_GAIN
    return best, ink if best is luma else Ink.AUTO


def _contrast(gray: Gray) -> float:
    low, high = gray_range(reduce_by_block_means(gray))
    return high - low
