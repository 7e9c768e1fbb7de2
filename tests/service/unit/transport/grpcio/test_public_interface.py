"""The service uses only the public interface of grpcio, so any later release of it can be installed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import digitserve

SERVICE = Path(digitserve.__file__).parent
GENERATED = SERVICE / "v1"
"""Stubs, which the generator writes for a release and all later ones."""


def private_uses(source: str) -> Iterator[str]:
    """Yield the imports and attributes of private modules of grpcio that a module uses."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                paths = [alias.name for alias in node.names]
            case ast.ImportFrom():
                paths = [f"{node.module}.{alias.name}" for alias in node.names]
            case ast.Attribute():
                paths = [ast.unparse(node)]
            case ast.Constant(value=str(text)) if "cygrpc" in text:
                paths = [text]
            case _:
                continue
        for path in paths:
            first, *others = path.split(".")
            if "cygrpc" in path or (first.startswith("grpc") and any(part.startswith("_") for part in others)):
                yield path


def test_nothing_private_of_grpcio_is_used() -> None:
    """No module of the service imports or uses ``grpc._...`` or cygrpc, the module of grpcio's C extension."""
    sources = {path: path.read_text() for path in SERVICE.rglob("*.py") if not path.is_relative_to(GENERATED)}

    assert {str(path): uses for path, source in sources.items() if (uses := list(private_uses(source)))} == {}
    assert any("import grpc" in source for source in sources.values())


def test_private_uses_are_found() -> None:
    """Each way to reach a private module is found."""
    for source in (
        "from grpc._cython import cygrpc", "from grpc import _server", "import grpc._channel", "grpc._common.encode(x)",
        "importlib.import_module('grpc._cython.cygrpc')", "grpc.aio._server.Server",
    ):  # fmt: skip
        assert list(private_uses(source)), source
