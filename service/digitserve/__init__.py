"""digitserve classifies images of handwritten digits over gRPC.

``Client`` and ``AsyncClient`` are imported from ``digitserve.client`` at first use, so that ``import digitserve`` stays cheap
for the service's processes, which do not need them.
"""

# No import of ``typing``: no module is imported before the command handles Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from digitserve.client import AsyncClient, Client

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - takes 20 ms

        return version("digitserve")
    if name in {"AsyncClient", "Client"}:
        from importlib import import_module  # noqa: PLC0415 - see above

        return getattr(import_module("digitserve.client"), name)
    raise AttributeError(f"module 'digitserve' has no attribute '{name}'")
