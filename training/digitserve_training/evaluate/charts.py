"""Charts of a report: figures in, PNG bytes out, equal bytes for equal figures. Called by ``page``; needs no TensorFlow.

One accent colour and greys, told apart by lightness too; names stand at the lines, where there is room. The paper is
white and opaque: the page turns lightness around for dark screens.
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

from digitserve_training.evaluate.results import Row, by_recipe
from digitserve_training.evaluate.scores import Floats, Reliability

ACCENT, INK, GREY, PALE = "#0072b2", "#222222", "#767676", "#d9d9d9"
"""The accent is the blue of Okabe and Ito 2008, "Color Universal Design"."""

WIDTH_IN = 5.6
DPI = 200
"""Sharp at the page's width on screens with two pixels to the point."""

NUM_COLOURS = 128
"""Enough for two hues with smooth edges; fewer turn greys into blues."""

MAX_NAME, MAX_NAMED = 24, 50
"""Characters that are shown of a label's name; labels up to which an axis names them, beyond it has numbers."""

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
    # Names of labels and presets are text, whatever signs are in them.
    "text.parse_math": False,
    "lines.linewidth": 1.8,
}

Record = Mapping[str, float]


def losses(history: Sequence[Record]) -> bytes:
    """Draw the loss of training and of validation by epoch, on a logarithmic scale."""
    lines = {
        "training": ([record["training_loss"] for record in history], GREY),
        "validation": ([record["validation_loss"] for record in history], ACCENT),
    }

    def draw(axes: Axes) -> None:
        for name, (values, colour) in lines.items():
            _line(axes, range(1, len(values) + 1), values, name, colour)
        axes.set(yscale="log", xlabel="epoch", ylabel="loss in nats")
        axes.yaxis.set_major_formatter(_formatter("{:.3g}"))
        _sparse(axes)

    return _chart(draw, 3.0)


def accuracy(history: Sequence[Record]) -> bytes:
    """Draw the share of validation images that are answered wrongly by epoch, on a logarithmic scale."""
    wrong = np.array([1 - record["validation_accuracy"] for record in history])
    # No mistakes at all have no place on the scale: they are drawn at its lower end.
    shown = np.maximum(wrong, min([share for share in wrong if share > 0], default=1e-4) / 2)

    def draw(axes: Axes) -> None:
        _line(axes, range(1, len(wrong) + 1), shown, f"{wrong[-1]:.2%}".replace("%", " %"), ACCENT)
        axes.set(yscale="log", xlabel="epoch", ylabel="wrong of validation")
        axes.yaxis.set_major_formatter(_percent)
        _sparse(axes)

    return _chart(draw, 3.0)


def confusion(counts: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Draw a confusion matrix: mistakes shaded by their number, right answers in grey.

    Args:
        counts: int64[labels,labels], true label by predicted label.
        names: of the labels.
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
        shown = [_drawable(name[:MAX_NAME], number) for number, name in enumerate(names)]
        if num_labels <= MAX_NAMED:
            long = max(map(len, shown)) > 2
            axes.set_xticks(range(num_labels), shown, fontsize=min(size + 1, 10), rotation=60 if long else 0)
            axes.set_yticks(range(num_labels), shown, fontsize=min(size + 1, 10))
        axes.set_xticks(np.arange(num_labels - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(num_labels - 1) + 0.5, minor=True)
        axes.grid(which="minor", color=PALE, linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="answer", ylabel="true label")

    return _chart(draw, 5.4)


def _drawable(name: str, number: int) -> str:
    """Return a label's name, or its number where the typeface of pictures lacks a character of the name."""
    typeface = FT2Font(findfont(FontProperties()))
    return name if all(typeface.get_char_index(ord(character)) for character in name) else str(number)


def reliability(curves: Mapping[str, Reliability]) -> bytes:
    """Draw the accuracy of bins of answers against their confidence, and the gap between the two.

    Both axes are logarithmic in the distance from certainty, which spreads 99 %, 99.9 % and 99.99 % evenly. Bins beyond
    the last of these, such as those without a mistake, lie on the border.

    Args:
        curves: by name, the first in the accent colour.
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
            axis.set_major_formatter(_certainty)
            axis.set_minor_locator(NullLocator())
        axes.grid(color=PALE, linewidth=0.5)
        axes.set(xlabel="confidence", ylabel="share of right answers")
        axes.legend(frameon=False, loc="upper left", handletextpad=0.2)

    return _chart(draw, 5.0)


def rejection(refused: Floats, wrong: Floats) -> bytes:
    """Draw the error of the answers that are left when the least confident ones are refused.

    Args:
        refused: float64[N], as ``scores.rejection_curve`` gives them.
        wrong: float64[N].
    """
    # Where nine mistakes in ten are refused is what one looks for; a confident one would stretch the scale for nothing.
    few = np.flatnonzero(wrong <= wrong[0] / 10)
    sought = float(refused[few[0]]) if len(few) else 1.0
    end = min(float(np.ceil(1.3 * sought * 20)) / 20, 1.0) or 0.05

    def draw(axes: Axes) -> None:
        axes.step(refused, wrong, where="post", color=ACCENT)
        top = max(float(wrong[refused <= end].max()), 1e-4) * 1.12
        for at in np.searchsorted(refused, np.linspace(0, end, 6)[:-1]).clip(max=len(wrong) - 1):
            point = (float(refused[at]), float(wrong[at]))
            axes.plot(*point, "o", color=ACCENT, markersize=4, clip_on=False, zorder=3)
            axes.annotate(_share(point[1]), point, (5, 4), textcoords="offset points", color=ACCENT)
        axes.set(xlim=(0, end), ylim=(0, top), xlabel="refused, least confident first", ylabel="wrong of the others")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
        axes.set_xticks(np.linspace(0, end, 6))

    return _chart(draw, 3.2)


def strangeness(scores: Mapping[str, Floats], threshold: float) -> bytes:
    """Draw histograms of OOD scores one under the other, with the threshold through all of them.

    Args:
        scores: float[N] by kind; the first, of digits, in the accent colour.
        threshold: scores above it are refused.
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
        panels[0].set_title("refused →", fontsize=9, loc="right", pad=2)
        panels[-1].set_xlabel("OOD score; the dashed line is the threshold")

    return _figure(draw, 0.72 * len(scores) + 0.5)


def costs(rows: Iterable[Row]) -> bytes:
    """Draw test accuracy against multiply-adds: a point a run, a line at each recipe's mean, with its preset's name."""
    groups = by_recipe(rows)

    def draw(axes: Axes) -> None:
        for group in groups:
            cost, accuracies = [row.multiply_adds for row in group], [row.test_accuracy for row in group]
            axes.plot(cost, accuracies, "o", color=GREY, alpha=0.6, markersize=4)
            axes.plot(cost[0], mean(accuracies), "_", color=ACCENT, markersize=16, markeredgewidth=2.2)
        axes.set(xscale="log", xlabel="multiply-adds for one image", ylabel="test accuracy")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: _short(number)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_percent)
        axes.margins(x=0.15, y=0.2)
        _name_points(
            axes,
            [(group[0].preset, group[0].multiply_adds, max(row.test_accuracy for row in group)) for group in groups],
        )

    return _chart(draw, 4.0)


def _name_points(axes: Axes, points: Iterable[tuple[str, float, float]]) -> None:
    """Write names above points, higher where another name is in the way."""
    left, right = np.log10(axes.get_xlim())
    bottom, top = axes.get_ylim()
    taken: list[tuple[float, float]] = []
    for name, cost, accuracy in sorted(points, key=lambda point: (point[2], point[0])):
        x, y = (np.log10(cost) - left) / (right - left), (accuracy - bottom) / (top - bottom) + 0.05
        while any(abs(x - other_x) < 0.22 and abs(y - other_y) < 0.05 for other_x, other_y in taken):
            y += 0.02
        taken.append((x, y))
        axes.text(x, y, name, transform=axes.transAxes, ha="center", va="center", fontsize=9)


def _line(axes: Axes, x: Iterable[float], y: Iterable[float], name: str, colour: str) -> None:
    """Draw a line whose name stands at its end."""
    x, y = [*x], [*y]
    # A single epoch makes no line, but a point.
    axes.plot(x, y, color=colour, marker="o" if len(x) == 1 else None, markersize=4)
    axes.annotate(name, (x[-1], y[-1]), (5, 0), textcoords="offset points", color=colour, va="center")


def _sparse(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=PALE, linewidth=0.5)


def _short(number: float) -> str:
    return f"{number / 1e6:g} M" if number >= 1e6 else f"{number / 1e3:g} k"


def _share(share: float) -> str:
    return f"{share * 100:.2f} %"


def _formatter(pattern: str, scale: float = 1.0) -> FuncFormatter:
    return FuncFormatter(lambda number, _: pattern.format(number * scale))


_percent = _formatter("{:.4g} %", 100)
_certainty = FuncFormatter(lambda distance, _: f"{(1 - distance) * 100:.6g} %")


def _chart(draw: Callable[[Axes], None], height_in: float) -> bytes:
    """Draw on one pair of axes."""
    return _figure(lambda figure: draw(figure.subplots()), height_in)


def _figure(draw: Callable[[Figure], None], height_in: float) -> bytes:
    """Draw, and return PNG bytes that hold nothing but the picture."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    drawn = Image.open(buffer).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    drawn.save(packed, "PNG", optimize=True)
    return packed.getvalue()
