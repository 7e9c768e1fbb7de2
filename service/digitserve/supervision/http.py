"""The HTTP endpoints for operators and platforms. Runs on the supervisor's event loop."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


class ServiceStatus(Protocol):
    """The part of the supervisor that the endpoints read."""

    @property
    def ready(self) -> bool:
        """Whether at least one worker accepts requests and the service is not about to stop."""

    def status_line(self) -> str:
        """Return the state of the service as one line of text."""


def make_app(status: ServiceStatus, registry: CollectorRegistry) -> Starlette:
    """Build the application.

    Args:
        status: read for ``/`` and ``/readyz``.
        registry: the metrics of ``/metrics``.
    """

    # Coroutines, although they never wait: Starlette runs plain functions on other threads, and the state that these
    # read is written on this one.
    async def index(_request: Request) -> Response:
        return PlainTextResponse(status.status_line() + "\n")

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse(status.status_line() + "\n", status_code=200 if status.ready else 503)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=content_type)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )


class HttpServer(uvicorn.Server):
    """uvicorn on the supervisor's event loop; the supervisor handles the signals."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers, unlike uvicorn's own."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until ``should_exit`` is set.

        Args:
            listener: a listening socket. The server closes it.
        """
        await self.serve(sockets=[listener])
