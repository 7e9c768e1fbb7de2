"""The HTTP port as a whole: the server, the endpoints for operators, the page and the HTTP API.

    Supervisor ──▶ HttpPort ──▶ HttpServer, make_app (``http``), FailureLog (``http_log``)
                           └──▶ Api (``web``)

The supervisor imports this module and what it needs (uvicorn, Starlette, the HTTP API) only after it has started its workers:
they load onnxruntime and the network meanwhile. Used on the supervisor's event loop.
"""

import socket
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from starlette.requests import Request

from digitserve.protocol.status import Status
from digitserve.settings import Settings
from digitserve.supervision.http import HttpServer, ServiceStatus, credentials, make_app
from digitserve.supervision.http_access import HttpAccess
from digitserve.supervision.http_log import FailureLog
from digitserve.supervision.slots import InlineSlot, WorkerSlot
from digitserve.telemetry.collector import ServiceCollector
from digitserve.telemetry.request_log import RequestLog
from digitserve.telemetry.supervisor_metrics import metric
from digitserve.web.api import Api


class HttpPort:
    """The HTTP server with its application; owned by the supervisor.

    Attributes:
        api: the HTTP API.
    """

    def __init__(
        self,
        settings: Settings,
        status: ServiceStatus,
        slots: Sequence[WorkerSlot | InlineSlot],
        collector: ServiceCollector,
        access: HttpAccess,
        max_connections: int,
    ) -> None:
        """Prepare; no connection is accepted yet.

        Args:
            settings: of the service.
            status: of the service.
            slots: of the service; the HTTP API calls their workers.
            collector: the metrics of ``/metrics``.
            access: who may read what, and the TLS of the port.
            max_connections: most open connections.
        """
        registry = CollectorRegistry()
        registry.register(collector)
        self.api = Api(settings, slots, lambda request: _refusal(access, request))
        app = make_app(status, registry, access, self.api.routes)
        self._server = HttpServer(FailureLog(app, RequestLog(settings.log_requests_per_s)), access, max_connections)

    async def run(self, listener: socket.socket) -> None:
        """Serve until ``stop``.

        Args:
            listener: a listening socket. The server closes it.
        """
        await self._server.run_on(listener)

    def drain(self) -> None:
        """Close each connection after its next answer."""
        self._server.drain()

    def stop(self) -> None:
        """Let ``run`` end."""
        self._server.should_exit = True

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of the connections and of the HTTP API."""
        yield from self._server.connections.metrics()
        yield metric("digitserve_http_requests", self.api.num_answers)


def _refusal(access: HttpAccess, request: Request) -> Status | None:
    authorization, is_verified = credentials(request)
    return access.refusal(authorization, is_verified=is_verified)
