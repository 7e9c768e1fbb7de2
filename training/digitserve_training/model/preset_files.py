"""Presets as JSON: how a checkpoint keeps the preset it was started with, and how a file gives one to ``train``.

``settings`` and ``tune`` write and read presets here. What is read is checked whole, down to the shapes that the layers
give, so that no network is begun that cannot be built. Needs no TensorFlow.
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
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS, Preset

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
        "averaging",
    }
    | {"mixed", "paper", "teaching", "validation", "rate"}
)
"""Fields that are fractions of a whole: 1 at most."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
_KIND = "kind"
_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Layer)}
_ANY_SHAPE = (BatchNorm, Dropout, Flatten)


class _Unfit(Exception):
    """Something in a description is not as expected; the text says what, where, and what would do."""

    def __init__(self, where: str, got: str, expected: str) -> None:
        super().__init__(f"{where or 'the whole'} is {got}; expected {expected}")


def find(name: str | None) -> Preset:
    """Return the preset of this name, the default one for None, or the one in the file ``NAME.json``.

    Raises:
        RunError: there is no such preset or file, or what the file holds is no preset.
    """
    if name is None:
        return PRESETS[DEFAULT_PRESET]
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(SUFFIX):
        raise RunError(f"no preset '{name}'; presets: {', '.join(PRESETS)}, or a file named ...{SUFFIX}")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"no preset can be read from {name}: {getattr(error, 'strerror', None) or error}") from None
    return preset_from_json(text, name)


def preset_to_json(preset: Preset) -> str:
    """Return a preset as text that ``preset_from_json`` takes; equal presets give equal texts."""
    return json.dumps(described(preset), indent=2) + "\n"


def described(preset: Preset) -> dict[str, Any]:
    """Return a preset as what JSON holds: every field by name, each layer with its ``kind``."""
    encoded: dict[str, Any] = _encode(preset)
    return encoded


def preset_from_json(text: str, source: str) -> Preset:
    """Read a preset and check that its network can be built.

    Args:
        text: as ``preset_to_json`` gives it; fields that have defaults may be left out.
        source: where the text comes from, for messages.

    Raises:
        RunError: says where in the text something is not as expected, what it is, and what would do.
    """
    try:
        preset: Preset = _decode(Preset, json.loads(text, parse_constant=float), "")
        _check(preset)
    except _Unfit as unfit:
        raise RunError(f"{source} is no preset: {unfit}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{source} is no preset: it is not JSON: {error}") from None
    return preset


# -- Values ------------------------------------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if not is_dataclass(value):
        return value
    kind = {_KIND: type(value).__name__} if type(value) in _KINDS.values() else {}
    return kind | {field.name: _encode(getattr(value, field.name)) for field in fields(value)}


def _decode(wanted: Any, value: Any, where: str) -> Any:
    """Turn what JSON holds into a value of the type ``wanted``, one of those that fields of presets have."""
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
    described_layer = dict(_require(dict, value, where, "an object"))
    kind = described_layer.pop(_KIND, None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _Unfit(_at(where, _KIND), repr(kind), f"one of {', '.join(_KINDS)}")
    return _decode_fields(_KINDS[kind], described_layer, where)


def _decode_fields(wanted: Any, value: Mapping[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(wanted)}
    for name in value.keys() - known.keys():
        raise _Unfit(_at(where, name), "there", f"only {', '.join(known) or 'its kind'}")
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise _Unfit(_at(where, name), "missing", "a value")
    types = get_type_hints(wanted)
    return wanted(**{name: _decode(types[name], item, _at(where, name)) for name, item in value.items()})


def _decode_choice(choices: Sequence[Any], value: Any, where: str) -> Any:
    if value not in choices:
        raise _Unfit(where, repr(value), f"one of {', '.join(map(repr, choices))}")
    return value


def _decode_plain(wanted: type, value: Any, where: str) -> Any:
    if wanted is int:
        # Sizes and counts: none of them may be 0. A bool is an int to Python, but not here.
        if type(value) is not int or value < 1:
            raise _Unfit(where, repr(value), "a whole number of at least 1")
        return value
    if wanted is float:
        return _decode_number(value, where)
    return _require(wanted, value, where, {str: "text", bool: "true or false"}[wanted])


def _decode_number(value: Any, where: str) -> float:
    largest = 1.0 if where.rpartition(".")[2] in SHARES else sys.float_info.max
    # Written so that a NaN fails too.
    if type(value) not in (int, float) or not 0 <= value <= largest:
        raise _Unfit(where, repr(value), "a number from 0 to 1" if largest == 1 else "a finite number of at least 0")
    return float(value)


def _require(wanted: type, value: Any, where: str, called: str) -> Any:
    if not isinstance(value, wanted):
        raise _Unfit(where, f"{value!r:.60}", called)
    return value


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


# -- What types do not say, networks first of all ---------------------------------------------------------------------


def _check(preset: Preset) -> None:
    if not _NAME.fullmatch(preset.name):
        raise _Unfit("name", repr(preset.name), "a plain name such as compact-tuned")
    if not 0 < preset.recipe.validation < 1:
        raise _Unfit("recipe.validation", str(preset.recipe.validation), "more than 0 and less than 1")
    _follow(preset.network(1), INPUT_SHAPE, "layers")


def _follow(layers: Sequence[Layer], shape: Shape, where: str) -> Shape:
    """Follow one image's tensor through the layers and return its shape in the end."""
    for index, layer in enumerate(layers):
        shape = _step(layer, shape, f"{where}[{index}]")
    return shape


def _step(layer: Layer, shape: Shape, where: str) -> Shape:
    kind = type(layer).__name__
    axes = 1 if isinstance(layer, Dense) else 3
    if not isinstance(layer, _ANY_SHAPE) and len(shape) != axes:
        raise _Unfit(
            where, f"{kind} after a tensor of {shape}", "Flatten or GlobalAveragePool once, before the first Dense"
        )
    if isinstance(layer, Residual):
        return _step_residual(layer, shape, where)
    output = layer.cost(shape).output
    if min(output) < 1:
        raise _Unfit(where, f"{kind} that makes {output} of {shape}", "something left of the image")
    return output


def _step_residual(layer: Residual, shape: Shape, where: str) -> Shape:
    """Check that the shortcut, if there is one, leads to the same shape as the inner layers."""
    output = _follow(layer.inner, shape, f"{where}.inner") if layer.inner else ()
    shortcut = layer.shortcut(shape) if len(output) == 3 else None
    bridged = shape if shortcut is None else shortcut.cost(shape).output
    if bridged != output:
        raise _Unfit(where, f"Residual that adds {bridged} to {output}", "inner layers whose output a stride can reach")
    return output
