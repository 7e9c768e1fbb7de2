"""The HTTP side: what operators and platforms ask of the service. Runs on the supervisor's event loop."""

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
    """What the HTTP side needs to know of the supervisor."""

    @property
    def ready(self) -> bool:
        """Whether requests are being served and will go on being served."""

    def status_line(self) -> str:
        """Return one line for people."""


def make_app(status: ServiceStatus, registry: CollectorRegistry) -> Starlette:
    """Build the application."""

    # Coroutines without a wait: plain functions would run on other threads than the one that writes what they read.
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
    """uvicorn on the supervisor's event loop, which keeps the signals for itself."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the supervisor."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until ``should_exit`` is set."""
        await self.serve(sockets=[listener])
