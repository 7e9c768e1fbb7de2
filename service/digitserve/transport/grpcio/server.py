"""The gRPC server of a worker.

    GrpcServer ──poll──▶ completion_queue ──▶ Classify, ClassifyStream       :worker's thread
               └───────▶ thread_pool ──▶ GetModel, health, reflection        :pool threads

Built and owned by the worker, whose thread calls every public method.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from digitserve.errors import StartupError
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, GET_MODEL, SERVICE
from digitserve.settings import Settings, endpoint
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.completion_queue import OPTIONS, CompletionQueueServer
from digitserve.transport.grpcio.thread_pool import RecordingInterceptor, unary_handler
from digitserve.transport.handlers import Respond, StreamHandler, UnaryHandler

STREAM_POOL_THREADS = 32
"""Most threads for streams of health and reflection, each of which occupies one; they start on demand."""

UNARY_POOL_THREADS = 4
"""Most threads for unary calls, which never wait."""

_NO_MAX_AGE_MS = (1 << 31) - 1
"""Connection age that gRPC takes as infinite."""


class GrpcServer(CompletionQueueServer):
    """The server of one worker; owned by it, and polled by its thread."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        classify: UnaryHandler,
        classify_stream: StreamHandler,
        get_model: Respond,
    ) -> None:
        """Build the server; nothing listens before ``listen``."""
        self._address = endpoint(settings.host, settings.grpc_port)
        self._stream_pool = ThreadPoolExecutor(STREAM_POOL_THREADS, thread_name_prefix="streams")
        self._unary_pool = ThreadPoolExecutor(UNARY_POOL_THREADS, thread_name_prefix="unary")
        server = grpc.server(
            self._stream_pool,
            interceptors=[RecordingInterceptor(recorder, self._unary_pool)],
            options=(
                *OPTIONS,
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                # No grace is set, which means an infinite one: open calls and streams are not cut at that age.
                ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1e3) or _NO_MAX_AGE_MS),
            ),
        )
        super().__init__(server)
        self._health = health.HealthServicer()
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        server.add_registered_method_handlers(SERVICE, {GET_MODEL.name: unary_handler(get_model)})
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        self.add_unary_handler(CLASSIFY.path, classify)
        self.add_stream_handler(CLASSIFY_STREAM.path, classify_stream)

    def listen(self) -> int:
        """Bind the address, report SERVING, and accept connections.

        Returns:
            The port.

        Raises:
            StartupError: the address cannot be bound.
        """
        try:
            port = self.grpc_server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {self._address}: {error}") from None
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self.start()
        return port

    def report_not_serving(self) -> None:
        """Set the health to NOT_SERVING permanently, and notify watchers; calls are still accepted.

        Runs on a pool thread: it waits until watchers are notified, which needs the polling thread.
        """
        self._stream_pool.submit(self._health.enter_graceful_shutdown)

    def close(self) -> None:
        """Stop the thread pools; called after ``poll`` has reported that the server has stopped."""
        self._stream_pool.shutdown(wait=False)
        self._unary_pool.shutdown(wait=False)

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)
