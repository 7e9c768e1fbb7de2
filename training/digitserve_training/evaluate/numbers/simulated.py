"""Synthetic images of numbers for the evaluation: fields by length and share of touching digits, pages, ruled cells.

``report`` calls ``list_samples``. Digits are test images, which no network was trained on. Each image has a generator of its
own, so that more images per kind leave the first ones unchanged.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from digitserve.protocol.names import Layout
from digitserve.protocol.readings import ReadOptions
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate.numbers.samples import Digits, Sample, Shown
from digitserve_training.synth import number_pages, numbers
from digitserve_training.synth.numbers import FieldStyle, Number

SEED = 16

LENGTHS = (1, 5, 10)
TOUCHING_SHARES = (0.0, 0.2, 0.5)

LINE = ReadOptions(layout=Layout.LINE)


class Kind(NamedTuple):
    """A kind of synthetic images.

    Attributes:
        name: for tables.
        options: how the reader is asked.
        draw: draws one image from a generator, digit images and labels.
    """

    name: str
    options: ReadOptions
    draw: Callable[..., Number]


def _fields() -> list[Kind]:
    return [
        Kind(_field_name(length, share), LINE, partial(numbers.field, num_digits=length, touching_share=share))
        for length in LENGTHS
        for share in (TOUCHING_SHARES if length > 1 else (0.0,))
    ]


def _field_name(length: int, share: float) -> str:
    digits = f"{length} digit{'s' if length > 1 else ''}"
    return f"{digits}, {share:.0%} touching" if length > 1 else digits


KINDS = (
    *_fields(),
    Kind(
        "5 digits, 20% touching, number of digits stated",
        LINE._replace(num_digits=5),
        partial(numbers.field, num_digits=5, touching_share=0.2),
    ),
    Kind(
        "5 digits, underlined or in a box",
        LINE,
        partial(numbers.field, num_digits=5, style=FieldStyle(underline_share=0.5, frame_share=0.5)),
    ),
    Kind(
        "5 digits with separators", LINE, partial(numbers.field, num_digits=5, style=FieldStyle(separator_share=0.25))
    ),
    Kind("pages", ReadOptions(layout=Layout.PAGE), number_pages.page),
    Kind("ruled cells", ReadOptions(layout=Layout.CELLS), number_pages.cells),
)


def list_samples(test: Labelled, number: int) -> list[Sample]:
    """List synthetic images.

    Args:
        test: images of single digits.
        number: of images of each kind.
    """
    return [
        Sample(f"{kind.name} #{index}", kind.name, kind.options, partial(_draw, kind, test, index))
        for kind in KINDS
        for index in range(number)
    ]


def _draw(kind: Kind, test: Labelled, index: int) -> Shown:
    # The name is part of the seed, so that a new kind changes no other one.
    generator = np.random.default_rng([SEED, index, *kind.name.encode()])
    drawn = kind.draw(generator, test.images, test.labels)
    digits = Digits(drawn.boxes, tuple(map(str, drawn.labels)))
    return Shown(drawn.pixels[..., np.newaxis], drawn.text, digits)
