"""Synthetic digits in shapes that MNIST does not contain: handwriting styles of several countries, and print.

``fit.pool`` mixes them into the training images. Does not import TensorFlow.
"""

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.synth import strokes
from digitserve_training.synth.glyphs import AILERON, TRAINING_TYPEFACES, draw_glyph
from digitserve_training.synth.strokes import DIGIT_STROKES

PRINTED_SHARE = 0.25
"""Share of printed digits. Without them, networks learn print as a sign that an image shows no digit."""


AILERON_SHARE = 0.4
"""Share of printed digits in ``AILERON``, from regular to heavy; the other typefaces share the rest equally."""

MAX_BOLD_PX = 2


def synthetic_digits(number: int, seed: int) -> tuple[Gray, NDArray[np.int64]]:
    """Draw digits as pen strokes in the styles of several countries, and a quarter of them in print.

    Returns:
        uint8[number,28,28,1], light ink on dark and framed as the service frames images, and the labels int64[number].
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, number)
    framed = [frame(_draw(str(label), generator), Ink.LIGHT_ON_DARK).pixels for label in labels]
    return np.stack(framed)[..., np.newaxis], labels


def _draw(label: str, generator: np.random.Generator) -> Gray:
    if generator.random() < PRINTED_SHARE:
        if generator.random() < AILERON_SHARE:
            return draw_glyph(label, AILERON, int(generator.integers(MAX_BOLD_PX + 1)))
        return draw_glyph(label, TRAINING_TYPEFACES[int(generator.integers(len(TRAINING_TYPEFACES)))])
    styles = DIGIT_STROKES[label]
    return strokes.draw_character(styles[int(generator.integers(len(styles)))], generator)
