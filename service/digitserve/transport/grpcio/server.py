"""The gRPC server of a worker on grpcio's public interface: the reference with which the native transport is compared.

    clients ◀──▶ grpc.aio server ──▶ rpcs ──▶ Bridge.events ──▶ GrpcServer.poll ──▶ handlers of all methods
                 :its own event loop and thread                 :worker's thread

Built and owned by the worker, whose thread calls every public method.
"""

import asyncio
import functools
import hmac
import os
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future

import grpc

from digitserve.access import FREE_PREFIX, NOTHING_VALID, LastValid, Tokens
from digitserve.certificate import KeyFiles, new_context, watched_certificate
from digitserve.errors import StartupError
from digitserve.file_watch import FileWatch, WatchedValue
from digitserve.passed_sockets import abstract_name
from digitserve.protocol.names import Method
from digitserve.settings import Settings, endpoint
from digitserve.telemetry.block import OTHER_METHOD
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.rpcs import Bridge, serve_stream, serve_unary, serve_unread
from digitserve.transport.handlers import StreamHandler, UnaryHandler
from digitserve.transport.respond import UnknownMethodHandler, unauthenticated_handlers

MAX_EVENTS_PER_POLL = 1024
"""Most events handled before the next batch runs: a flood of rejected calls must not delay admitted requests."""

MAX_RPCS = 8_192
"""Open RPCs of all connections together, watches and idle streams included: 27 KiB each, measured with watches. grpcio
refuses more with RESOURCE_EXHAUSTED."""

CORE_LIMIT_FACTOR = 2
"""Core discards messages over this multiple of the limit, which is reported like a cancellation. Smaller messages over the limit
are passed to the handlers, which count them and send an error that states the limit."""

_MIN_PING_INTERVAL_MS = 5_000
"""Half of the interval between two PINGs of our client (``client.channel``)."""

_NO_LIMIT = 1 << 30
_MAX_INT = (1 << 31) - 1
"""Largest value of an option. gRPC treats it as infinite if the option is a time in milliseconds."""

_NO_GRACE_LIMIT_S = 7 * 86400.0
"""Longest wait for open RPCs; the worker ends them with ``cancel_all`` much earlier."""


class Methods(grpc.GenericRpcHandler):
    """Finds the handler of each RPC, also of methods that do not exist; called by grpcio on the thread of its loop."""

    def __init__(
        self,
        bridge: Bridge,
        recorder: Recorder,
        unary: Mapping[Method, UnaryHandler],
        streams: Mapping[Method, StreamHandler],
        tokens: "Tokens | _OwnToken | None",
    ) -> None:
        self._handlers = {method.path: serve_unary(bridge, handler, method.path) for method, handler in unary.items()}
        self._handlers |= {method.path: serve_stream(bridge, handler) for method, handler in streams.items()}
        self._unknown = serve_unread(bridge, UnknownMethodHandler(recorder))
        self._tokens = tokens
        self._refusals = {
            path: serve_unread(bridge, handler, path or OTHER_METHOD.path)
            for path, handler in unauthenticated_handlers(recorder).items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Return the handler of a path, or one that rejects the call."""
        path: str = handler_call_details.method
        if self._tokens is None or path.startswith(FREE_PREFIX):
            return self._handlers.get(path, self._unknown)
        sent = [value for name, value in handler_call_details.invocation_metadata if name == "authorization"]
        if len(sent) == 1 and self._tokens.admits(str(sent[0]).encode()):
            return self._handlers.get(path, self._unknown)
        return self._refusals.get(path) or self._refusals[""]


class _OwnToken:
    """The secret of the supervisor, in place of the tokens of clients."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def admits(self, authorization: bytes) -> bool:
        """Return whether a call is one of the supervisor; see ``Tokens``."""
        return hmac.compare_digest(authorization, self._expected)


class GrpcServer:
    """The server of one worker; owned by it, and polled by its thread."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        unary: Mapping[Method, UnaryHandler],
        streams: Mapping[Method, StreamHandler],
        last_valid: LastValid = NOTHING_VALID,
        inside: str | None = None,
    ) -> None:
        """Build the server; nothing listens before ``listen``.

        Args:
            settings: of the service.
            recorder: of the worker.
            unary: handlers of unary RPCs.
            streams: handlers of streaming RPCs.
            last_valid: certificate and tokens to start with if their files are not valid now.
            inside: the secret of the supervisor, which calls on an abstract Unix socket and has checked the callers.

        Raises:
            SettingsError: a file of the certificate or of tokens cannot be used.
        """
        tokens = Tokens.of(settings, last_valid.digests)
        certificate = watched_certificate(settings, functools.partial(_configuration, settings), last_valid.key_files)
        self._credentials = None if certificate is None else _credentials(certificate, settings)
        self._watch = FileWatch([certificate, tokens])
        self._address = endpoint(settings.host, settings.grpc_port)
        self._bridge = Bridge(settings.max_request_bytes, recorder.requests)
        self._methods = Methods(self._bridge, recorder, unary, streams, tokens)
        self._options = (
            ("grpc.so_reuseport", 1),
            ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
            # With it, core also counts streams that have ended, and resets streams within the limit.
            ("grpc.http.overload_protection", 0),
            ("grpc.max_receive_message_length", min(CORE_LIMIT_FACTOR * settings.max_request_bytes, _MAX_INT)),
            ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_s)),
            ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_s)),
            # Equal: between the two limits core rejects requests at random.
            ("grpc.max_metadata_size", settings.max_header_bytes),
            ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
            # Clients send a PING every ten seconds, even when idle, to detect lost connections. By default core closes such
            # connections.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            ("grpc.http2.max_ping_strikes", 0),
            # Core would reject calls without counting them; the pipeline does admission control.
            ("grpc.server.max_pending_requests", _NO_LIMIT),
            ("grpc.server.max_pending_requests_hard_limit", _NO_LIMIT),
            # Core would drop calls that wait for more than 30 s; deadlines and admission control limit the wait.
            ("grpc.server_max_unrequested_time_in_server", 24 * 3600),
        )
        self._inside = inside
        self._inside_methods = Methods(self._bridge, recorder, unary, streams, _OwnToken(inside)) if inside else None
        self._servers: list[grpc.aio.Server]
        self._closing: asyncio.Event
        self._thread: threading.Thread
        self._stopped = False

    def listen(self) -> int:
        """Bind the address and accept connections; see ``Server``."""
        port: Future[int] = Future()
        # A daemon thread, because a second signal must end the process without waiting for RPCs.
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(port),), daemon=True)
        self._thread.start()
        try:
            bound = port.result()
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {self._address}: {error}") from None
        self._watch.start()
        return bound

    def poll(self, timeout_s: float) -> bool | None:
        """Handle the events that have arrived, at most ``MAX_EVENTS_PER_POLL``; see ``Server``."""
        events = self._bridge.events
        num_events = 0
        try:
            while num_events < MAX_EVENTS_PER_POLL:
                event = events.get(timeout=0.0 if num_events else timeout_s)
                num_events += 1
                event()
        except queue.Empty:
            """All are handled."""
        return None if self._stopped else num_events > 0

    def begin_shutdown(self) -> None:
        """Stop listening and send GOAWAY; open RPCs continue."""
        self._stop(_NO_GRACE_LIMIT_S)

    def has_unanswered(self) -> bool:
        """Return whether RPCs that were passed to handlers are not answered yet."""
        return bool(self._bridge.unanswered)

    def cancel_all(self) -> None:
        """End every RPC that is still open."""
        self._stop(None)

    def close(self) -> None:
        """End the thread of grpcio's loop; called after ``poll`` has reported that the server has stopped."""
        self._watch.stop()
        self._bridge.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _stop(self, grace_s: float | None) -> None:
        for server in self._servers:
            asyncio.run_coroutine_threadsafe(server.stop(grace_s), self._bridge.loop)

    def _new_server(self, methods: Methods) -> grpc.aio.Server:
        return grpc.aio.server(handlers=[methods], options=self._options, maximum_concurrent_rpcs=MAX_RPCS)

    def _set_stopped(self) -> None:
        self._stopped = True

    async def _serve(self, started: "Future[int]") -> None:
        """Run the server until ``close``; on the thread of its loop.

        Args:
            started: gets the port, or the exception because of which the server did not start.
        """
        bridge = self._bridge
        bridge.loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        try:
            servers = [self._new_server(self._methods)]
            server = servers[0]
            if self._credentials is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, self._credentials)
            if self._inside_methods is not None and self._inside is not None:
                servers.append(self._new_server(self._inside_methods))
                servers[1].add_insecure_port(f"unix-abstract:{abstract_name(self._inside, os.getpid())}")
            for server in servers:
                await server.start()
        except Exception as error:
            started.set_exception(error)
            return
        self._servers = servers
        started.set_result(port)
        try:
            for server in servers:
                await server.wait_for_termination()
                await server.stop(None)
            if bridge.unanswered:
                await asyncio.wait(bridge.unanswered)
        except Exception as error:
            bridge.events.put(functools.partial(_raise, error))
        bridge.events.put(self._set_stopped)
        await self._closing.wait()


def _raise(error: Exception) -> None:
    raise error


def _milliseconds(seconds: float) -> int:
    """Return a time limit as an option of gRPC; 0 s means no limit."""
    return round(seconds * 1e3) or _MAX_INT


def _configuration(settings: Settings, files: KeyFiles) -> grpc.ServerCertificateConfiguration:
    """Return a certificate for gRPC core, after the checks that apply to both transports."""
    new_context(files, settings)
    return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.client_ca)


def _credentials(
    certificate: "WatchedValue[grpc.ServerCertificateConfiguration]", settings: Settings
) -> grpc.ServerCredentials:
    """Return credentials for which gRPC core reads the newest certificate at each handshake, on a thread of its own."""
    used = certificate.value

    def changed() -> grpc.ServerCertificateConfiguration | None:  # None: no change
        nonlocal used
        newest = certificate.value
        if newest is used:
            return None
        used = newest
        return newest

    return grpc.dynamic_ssl_server_credentials(used, changed, settings.tls_client_ca is not None)  # type: ignore[arg-type] # the stub has no None
