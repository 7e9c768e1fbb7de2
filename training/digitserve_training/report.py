"""Figures for people: the confusion matrix in the terminal, and as JSON and a picture in the run's folder."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from digitserve_training.data import LABELS
from digitserve_training.evaluate import Measurement, described

FOLDER = "report"


def render(name: str, measurement: Measurement) -> str:
    """Return a measurement as text: one line of figures, then the confusion matrix, zeros as dots."""
    confusion = measurement.confusion
    num_images, num_wrong = int(confusion.sum()), int(confusion.sum() - np.trace(confusion))
    figures = (
        f"{name}: accuracy {measurement.accuracy:.2%} ({num_wrong} of {num_images} wrong), loss {measurement.loss:.4f}"
    )
    width = len(str(confusion.max())) + 2
    header = "true \\ predicted" + "".join(label.rjust(width) for label in LABELS)
    rows = [
        label.rjust(len("true \\ predicted")) + "".join((str(count) if count else "·").rjust(width) for count in row)
        for label, row in zip(LABELS, confusion.tolist(), strict=True)
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
        _draw(measurement.confusion, f"{name}: accuracy {measurement.accuracy:.2%}", folder / f"confusion_{name}.png")
    return folder


def _draw(confusion: NDArray[np.int64], title: str, path: Path) -> None:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    # The diagonal would drown the mistakes, which are what one looks for.
    axes.imshow(confusion - np.diag(np.diag(confusion)), cmap="Reds")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    ticks = range(len(LABELS))
    axes.set(title=title, xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
    # No version of matplotlib in the file, so that equal figures are equal bytes.
    figure.savefig(path, dpi=100, metadata={"Software": None})
