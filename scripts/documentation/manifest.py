"""The reference of the manifest of a bundle, from its dataclasses. Called by ``docs/reference/bundle.md`` (cog)."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from digitserve.inference.bundle import Golden, Manifest, TensorSpec
from documentation.markup import escape, table

_SCALARS = {str: "string", int: "integer", float: "number", type(None): "null", Any: "any"}


def manifest_table() -> str:
    """Return the fields of ``manifest.json``, as Markdown."""
    return _fields(Manifest)


def tensor_table() -> str:
    """Return the fields of an entry of ``inputs`` and ``outputs``, as Markdown."""
    return _fields(TensorSpec)


def golden_table() -> str:
    """Return the arrays of ``golden.npz``, as Markdown."""
    return table(("Array", "Type"), [(f"`{name}`", f"`{text}`") for name, text in _documented(Golden).items()])


def _documented(of: type) -> dict[str, str]:
    """Return the texts of the section Attributes of a docstring, by attribute."""
    section = inspect.getdoc(of).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    return {
        name: text.replace("None", "null").removesuffix(".")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    }


def _fields(of: type) -> str:
    texts, types = _documented(of), get_type_hints(of)
    rows = [
        (f"`{each.name}`", _json_type(types[each.name]), _default(each), escape(texts[each.name]))
        for each in fields(of)
    ]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def _default(field: Field[Any]) -> str:
    return "required" if field.default is MISSING else f"`{field.default}`"


def _json_type(hint: Any) -> str:
    """Return what a Python type is in JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is TensorSpec:
        return "[tensor](#tensors)"
    if origin is tuple:
        return f"array of {_json_type(arguments[0])}"
    if origin is Mapping:
        return "object" if arguments[1] is Any else f"object of {_json_type(arguments[1])}s"
    if origin is Literal:
        return "string"
    if arguments:
        return " or ".join(_json_type(argument) for argument in arguments)
    return _SCALARS[hint]
