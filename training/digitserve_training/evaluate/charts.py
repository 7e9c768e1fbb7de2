"""Charts of a report: each function takes figures and returns a PNG; equal figures give equal bytes.

Called by ``page``. Charts use one accent colour and greys that also differ in lightness, and label lines directly where
there is room. The background is white and opaque; the page inverts the lightness in dark mode. Does not import
TensorFlow.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from digitserve_training.evaluate.formatting import percent
from digitserve_training.evaluate.results import Row, group_by_seed
from digitserve_training.evaluate.scores import Floats, Reliability

ACCENT, INK, GREY, PALE = "#0072b2", "#222222", "#767676", "#d9d9d9"
"""ACCENT is the blue of Okabe and Ito 2008, "Color Universal Design"."""

WIDTH_IN = 5.6
DPI = 200
"""Sharp at the page's width on screens with two device pixels per CSS pixel."""

NUM_COLOURS = 128
"""Size of the PNG palette: enough for two hues with smooth edges; with fewer colours greys become blue."""

MAX_NAME_LENGTH, MAX_NAMED_LABELS = 24, 50
"""Longer names of labels are cut; with more labels the axes show numbers in place of names."""

_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    # Names of labels and presets are plain text, even if they contain dollar signs.
    "text.parse_math": False,
    "lines.linewidth": 1.8,
}

Record = Mapping[str, float]


def losses(history: Sequence[Record]) -> bytes:
    """Plot training loss and validation loss by epoch, on a logarithmic scale."""
    lines = {
        "training": ([record["training_loss"] for record in history], GREY),
        "validation": ([record["validation_loss"] for record in history], ACCENT),
    }

    def draw(axes: Axes) -> None:
        for name, (values, colour) in lines.items():
            _line(axes, range(1, len(values) + 1), values, name, colour)
        axes.set(yscale="log", xlabel="epoch", ylabel="loss in nats")
        axes.yaxis.set_major_formatter(_formatter("{:.3g}"))
        _set_ticks(axes)

    return _chart(draw, 3.0)


def accuracy(history: Sequence[Record]) -> bytes:
    """Plot the validation error by epoch, on a logarithmic scale."""
    wrong = np.array([1 - record["validation_accuracy"] for record in history])
    # A logarithmic scale has no zero: an error of 0 is drawn below the smallest other one.
    shown = np.maximum(wrong, min([share for share in wrong if share > 0], default=1e-4) / 2)

    def draw(axes: Axes) -> None:
        _line(axes, range(1, len(wrong) + 1), shown, percent(wrong[-1]), ACCENT)
        axes.set(yscale="log", xlabel="epoch", ylabel="validation error")
        axes.yaxis.set_major_formatter(_percent_ticks)
        _set_ticks(axes)

    return _chart(draw, 3.0)


def confusion(counts: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Draw a confusion matrix: the shade of a cell shows the number of mistakes; right predictions are grey numbers.

    Args:
        counts: int64[labels,labels], true label by predicted label.
        names: names of the labels.
    """
    num_labels = len(names)
    wrong = counts - np.diag(np.diag(counts))
    largest = max(int(wrong.max()), 1)
    size = float(np.interp(num_labels, (10, 26), (9, 5)))

    def draw(axes: Axes) -> None:
        axes.imshow(wrong, cmap=mpl.colors.LinearSegmentedColormap.from_list("mistakes", ["white", ACCENT]))
        for (line, column), count in np.ndenumerate(counts):
            if count:
                colour = GREY if line == column else ("white" if count > largest * 0.55 else INK)
                axes.text(column, line, str(count), ha="center", va="center", fontsize=size, color=colour)
        shown = [_drawable(name[:MAX_NAME_LENGTH], number) for number, name in enumerate(names)]
        if num_labels <= MAX_NAMED_LABELS:
            long = max(map(len, shown)) > 2
            axes.set_xticks(range(num_labels), shown, fontsize=min(size + 1, 10), rotation=60 if long else 0)
            axes.set_yticks(range(num_labels), shown, fontsize=min(size + 1, 10))
        axes.set_xticks(np.arange(num_labels - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(num_labels - 1) + 0.5, minor=True)
        axes.grid(which="minor", color=PALE, linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted label", ylabel="true label")

    return _chart(draw, 5.4)


def _drawable(name: str, number: int) -> str:
    """Return the name of a label, or its number if the chart's font lacks a character of the name."""
    typeface = FT2Font(findfont(FontProperties()))
    return name if all(typeface.get_char_index(ord(character)) for character in name) else str(number)


def reliability(curves: Mapping[str, Reliability]) -> bytes:
    """Draw a reliability diagram: accuracy of each bin by its confidence, with the gap between them.

    Both axes are logarithmic in 1 - value, so 99 %, 99.9 % and 99.99 % have equal distances. Bins above 99.99 %, for
    example those without a mistake, are drawn on the border.

    Args:
        curves: bins by name; the first is drawn in the accent colour.
    """
    nearest = 1e-4

    def draw(axes: Axes) -> None:
        axes.plot((1, nearest), (1, nearest), color=PALE, linewidth=1.2, zorder=1)
        for (name, curve), colour, marker in zip(curves.items(), (ACCENT, GREY), ("o", "s"), strict=False):
            unsure, wrong = (np.maximum(1 - values, nearest) for values in (curve.confidence, curve.accuracy))
            axes.vlines(unsure, unsure, wrong, color=colour, linewidth=1.2, alpha=0.6, zorder=2)
            axes.plot(unsure, wrong, marker, color=colour, markersize=5, label=name, clip_on=False, zorder=3)
        axes.set(xscale="log", yscale="log", xlim=(1, nearest), ylim=(1, nearest), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(mpl.ticker.FixedLocator([0.5, 0.1, 0.01, 0.001, nearest]))
            axis.set_major_formatter(_confidence_ticks)
            axis.set_minor_locator(NullLocator())
        axes.grid(color=PALE, linewidth=0.5)
        axes.set(xlabel="confidence", ylabel="accuracy")
        axes.legend(frameon=False, loc="upper left", handletextpad=0.2)

    return _chart(draw, 5.0)


def rejection(rejected: Floats, error: Floats) -> bytes:
    """Plot the error of the accepted predictions by the share of rejected ones.

    Args:
        rejected: float64[N], first result of ``scores.rejection_curve``.
        error: float64[N], second result.
    """
    # The x axis ends soon after the point where nine of ten mistakes are rejected; a confident mistake does not extend it.
    small = np.flatnonzero(error <= error[0] / 10)
    sufficient = float(rejected[small[0]]) if len(small) else 1.0
    end = min(float(np.ceil(1.3 * sufficient * 20)) / 20, 1.0) or 0.05

    def draw(axes: Axes) -> None:
        axes.step(rejected, error, where="post", color=ACCENT)
        top = max(float(error[rejected <= end].max()), 1e-4) * 1.12
        for at in np.searchsorted(rejected, np.linspace(0, end, 6)[:-1]).clip(max=len(error) - 1):
            point = (float(rejected[at]), float(error[at]))
            axes.plot(*point, "o", color=ACCENT, markersize=4, clip_on=False, zorder=3)
            axes.annotate(percent(point[1]), point, (5, 4), textcoords="offset points", color=ACCENT)
        axes.set(
            xlim=(0, end),
            ylim=(0, top),
            xlabel="rejected predictions, least confident first",
            ylabel="error of the accepted",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent_ticks)
        axes.set_xticks(np.linspace(0, end, 6))

    return _chart(draw, 3.2)


def ood_scores(scores: Mapping[str, Floats], threshold: float) -> bytes:
    """Draw one histogram of OOD scores per kind, with the threshold as a line through all of them.

    Args:
        scores: float[N] by kind; the first kind is the digits, in the accent colour.
        threshold: images with higher scores are rejected.
    """
    low, high = np.quantile(np.concatenate([*scores.values()]), (0.001, 0.999)).tolist()
    edges = np.linspace(low, high, 71)

    def draw(figure: Figure) -> None:
        panels: NDArray[Any] = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(panels, scores.items(), strict=True):
            colour = ACCENT if axes is panels[0] else GREY
            counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.75)
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_title(name, fontsize=9, color=colour, pad=2)
            axes.set(yticks=[], xlim=(edges[0], edges[-1]))
            axes.spines["left"].set_visible(False)
            axes.tick_params(bottom=axes is panels[-1])
        panels[0].set_title("rejected →", fontsize=9, loc="right", pad=2)
        panels[-1].set_xlabel("OOD score; the dashed line is the threshold")

    return _figure(draw, 0.72 * len(scores) + 0.5)


def accuracy_by_cost(rows: Iterable[Row]) -> bytes:
    """Plot test accuracy by multiply-adds: one point per run, and a line at the mean of the runs that differ in seed."""
    groups = group_by_seed(rows)

    def draw(axes: Axes) -> None:
        for group in groups:
            cost, accuracies = [row.multiply_adds for row in group], [row.test_accuracy for row in group]
            axes.plot(cost, accuracies, "o", color=GREY, alpha=0.6, markersize=4)
            axes.plot(cost[0], mean(accuracies), "_", color=ACCENT, markersize=16, markeredgewidth=2.2)
        axes.set(xscale="log", xlabel="multiply-adds per image", ylabel="test accuracy")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: _abbreviate(number)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_percent_ticks)
        axes.margins(x=0.15, y=0.2)
        _name_points(
            axes,
            [(group[0].preset, group[0].multiply_adds, max(row.test_accuracy for row in group)) for group in groups],
        )

    return _chart(draw, 4.0)


def _name_points(axes: Axes, points: Iterable[tuple[str, float, float]]) -> None:
    """Write a name above each point, higher if another name is in the way."""
    left, right = np.log10(axes.get_xlim())
    bottom, top = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for name, cost, accuracy in sorted(points, key=lambda point: (point[2], point[0])):
        x, y = (np.log10(cost) - left) / (right - left), (accuracy - bottom) / (top - bottom) + 0.05
        while any(abs(x - other_x) < 0.22 and abs(y - other_y) < 0.05 for other_x, other_y in placed):
            y += 0.02
        placed.append((x, y))
        axes.text(x, y, name, transform=axes.transAxes, ha="center", va="center", fontsize=9)


def _line(axes: Axes, x: Iterable[float], y: Iterable[float], name: str, colour: str) -> None:
    """Draw a line with its name at the end."""
    x, y = [*x], [*y]
    # One epoch is not a line: it is drawn as a point.
    axes.plot(x, y, color=colour, marker="o" if len(x) == 1 else None, markersize=4)
    axes.annotate(name, (x[-1], y[-1]), (5, 0), textcoords="offset points", color=colour, va="center")


def _set_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=PALE, linewidth=0.5)


def _abbreviate(number: float) -> str:
    return f"{number / 1e6:g} M" if number >= 1e6 else f"{number / 1e3:g} k"


def _formatter(pattern: str, scale: float = 1.0) -> FuncFormatter:
    return FuncFormatter(lambda number, _: pattern.format(number * scale))


_percent_ticks = _formatter("{:.4g} %", 100)
_confidence_ticks = FuncFormatter(lambda distance, _: f"{(1 - distance) * 100:.6g} %")


def _chart(draw: Callable[[Axes], None], height_in: float) -> bytes:
    """Draw a figure with one pair of axes."""
    return _figure(lambda figure: draw(figure.subplots()), height_in)


def _figure(draw: Callable[[Figure], None], height_in: float) -> bytes:
    """Draw a figure and return it as a PNG without metadata."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return png.getvalue()
