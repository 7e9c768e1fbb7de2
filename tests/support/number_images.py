"""Pages and forms of scikit-learn's digits, dark on light, for tests of callers of ``Read``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.digits import scanned_digits

DIGIT = 36
"""Height and width of a digit in pixels, with its margin."""

LINE = 64
"""Height of a line in pixels."""


def page_of(*texts: str) -> NDArray[np.uint8]:
    """Return uint8[H,W]: a line for each text of digits, on white paper with wide margins."""
    page = np.full((LINE * (len(texts) + 1), DIGIT * (max(map(len, texts)) + 4)), 255, np.uint8)
    for row, text in enumerate(texts):
        for column, digit in enumerate(_digits(text)):
            top, left = LINE // 2 + row * LINE, DIGIT * (column + 2)
            page[top : top + DIGIT, left : left + DIGIT] = digit
    return page


def form_of(text: str) -> NDArray[np.uint8]:
    """Return uint8[H,W]: a row of boxes with a digit each; a space is an empty box."""
    cell, line = DIGIT + 16, 2
    form = np.full((3 * cell, (len(text) + 2) * cell), 255, np.uint8)
    right = (len(text) + 1) * cell
    for top in (cell, 2 * cell):
        form[top : top + line, cell : right + line] = 90
    for column in range(len(text) + 1):
        form[cell : 2 * cell, (column + 1) * cell : (column + 1) * cell + line] = 90
    for column, digit in enumerate(_digits(text)):
        top, left = cell + 8, (column + 1) * cell + 9
        form[top : top + DIGIT, left : left + DIGIT] = np.minimum(form[top : top + DIGIT, left : left + DIGIT], digit)
    return form


def _digits(text: str) -> Sequence[NDArray[np.uint8]]:
    """Return an image for each character; a space is an empty one. Texts have no 5: people too read the first one there as a 3."""
    images, labels = scanned_digits()
    pictures = []
    for character in text:
        picture = np.full((DIGIT, DIGIT), 255, np.uint8)
        if character != " ":
            first = images[int(np.argmax(labels == int(character)))]
            picture = 255 - np.asarray(Image.fromarray(first).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC))
        pictures.append(picture)
    return pictures
