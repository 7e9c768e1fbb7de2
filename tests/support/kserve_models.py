"""Field names of KServe's custom resources, from the modules that its Python package generates from the API definition.

The package itself is not imported: it needs dozens of others, and a version of protobuf that this project does not use.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Fields = dict[str, dict[str, str]]
"""By class: the type of each field, by its name in a manifest."""


def read_fields(folder: Path) -> Fields:
    """Return the fields of all classes in ``kserve/models`` of an installed package."""
    return dict(pair for path in sorted(folder.glob("kserve/models/*.py")) for pair in _classes(path))


def _classes(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            tables = {
                target.id: ast.literal_eval(each.value)
                for each in node.body
                if isinstance(each, ast.Assign)
                for target in each.targets
                if isinstance(target, ast.Name)
            }
            if "attribute_map" in tables:
                yield node.name, {tables["attribute_map"][name]: kind for name, kind in tables["openapi_types"].items()}


def unknown_fields(described: Any, kind: str, fields: Fields, path: str = "") -> Iterator[str]:
    """Yield the paths of fields that a class and the classes of its fields do not have; other classes are not checked.

    Args:
        described: a part of a manifest.
        kind: name of its class; ``list[...]`` of a class for a list.
        fields: of ``read_fields``.
        path: of the part.
    """
    if kind.startswith("list["):
        for index, each in enumerate(described):
            yield from unknown_fields(each, kind[5:-1], fields, f"{path}[{index}]")
    elif kind in fields:
        for name, value in described.items():
            if name not in fields[kind]:
                yield f"{path}.{name}"
            else:
                yield from unknown_fields(value, fields[kind][name], fields, f"{path}.{name}")
