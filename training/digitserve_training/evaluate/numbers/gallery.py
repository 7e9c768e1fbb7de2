"""The HTML page of an evaluation of the reader, in the style of the report of a run.

``report`` calls ``read_mistakes`` and ``render``; ``numbers.html.jinja`` defines the layout.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from digitserve.errors import ImageFileError
from digitserve_training.evaluate.formatting import percent
from digitserve_training.evaluate.key_figures import KeyFigure, grouped
from digitserve_training.evaluate.numbers.figures import Judged, NumberEvaluation
from digitserve_training.evaluate.numbers.table import COLUMNS, WITHOUT_SET, cells, flat
from digitserve_training.evaluate.page import make_environment
from digitserve_training.evaluate.pictures.gallery import png_url
from digitserve_training.evaluate.pictures.thumbnails import reduce
from digitserve_training.evaluate.scores import interval

SIDE_PX = 480
"""Longest side of the picture of a mistake: the digits of a page can still be recognised."""


class Mistake(NamedTuple):
    """A mistake with its image.

    Attributes:
        judged: the image and what was read.
        picture: the image, RGB, at most SIDE_PX on a side.
    """

    judged: Judged
    picture: Image.Image


def read_mistakes(mistakes: Iterable[Judged]) -> Iterator[Mistake]:
    """Load the images of mistakes again; files that have disappeared since are left out."""
    for judged in mistakes:
        try:
            pixels = judged.sample.load().pixels
        except ImageFileError:
            continue
        yield Mistake(judged, reduce(pixels, SIDE_PX))


def render(evaluation: NumberEvaluation, mistakes: Sequence[Mistake]) -> str:
    """Render the page; equal arguments give an equal page.

    Args:
        evaluation: all results.
        mistakes: the first of its mistakes, with their images.
    """
    environment = make_environment()
    environment.filters |= {"png": png_url, "flat": flat, "cells": cells}
    return environment.get_template("numbers/numbers.html.jinja").render(
        evaluation=evaluation,
        key_figures=[*_key_figures(evaluation)],
        columns=COLUMNS,
        mistakes=mistakes,
        without_set=WITHOUT_SET,
    )


def _key_figures(evaluation: NumberEvaluation) -> Iterator[KeyFigure]:
    overall = evaluation.overall
    low, high = interval(overall.num_exact, overall.num_images)
    yield KeyFigure(
        "Exact images",
        percent(overall.exact),
        f"The whole text is right for {grouped(overall.num_exact)} of {grouped(overall.num_images)} images. "
        f"95 % confidence interval (Wilson): {percent(low)} to {percent(high)}.",
    )
    yield KeyFigure(
        "Exact lines",
        percent(overall.exact_lines),
        f"{grouped(overall.text.num_exact_lines)} of {grouped(overall.text.num_lines)} lines.",
    )
    yield KeyFigure(
        "Characters right",
        percent(overall.characters_right),
        f"1 minus edit distance per character: {grouped(overall.text.num_edits)} insertions, deletions and replacements "
        f"correct {grouped(overall.text.num_characters)} characters.",
    )
