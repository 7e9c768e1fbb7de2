"""Figures for people: the confusion matrix in the terminal, and as JSON and a picture in the run's folder."""

import json
import unicodedata
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from digitserve_training.evaluate import Measurement, described

FOLDER = "report"

MAX_HEAD, MAX_NAME = 8, 24
"""Characters that are shown of a label's name at the head of a column, and elsewhere."""

MAX_NAMED = 50
"""Labels up to which the picture of the confusion matrix grows and names each; beyond, its axes have numbers."""


def render(name: str, measurement: Measurement) -> str:
    """Return a measurement as text: one line of figures, then the confusion matrix, zeros as dots."""
    confusion = measurement.confusion
    num_images, num_wrong = int(confusion.sum()), int(confusion.sum() - np.trace(confusion))
    figures = (
        f"{name}: accuracy {measurement.accuracy:.2%} ({num_wrong} of {num_images} wrong), loss {measurement.loss:.4f}"
    )
    title = "true \\ predicted"
    names, heads = ([name[:length] for name in measurement.names] for length in (MAX_NAME, MAX_HEAD))
    margin = max(map(_columns, (title, *names)))
    width = max(len(str(confusion.max())), *map(_columns, heads)) + 2
    header = _right(title, margin) + "".join(_right(head, width) for head in heads)
    rows = [
        _right(label, margin) + "".join((str(count) if count else "·").rjust(width) for count in row)
        for label, row in zip(names, confusion.tolist(), strict=True)
    ]
    return "\n".join((figures, header, *rows))


def write(run_dir: Path, measurements: dict[str, Measurement]) -> Path:
    """Write ``evaluation.json`` and a picture of each confusion matrix.

    Returns:
        The folder that holds them.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(described(measurements), indent=2) + "\n")
    for name, measurement in measurements.items():
        title, path = f"{name}: accuracy {measurement.accuracy:.2%}", folder / f"confusion_{name}.png"
        _draw(measurement.confusion, measurement.names, title, path)
    return folder


def _right(text: str, width: int) -> str:
    return " " * (width - _columns(text)) + text


def _columns(text: str) -> int:
    """Count the columns of a terminal that a text takes: characters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _draw(confusion: NDArray[np.int64], names: tuple[str, ...], title: str, path: Path) -> None:
    side = max(6.0, 0.35 * min(len(names), MAX_NAMED))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # The diagonal would drown the mistakes, which are what one looks for.
    axes.imshow(confusion - np.diag(np.diag(confusion)), cmap="Reds")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(names) <= MAX_NAMED:
        ticks, shown = range(len(names)), [_drawable(name[:MAX_NAME], number) for number, name in enumerate(names)]
        # A name is no formula, whatever dollar signs it has.
        axes.set_xticks(ticks, shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
        axes.set_yticks(ticks, shown, parse_math=False)
    # No version of matplotlib in the file, so that equal figures are equal bytes.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _drawable(name: str, number: int) -> str:
    """Return a label's name, or its number where the typeface of pictures lacks a character of the name."""
    typeface = FT2Font(findfont(FontProperties()))
    return name if all(typeface.get_char_index(ord(character)) for character in name) else str(number)
