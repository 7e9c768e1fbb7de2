"""Presets as JSON: the format of preset files, and of the preset in checkpoints and manifests.

Used by ``fit.settings``, ``tune`` and ``export``. A preset is validated when it is read, including the shapes between
its layers, so a network that cannot be built is rejected before training starts. Needs no TensorFlow.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from digitserve_training.errors import RunError
from digitserve_training.model.layers import INPUT_SHAPE, BatchNorm, Dense, Dropout, Flatten, Layer, Residual, Shape
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS, Preset, Recipe

SUFFIX = ".json"

SHARES = frozenset(
    {
        "scale",
        "zoom",
        "thicken",
        "thin",
        "blur",
        "contrast",
        "noise",
        "corrupted",
        "clean",
        "label_smoothing",
        "ema_momentum",
    }
    | {"mixup", "scanned", "distillation", "validation", "rate"}
)
"""Fields with values from 0 to 1."""

OLD_NAMES = {"averaging": "ema_momentum", "mixed": "mixup", "paper": "scanned", "teaching": "distillation"}
"""Fields of the recipe that had other names before: checkpoints, manifests and preset files may still have those."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
_KIND = "kind"
_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Layer)}
_ANY_SHAPE = (BatchNorm, Dropout, Flatten)


class _InvalidError(Exception):
    """A value is not as expected; the text states where it is, what it is and what was expected."""

    def __init__(self, where: str, got: str, expected: str) -> None:
        super().__init__(f"{where or 'the document'} is {got}; expected {expected}")


def find_preset(name: str | None) -> Preset:
    """Return a preset by its name or by the path of its file; the default one for None.

    Raises:
        RunError: there is no such preset or file, or the file does not hold a preset.
    """
    if name is None:
        return PRESETS[DEFAULT_PRESET]
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(SUFFIX):
        raise RunError(f"no preset '{name}'; presets: {', '.join(PRESETS)}, or a file whose name ends with {SUFFIX}")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read a preset from {name}: {getattr(error, 'strerror', None) or error}") from None
    return preset_from_json(text, name)


def preset_to_json(preset: Preset) -> str:
    """Encode a preset as text for ``preset_from_json``; equal presets give equal texts."""
    return json.dumps(preset_to_dict(preset), indent=2) + "\n"


def preset_to_dict(preset: Preset) -> dict[str, Any]:
    """Return a preset as JSON values: every field by name, and the ``kind`` of each layer."""
    encoded: dict[str, Any] = _encode(preset)
    return encoded


def preset_from_json(text: str, source: str) -> Preset:
    """Decode a preset and check that its network can be built.

    Args:
        text: JSON as ``preset_to_json`` writes it; fields with defaults may be omitted.
        source: name of the file or of the text's origin, for error messages.

    Raises:
        RunError: names the place of the first invalid value, the value, and what was expected.
    """
    try:
        preset: Preset = _decode(Preset, json.loads(text, parse_constant=float), "")
        _check(preset)
    except _InvalidError as invalid:
        raise RunError(f"{source} is not a preset: {invalid}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{source} is not a preset: it is not JSON: {error}") from None
    return preset


# -- Encoding and decoding ---------------------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if not is_dataclass(value):
        return value
    kind = {_KIND: type(value).__name__} if type(value) in _KINDS.values() else {}
    return kind | {field.name: _encode(getattr(value, field.name)) for field in fields(value)}


def _decode(wanted: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to ``wanted``, the type of a preset's field."""
    if isinstance(wanted, UnionType):
        return _decode_layer(value, where)
    if is_dataclass(wanted):
        return _decode_fields(wanted, _require(dict, value, where, "an object"), where)
    if get_origin(wanted) is tuple:
        items = _require(list, value, where, "a list")
        return tuple(_decode(get_args(wanted)[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if get_origin(wanted) is Literal:
        return _decode_choice(get_args(wanted), value, where)
    return _decode_plain(wanted, value, where)


def _decode_layer(value: Any, where: str) -> Any:
    layer = dict(_require(dict, value, where, "an object"))
    kind = layer.pop(_KIND, None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _InvalidError(_at(where, _KIND), repr(kind), f"one of {', '.join(_KINDS)}")
    return _decode_fields(_KINDS[kind], layer, where)


def _decode_fields(wanted: Any, value: Mapping[str, Any], where: str) -> Any:
    if wanted is Recipe:
        value = {OLD_NAMES.get(name, name): item for name, item in value.items()}
    known = {field.name: field for field in fields(wanted)}
    for name in value.keys() - known.keys():
        raise _InvalidError(_at(where, name), "unknown", f"only {', '.join(known) or 'its kind'}")
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise _InvalidError(_at(where, name), "missing", "a value")
    types = get_type_hints(wanted)
    return wanted(**{name: _decode(types[name], item, _at(where, name)) for name, item in value.items()})


def _decode_choice(choices: Sequence[Any], value: Any, where: str) -> Any:
    if value not in choices:
        raise _InvalidError(where, repr(value), f"one of {', '.join(map(repr, choices))}")
    return value


def _decode_plain(wanted: type, value: Any, where: str) -> Any:
    if wanted is int:
        # Sizes and counts are at least 1. Python's bool is an int, so the type is compared exactly.
        if type(value) is not int or value < 1:
            raise _InvalidError(where, repr(value), "a whole number of at least 1")
        return value
    if wanted is float:
        return _decode_number(value, where)
    return _require(wanted, value, where, {str: "text", bool: "true or false"}[wanted])


def _decode_number(value: Any, where: str) -> float:
    largest = 1.0 if where.rpartition(".")[2] in SHARES else sys.float_info.max
    # A NaN fails this comparison too.
    if type(value) not in (int, float) or not 0 <= value <= largest:
        raise _InvalidError(
            where, repr(value), "a number from 0 to 1" if largest == 1 else "a finite number of at least 0"
        )
    return float(value)


def _require(wanted: type, value: Any, where: str, expected: str) -> Any:
    if not isinstance(value, wanted):
        raise _InvalidError(where, f"{value!r:.60}", expected)
    return value


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


# -- Checks beyond types: names, shares, shapes between layers ---------------------------------------------------------


def _check(preset: Preset) -> None:
    if not _NAME.fullmatch(preset.name):
        raise _InvalidError("name", repr(preset.name), "a plain name such as compact-tuned")
    if not 0 < preset.recipe.validation < 1:
        raise _InvalidError("recipe.validation", str(preset.recipe.validation), "more than 0 and less than 1")
    if preset.recipe.certain_outliers and not preset.recipe.outliers:
        raise _InvalidError("recipe.certain_outliers", str(preset.recipe.certain_outliers), "0 without outliers")
    _check_layers(preset.network(1), INPUT_SHAPE, "layers")


def _check_layers(layers: Sequence[Layer], shape: Shape, where: str) -> Shape:
    """Check that the layers accept a tensor of ``shape``, and return its shape after the last one."""
    for index, layer in enumerate(layers):
        shape = _check_layer(layer, shape, f"{where}[{index}]")
    return shape


def _check_layer(layer: Layer, shape: Shape, where: str) -> Shape:
    kind = type(layer).__name__
    axes = 1 if isinstance(layer, Dense) else 3
    if not isinstance(layer, _ANY_SHAPE) and len(shape) != axes:
        raise _InvalidError(
            where, f"{kind} after a tensor of {shape}", "Flatten or GlobalAveragePool once, before the first Dense"
        )
    if isinstance(layer, Residual):
        return _check_residual(layer, shape, where)
    output = layer.cost(shape).output
    if min(output) < 1:
        raise _InvalidError(where, f"{kind} with output {output} for {shape}", "an output of at least 1x1")
    return output


def _check_residual(layer: Residual, shape: Shape, where: str) -> Shape:
    """Check that the shortcut can give the same shape as the inner layers."""
    output = _check_layers(layer.inner, shape, f"{where}.inner") if layer.inner else ()
    shortcut = layer.shortcut(shape) if len(output) == 3 else None
    bypass = shape if shortcut is None else shortcut.cost(shape).output
    if bypass != output:
        raise _InvalidError(
            where, f"Residual that adds {bypass} to {output}", "inner layers whose output shape a stride can reach"
        )
    return output
