"""The reference of the HTTP API, from its OpenAPI description. Called by ``docs/reference/http.md`` (cog)."""

import json
from collections.abc import Iterator
from typing import Any

from digitserve.web.api import MAX_IMAGES
from digitserve.web.openapi import CLASSIFY_PATH, READ_PATH, description
from documentation.markup import table

_API: dict[str, Any] = json.loads(description(MAX_IMAGES))
_CLASSIFY, _READ = (_API["paths"][path]["post"] for path in (CLASSIFY_PATH, READ_PATH))


def routes_table() -> str:
    """Return methods and paths with their answers, as Markdown."""
    rows = (
        (
            f"`{method.upper()} {path}`",
            operation["summary"].removesuffix("."),
            _answer(operation["responses"]["200"]),
            _errors(operation),
        )
        for path, method, operation in _operations()
    )
    return table(("Route", "Purpose", "Answer", "Errors"), rows)


def body() -> str:
    """Return what the body of ``POST /v1/classify`` contains, and its content types, as Markdown."""
    types = ", ".join(f"`{name}`" for name in _CLASSIFY["requestBody"]["content"])
    return f"{_CLASSIFY['description']}\n\nContent types: {types}, or none."


def parameters_table() -> str:
    """Return the query parameters of ``POST /v1/classify``, as Markdown."""
    return _parameters(_CLASSIFY)


def read_body() -> str:
    """Return what the body of ``POST /v1/read`` contains, as Markdown."""
    description: str = _READ["description"]
    return description


def read_parameters_table() -> str:
    """Return the query parameters of ``POST /v1/read``, as Markdown."""
    return _parameters(_READ)


def _parameters(operation: dict[str, Any]) -> str:
    rows = (
        (f"`{each['name']}`", _values(each["schema"]), _default(each["schema"]), each["description"])
        for each in operation["parameters"]
    )
    return table(("Parameter", "Values", "Default", "Meaning"), rows)


def errors_table() -> str:
    """Return the HTTP statuses of errors, as Markdown."""
    rows = [
        (status, ", ".join(f"`{name}`" for name in response.get("headers", ())), response["description"])
        for status, response in _CLASSIFY["responses"].items()
        if status != "200"
    ]
    return table(("HTTP status", "Header", "Code and cause"), rows)


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in _API["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _answer(response: dict[str, Any]) -> str:
    """Return a link to the message in an answer, or what it is."""
    name = response["content"]["application/json"]["schema"].get("$ref", "").rpartition("/")[2]
    return f"[{name}](messages.md#{name.lower()})" if name else response["description"].removesuffix(".")


def _errors(operation: dict[str, Any]) -> str:
    return ", ".join(status for status in operation["responses"] if status != "200")


def _values(schema: dict[str, Any]) -> str:
    """Return the accepted values of a parameter."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "boolean":
        return "`true`, `false`"
    if schema["type"] == "string":
        return "one character" if schema["maxLength"] == 1 else f"at most {schema['maxLength']} characters"
    least = f"{schema['minimum']} to" if "minimum" in schema else f"above {schema['exclusiveMinimum']}, at most"
    return f"{least} {schema['maximum']:g}"


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    default = schema["default"]
    return f"`{default if isinstance(default, str) else json.dumps(default).removesuffix('.0')}`"
