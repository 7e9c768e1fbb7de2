"""The search space of a preset: ranges of hyperparameters around its values, and the preset with drawn values.

``search`` draws the values; ``cli`` lists the groups. Needs neither TensorFlow nor Optuna.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from digitserve_training.errors import RunError
from digitserve_training.model.layers import Conv, Dense, Dropout, Layer, Residual
from digitserve_training.model.preset_files import SHARES
from digitserve_training.model.presets import Augmentation, Preset

BLOCK = 16
"""Numbers of filters are rounded to multiples of it, which suits onnxruntime's blocked convolutions."""


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


GROUPS: Mapping[str, Callable[[Preset], dict[str, Range]]] = {
    "learning-rate": _learning_rate,
    "weight-decay": _weight_decay,
    "width": _width,
    "dropout": _dropout,
    "augmentation": _augmentation,
}
"""Groups of hyperparameters, each with its ranges for a preset; a group that does not apply to the preset has none."""


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
        layers=tuple(_layers(preset.layers, rounded.get("width", 1.0), rates)),
        recipe=replace(
            recipe,
            learning_rate=rounded.get("learning_rate", recipe.learning_rate),
            weight_decay=rounded.get("weight_decay", recipe.weight_decay),
        ),
        augmentation=_bounds(preset.augmentation, rounded),
    )


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if name.startswith("dropout_") else 0


def _layers(layers: tuple[Layer, ...], width: float, rates: Iterator[float]) -> Iterator[Layer]:
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
