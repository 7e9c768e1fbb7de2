"""The search space of a preset: ranges of hyperparameters around its values, and the preset with drawn values.

``search`` draws the values; ``cli`` lists the groups. Needs neither TensorFlow nor Optuna.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from digitserve_training.errors import RunError
from digitserve_training.model.layers import (
    INPUT_SHAPE,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    Residual,
)
from digitserve_training.model.preset_files import SHARES
from digitserve_training.model.presets import Augmentation, Preset

BLOCK = 16
"""Numbers of filters are rounded to multiples of it, which suits onnxruntime's blocked convolutions."""

LARGEST_KERNEL = 5
"""Larger kernels are searched only if the base preset has them."""

SHAPE = "shape"
"""Group of the convolutions' shapes."""

VALID, SAME = 0.0, 1.0
"""Values of the hyperparameter ``padding``."""

_OF_SHAPE = re.compile("(filters|kernel|stride|padding|depth)_[0-9]+")


@dataclass(frozen=True)
class Range:
    """Range of one hyperparameter.

    Attributes:
        low: smallest value.
        high: largest value.
        base: value of the base preset.
        log: whether values are drawn on a logarithmic scale.
        step: between values, None for a continuous range.
    """

    low: float
    high: float
    base: float
    log: bool = False
    step: float | None = None


def _learning_rate(preset: Preset) -> dict[str, Range]:
    rate = preset.recipe.learning_rate
    return {"learning_rate": Range(rate / 10, rate * 10, rate, log=True)}


def _weight_decay(preset: Preset) -> dict[str, Range]:
    decay = preset.recipe.weight_decay
    return {"weight_decay": Range(0.0, max(0.2, 2 * decay), decay)}


def _width(_: Preset) -> dict[str, Range]:
    return {"width": Range(0.5, 2.0, 1.0, step=0.25)}


def _dropout(preset: Preset) -> dict[str, Range]:
    rates = [layer.rate for layer in _flat(preset.layers) if isinstance(layer, Dropout)]
    return {f"dropout_{number}": Range(0.0, max(0.7, rate), rate) for number, rate in enumerate(rates, start=1)}


def _augmentation(preset: Preset) -> dict[str, Range]:
    bounds = preset.augmentation
    ranges = {} if replace(bounds, corrupted=0.0) == Augmentation() else {"augmentation": Range(0.0, 2.0, 1.0)}
    corrupted = {"corrupted": Range(0.0, max(0.8, bounds.corrupted), bounds.corrupted)} if bounds.corrupted else {}
    return ranges | corrupted


def _shape(preset: Preset) -> dict[str, Range]:
    """Return the ranges of each convolution. A residual block has none, because its shortcut must fit its inner layers."""
    if any(isinstance(layer, Residual) for layer in preset.layers):
        return {}
    ranges = {}
    convs = [(layer, covers) for layer, covers in _with_coverage(preset.layers) if isinstance(layer, Conv)]
    for number, (conv, covers) in enumerate(convs, start=1):
        if conv.filters % BLOCK == 0:
            ranges[f"filters_{number}"] = Range(BLOCK, 2 * conv.filters, conv.filters, step=BLOCK)
        if covers:
            continue
        largest = max(conv.kernel, LARGEST_KERNEL)
        ranges[f"kernel_{number}"] = Range(min(conv.kernel, conv.stride), largest, conv.kernel, step=1)
        ranges[f"padding_{number}"] = Range(VALID, SAME, SAME if conv.padding == "same" else VALID, step=1)
        if conv.stride > 1:
            # A smaller stride multiplies the time of all later layers: most of such networks would be skipped.
            ranges[f"stride_{number}"] = Range(conv.stride, conv.stride + 1, conv.stride, step=1)
        ranges[f"depth_{number}"] = Range(1 if number == 1 else 0, 2, 1, step=1)
    return ranges


GROUPS: Mapping[str, Callable[[Preset], dict[str, Range]]] = {
    "learning-rate": _learning_rate,
    "weight-decay": _weight_decay,
    "width": _width,
    "dropout": _dropout,
    "augmentation": _augmentation,
    SHAPE: _shape,
}
"""Groups of hyperparameters, each with its ranges for a preset; a group that does not apply to the preset has none.

The shape of convolution N has ``filters_N``, ``kernel_N``, ``stride_N`` if the base has one, ``padding_N`` (0 none, 1 same),
and ``depth_N``: 0 omits the convolution, 2 adds a 1x1 convolution after it."""


def default_groups(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the groups that vary by default: the shape if time is an objective, otherwise everything else."""
    return tuple(group for group in GROUPS if (group == SHAPE) == ("time" in objectives))


def search_ranges(preset: Preset, groups: tuple[str, ...]) -> dict[str, Range]:
    """Return the ranges of all hyperparameters in the groups, by name.

    Raises:
        RunError: none of the groups applies to the preset.
    """
    found = {name: drawn for group in groups for name, drawn in GROUPS[group](preset).items()}
    if not found:
        raise RunError(f"preset '{preset.name}' has no {' and no '.join(groups)} to vary; vary something else")
    return found


def with_values(preset: Preset, values: Mapping[str, float]) -> Preset:
    """Return a preset with other hyperparameters, rounded to three digits so that the preset file is what was trained.

    Args:
        preset: the base.
        values: by the names of ``search_ranges``; others are unchanged.
    """
    rounded = {name: float(f"{value:.3g}") for name, value in values.items()}
    recipe = preset.recipe
    rates = iter(rounded[name] for name in sorted(rounded, key=_number) if name.startswith("dropout_"))
    return replace(
        preset,
        name=f"{preset.name}-tuned",
        layers=tuple(_layers(_shaped(preset.layers, values), rounded.get("width", 1.0), rates)),
        recipe=replace(
            recipe,
            learning_rate=rounded.get("learning_rate", recipe.learning_rate),
            weight_decay=rounded.get("weight_decay", recipe.weight_decay),
        ),
        augmentation=_bounds(preset.augmentation, rounded),
    )


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if name.startswith("dropout_") else 0


def of_shape(name: str) -> bool:
    """Return whether a hyperparameter is in the group ``shape``."""
    return _OF_SHAPE.fullmatch(name) is not None


def _with_coverage(layers: Sequence[Layer]) -> Iterator[tuple[Layer, bool]]:
    """Yield each layer, and whether it is a convolution without padding whose kernel covers its whole input."""
    shape = INPUT_SHAPE
    for layer in layers:
        yield layer, isinstance(layer, Conv) and layer.padding == "valid" and layer.kernel == shape[0]
        shape = layer.cost(shape).output


def _shaped(layers: Sequence[Layer], values: Mapping[str, float]) -> Iterator[Layer]:
    """Yield the layers with the convolutions of the drawn shape; what no longer fits is changed until it does.

    A kernel without padding is at most as large as its input. One that covers its whole input in the base still does. Pooling
    over more than the input is omitted.
    """
    number, shape = 0, INPUT_SHAPE
    for layer, covers in _with_coverage(layers):
        parts: tuple[Layer, ...] = (layer,)
        if isinstance(layer, Conv):
            number += 1
            parts = _convolution(layer, number, values, shape[0], covers=covers)
        elif isinstance(layer, MaxPool | AveragePool) and layer.size > shape[0]:
            parts = ()
        for part in parts:
            shape = part.cost(shape).output
            yield part


def _convolution(base: Conv, number: int, values: Mapping[str, float], side: int, *, covers: bool) -> tuple[Conv, ...]:
    """Return what the drawn shape makes of a convolution of the base: none, one, or one and a 1x1 convolution.

    Args:
        base: the convolution.
        number: of the convolution in the base, from 1.
        values: the drawn values by name.
        side: height and width of its input.
        covers: whether the kernel covers the whole input.
    """

    def value(name: str, unchanged: float) -> int:
        return round(values.get(f"{name}_{number}", unchanged))

    padded = value("padding", SAME if base.padding == "same" else VALID) == SAME
    kernel = value("kernel", base.kernel)
    conv = replace(
        base,
        filters=value("filters", base.filters),
        kernel=side if covers else kernel if padded else min(kernel, side),
        stride=value("stride", base.stride),
        padding="same" if padded else "valid",
    )
    return (conv, replace(conv, kernel=1, stride=1))[: value("depth", 1)]


def _layers(layers: Iterable[Layer], width: float, rates: Iterator[float]) -> Iterator[Layer]:
    for layer in layers:
        match layer:
            case Residual(inner):
                yield Residual(tuple(_layers(inner, width, rates)))
            case Conv(filters):
                yield replace(layer, filters=_scaled(filters, width, BLOCK if filters >= BLOCK else 1))
            case Dense(units):
                yield replace(layer, units=_scaled(units, width, 1))
            case Dropout(rate):
                yield Dropout(next(rates, rate))
            case _:
                yield layer


def _scaled(number: int, width: float, multiple: int) -> int:
    return number if width == 1 else max(round(number * width / multiple), 1) * multiple


def _bounds(bounds: Augmentation, values: Mapping[str, float]) -> Augmentation:
    factor = values.get("augmentation", 1.0)
    changed = {
        name: min(bound * factor, 1.0) if name in SHARES else bound * factor
        for name, bound in vars(bounds).items()
        if isinstance(bound, float) and name != "corrupted"
    }
    return replace(bounds, **changed, corrupted=values.get("corrupted", bounds.corrupted))


def _flat(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    for layer in layers:
        if isinstance(layer, Residual):
            yield from _flat(layer.inner)
        yield layer
