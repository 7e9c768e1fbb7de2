"""The gRPC server of a worker on gRPC core.

    GrpcServer ──poll──▶ completion_queue ──▶ handlers of all methods        :worker's thread
               └───────▶ UnknownMethods: records calls of other methods      :worker's thread

Built and owned by the worker, whose thread calls every public method.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from digitserve.certificate import server_context
from digitserve.errors import StartupError
from digitserve.protocol.names import Code, Method
from digitserve.settings import Settings, endpoint
from digitserve.telemetry.block import OTHER_METHOD
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.completion_queue import OPTIONS, CompletionQueueServer
from digitserve.transport.handlers import StreamHandler, UnaryHandler

MAX_EVENTS_PER_POLL = 1024
"""Most events handled before the next batch runs: a flood of rejected calls must not delay admitted requests."""

_NO_LIMIT_MS = (1 << 31) - 1
"""Time that gRPC takes as infinite."""


class UnknownMethods(grpc.ServerInterceptor):
    """Records calls of methods that do not exist; gRPC ends them as UNIMPLEMENTED.

    Called on the polling thread. Methods that exist are handled by the completion queue and never reach it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Record a call of a method without a handler."""
        started = time.monotonic()
        self._recorder.call_started(OTHER_METHOD)
        handler = continuation(handler_call_details)
        self._recorder.call_ended(OTHER_METHOD, Code.UNIMPLEMENTED, time.monotonic() - started)
        return handler


class GrpcServer(CompletionQueueServer):
    """The server of one worker; owned by it, and polled by its thread."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        unary: Mapping[Method, UnaryHandler],
        streams: Mapping[Method, StreamHandler],
    ) -> None:
        """Build the server; nothing listens before ``listen``.

        Raises:
            SettingsError: the certificate or its key cannot be used.
        """
        self._credentials = _credentials(settings)
        self._address = endpoint(settings.host, settings.grpc_port)
        # grpc.server demands a pool. Its threads start on demand, and no method needs one.
        self._pool = ThreadPoolExecutor(1)
        super().__init__(
            grpc.server(
                self._pool,
                interceptors=[UnknownMethods(recorder)],
                options=(
                    *OPTIONS,
                    ("grpc.so_reuseport", 1),
                    ("grpc.max_receive_message_length", settings.max_request_bytes),
                    ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_s)),
                    ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_s)),
                    ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_s)),
                    ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
                    # Core rejects some requests between the two limits, at random.
                    ("grpc.max_metadata_size", settings.max_header_bytes),
                    ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
                ),
            )
        )
        for method, handler in unary.items():
            self.add_unary_handler(method.path, handler)
        for method, stream_handler in streams.items():
            self.add_stream_handler(method.path, stream_handler)

    def listen(self) -> int:
        """Bind the address and accept connections; see ``Server``."""
        try:
            port = (
                self.grpc_server.add_insecure_port(self._address)
                if self._credentials is None
                else self.grpc_server.add_secure_port(self._address, self._credentials)
            )
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {self._address}: {error}") from None
        self.start()
        return port

    def poll(self, timeout_s: float) -> bool | None:
        """Handle the events that have arrived, at most ``MAX_EVENTS_PER_POLL``; see ``Server``."""
        handled = super().poll(timeout_s)
        num_events = 1
        while handled and num_events < MAX_EVENTS_PER_POLL:
            handled = super().poll(0.0)
            num_events += 1
        return None if handled is None else num_events > 1

    def has_unanswered(self) -> bool:
        """Return false: gRPC core sends answers on threads of its own."""
        return False

    def close(self) -> None:
        """Release the thread pool; called after ``poll`` has reported that the server has stopped."""
        self._pool.shutdown(wait=False)


def _milliseconds(seconds: float) -> int:
    """Return a time limit as gRPC takes it; 0 s is no limit."""
    return round(seconds * 1e3) or _NO_LIMIT_MS


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return the certificate for gRPC core, after the checks that both transports share."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if server_context(settings) is None or certificate is None or key is None:
        return None
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
