"""digitserve classifies images of handwritten digits over gRPC.

``Client`` and ``AsyncClient`` are imported from ``digitserve.client`` at first use, so that ``import digitserve`` stays cheap
for the service's processes, which do not need them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digitserve.client import AsyncClient, Client

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("digitserve")
    if name in {"AsyncClient", "Client"}:
        return getattr(import_module("digitserve.client"), name)
    raise AttributeError(f"module 'digitserve' has no attribute '{name}'")
