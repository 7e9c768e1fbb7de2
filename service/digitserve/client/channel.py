"""Channels of the client library: their options and credentials, the stubs on them, and the conversion of gRPC errors."""

import asyncio
import json
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status  # type: ignore[import-untyped]

from digitserve.client.address import is_local, is_localhost, parse_address
from digitserve.client.errors import (
    ClientError,
    DeadlineExceeded,
    HandshakeFailed,
    InvalidCredentials,
    RequestRejected,
    Unauthenticated,
    Unreachable,
)
from digitserve.client.handshake import NOT_CONNECTED, Security
from digitserve.credentials import Credentials
from digitserve.errors import CredentialsError
from digitserve.protocol.names import CLASSIFY, GET_MODEL, READ, SERVICE
from digitserve.v1 import digits_pb2_grpc

RETRY_POLICY = json.dumps(
    {
        "methodConfig": [
            {
                # Not streams: see ``STREAM_OPTIONS``.
                "name": [{"service": SERVICE, "method": method.name} for method in (CLASSIFY, READ, GET_MODEL)],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 4,
                    # gRPC core ends calls with CANCELLED if they reach a server that is closing before the client has read
                    # its GOAWAY. A retry is safe: requests change nothing in the service.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)
"""Service config that makes worker replacement transparent to callers of unary methods; works with any gRPC client."""

STREAM_OPTIONS: tuple[tuple[str, str | int], ...] = (("grpc.enable_retries", 0),)
"""More options of a channel for streams. If gRPC core (grpcio 1.85.1) sends a stream again while messages are added, by policy or
because the server has not processed it, it can lose one message: answers then belong to other requests. ``classify_stream``
sends unanswered images again by itself.
"""

KEEPALIVE_S = 10.0
"""Time without any byte from the service after which a client sends a PING; gRPC recommends no shorter one."""

KEEPALIVE_TIMEOUT_S = 3.0
"""Longest wait for the answer to a PING, and for the TCP acknowledgement of data. Then the connection counts as lost, and calls
are retried on another one. A network that drops connections (a firewall, a changed route) sends no reset.
"""

MAX_PROBE_S = 0.05
"""Longest wait for the reason why there is no connection. A channel that failed to connect reports it immediately."""


def keepalive_options(
    time_s: float = KEEPALIVE_S, timeout_s: float = KEEPALIVE_TIMEOUT_S
) -> tuple[tuple[str, int], ...]:
    """Return channel options that detect connections that the network has lost, even while no call is in flight.

    Args:
        time_s: between two PINGs, in seconds.
        timeout_s: longest wait for an answer, in seconds.
    """
    return (
        ("grpc.keepalive_time_ms", int(1000 * time_s)),
        # The first is TCP_USER_TIMEOUT, the second the wait for the answer to a PING, by default a minute.
        ("grpc.keepalive_timeout_ms", int(1000 * timeout_s)),
        ("grpc.http2.ping_timeout_ms", int(1000 * timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default gRPC core stops after two PINGs if nothing else is sent, as on a quiet stream.
        ("grpc.http2.max_pings_without_data", 0),
    )


_ROUND_ROBIN = ("grpc.lb_policy_name", "round_robin")
"""Calls are sent to all addresses of a name in turn. By default all calls of a channel are sent to one of them."""

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", RETRY_POLICY),
    _ROUND_ROBIN,
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC core keeps at most 256 KiB of a call for retries by default; larger requests would be sent only once.
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),
    *keepalive_options(),
)
"""Channel options of this client. Message sizes are limited by the service only."""

_POOL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    *CHANNEL_OPTIONS,
    # Channels to one address would share one connection otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC core would wait 1 s after the first failed connection attempt, and up to 120 s later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # gRPC core would resolve a name again only 30 s after the last time, although none of its addresses may answer any more.
    ("grpc.dns_min_time_between_resolutions_ms", 10_000),
)

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables with a proxy that gRPC core uses. Source: github.com/grpc/grpc, doc/environment_variables.md."""


def pool_options(target: str, *, use_proxy: bool) -> tuple[tuple[str, str | int], ...]:
    """Return the options of a channel in the pool.

    Args:
        target: of ``parse_address``. ``localhost`` is one service with an address of IPv4 and one of IPv6. If the service
            listens on one of them, ``round_robin`` would try the other every second.
        use_proxy: whether the channel uses the proxy in the environment.
    """
    options = _POOL_OPTIONS if use_proxy else (*_POOL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return tuple(one for one in options if one != _ROUND_ROBIN) if is_localhost(target) else options


_CODES = {code.value[0]: code for code in grpc.StatusCode}

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Connection(NamedTuple):
    """A channel for unary calls, one for streams, and the stubs on them.

    Attributes:
        channels: both, to close them.
        service: stub for unary calls.
        streams: stub for streams.
        metadata: returns the metadata of a call, with the current token; None without a token.
        security: how it connects.
        proxy: which proxy it uses, and how to avoid it, as the end of an error message; "" if it uses none.
    """

    channels: tuple[Any, Any]
    service: Any
    streams: Any
    health: Any
    metadata: Callable[[], Metadata | None]
    security: Security
    proxy: str


def open_connections(
    transport: Any, address: str, credentials: Credentials, num_connections: int, *, use_proxy: bool = True
) -> list[Connection]:
    """Create channels and the stubs on them; nothing is sent yet.

    Args:
        transport: ``grpc`` or ``grpc.aio``.
        address: as a user wrote it.
        credentials: TLS files and token.
        num_connections: how many; all have the same credentials.
        use_proxy: whether they use the proxy in the environment. A proxy cannot reach this machine by the addresses for which
            ``is_local`` is true, so those connections never do.

    Raises:
        InvalidAddress: the address cannot be that of a gRPC service.
        InvalidCredentials: a file or the token cannot be used.
    """
    target, scheme_tls = parse_address(address)
    try:
        tls = credentials.check(tls=scheme_tls, local=is_local(target))
        metadata = _metadata(credentials)
        use_proxy = use_proxy and not is_local(target)
        options = pool_options(target, use_proxy=use_proxy)
        if tls:
            # Shared, because the authorities are parsed once for each of these objects.
            secure = grpc.ssl_channel_credentials(*credentials.pem())
            open_channel = partial(transport.secure_channel, target, secure)
        else:
            open_channel = partial(transport.insecure_channel, target)
    except CredentialsError as error:
        raise InvalidCredentials(error.argument, error.reason) from None
    security, proxy = Security(target, tls, credentials), _proxy() if use_proxy else ""
    connections = []
    for _ in range(num_connections):
        unary, streams = open_channel(options), open_channel((*options, *STREAM_OPTIONS))
        connections.append(
            Connection(
                (unary, streams),
                digits_pb2_grpc.DigitServiceStub(unary),  # type: ignore[no-untyped-call] # generated
                digits_pb2_grpc.DigitServiceStub(streams),  # type: ignore[no-untyped-call] # generated
                health_pb2_grpc.HealthStub(unary),
                metadata,
                security,
                proxy,
            )
        )
    return connections


def _proxy() -> str:
    variable = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    return f"; connections use the proxy in {variable}, except to hosts in no_proxy" if variable else ""


def _metadata(credentials: Credentials) -> Callable[[], Metadata | None]:
    # Not as gRPC's call credentials: they exist for TLS only, and use another thread per call.
    authorization = credentials.authorization()
    if authorization is None:
        return lambda: None
    return lambda: (("authorization", authorization()),)


def health_request(service: str) -> health_pb2.HealthCheckRequest:
    """Return the request for the health of a service; ``""`` means the whole server."""
    return health_pb2.HealthCheckRequest(service=service)


def health_name(response: health_pb2.HealthCheckResponse) -> str:
    """Return the name of a health status, such as ``SERVING``."""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


class Cause(NamedTuple):
    """Why a call failed, as far as its error does not state it.

    Attributes:
        disconnected: why there is no connection after a call that waited for one until its deadline; "" if there may be one.
        refused: why the TLS handshake failed, and what to do; "" if it did not fail.
        proxy: that the call used a proxy, and how to avoid it; "" if it did not.
    """

    disconnected: str = ""
    refused: str = ""
    proxy: str = ""


_UNKNOWN = Cause()


def find_cause(one: Connection, error: grpc.RpcError) -> Cause:
    """Find out why a call on a blocking channel failed."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Cause(refused=one.security.investigate(error.details() or ""), proxy=one.proxy)
    return find_disconnection(one) if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else _UNKNOWN


async def find_cause_async(one: Connection, error: grpc.RpcError) -> Cause:
    """Do the same for an asynchronous channel."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        details = error.details() or ""
        refused = (
            await asyncio.to_thread(one.security.investigate, details) if details.startswith(NOT_CONNECTED) else ""
        )
        return Cause(refused=refused, proxy=one.proxy)
    return await find_disconnection_async(one) if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else _UNKNOWN


def find_disconnection(one: Connection) -> Cause:
    """Find out why a blocking channel has no connection, after a call that waited for one until its deadline.

    The error of that call does not contain the reason. The method that is called here has no retry policy.
    """
    try:
        one.health.Check(health_request(""), timeout=MAX_PROBE_S)
    except grpc.RpcError as error:
        return _disconnection(one, error)
    return _UNKNOWN


async def find_disconnection_async(one: Connection) -> Cause:
    """Do the same for an asynchronous channel."""
    try:
        await one.health.Check(health_request(""), timeout=MAX_PROBE_S)
    except grpc.RpcError as error:
        return _disconnection(one, error)
    return _UNKNOWN


def _disconnection(one: Connection, error: grpc.RpcError) -> Cause:
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return Cause(proxy=one.proxy)
    details = error.details() or "no details"
    return Cause(details, one.security.explain(details), one.proxy)


def to_client_error(error: grpc.RpcError, timeout_s: float, prefix: str = "", cause: Cause = _UNKNOWN) -> ClientError:
    """Convert the error of a failed call.

    Args:
        error: of a blocking or an asynchronous call.
        timeout_s: the timeout of the call as a whole.
        prefix: start of the message, such as the names of the images; "" for none.
        cause: of ``find_cause``.
    """
    code, details = error.code(), error.details() or ""
    prefix = f"{prefix}: " if prefix else ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return overdue(prefix, timeout_s, cause, details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unreachable(prefix, details, cause)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC itself rejects a message over the limit, before the service can give advice.
        details = f"{details}; reduce the image (see max_side), send it in grey, or send fewer images per request"
    status = f"{prefix}{code.name}: {details or 'without a message'}"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"{status}; the token is missing or wrong: pass token_file or token", code)
    return RequestRejected(status, code, _retry_after_s(rpc_status.from_call(error)))


def overdue(prefix: str, timeout_s: float, cause: Cause, details: str = "") -> ClientError:
    """Return the error of a call that was not answered in time; arguments as for ``to_client_error``."""
    start = f"{prefix}no answer within {timeout_s:g} s"
    if cause.refused:
        return HandshakeFailed(f"{start}, and no connection: {cause.refused} ({_PREAMBLE.sub('', cause.disconnected)})")
    if cause.disconnected:
        return DeadlineExceeded(
            f"{start}, and no connection ({cause.disconnected}); "
            f"is 'digitserve serve' still running at this address?{cause.proxy}"
        )
    return DeadlineExceeded(f"{start}{f' ({details})' * bool(details)}{cause.proxy}")


def _unreachable(prefix: str, details: str, cause: Cause) -> Unreachable:
    if cause.refused:
        return HandshakeFailed(f"{prefix}no connection: {cause.refused} ({_PREAMBLE.sub('', details)})")
    if "Failed parsing HTTP/2" in details:
        return Unreachable(
            f"{prefix}the server does not speak gRPC; use the gRPC port of the service, 50051 by default"
        )
    return Unreachable(
        f"{prefix}no service answers ({details}); is 'digitserve serve' running at this address?{cause.proxy}"
    )


_PREAMBLE = re.compile(f"(?:{'|'.join(NOT_CONNECTED)}); last error: [A-Z]+: ")


def to_rejection(status: status_pb2.Status, prefix: str) -> RequestRejected:
    """Convert the error that a stream carries in place of a response."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return RequestRejected(f"{prefix}: {code.name}: {status.message}", code, _retry_after_s(status))


def _retry_after_s(status: status_pb2.Status | None) -> float | None:
    retry = error_details_pb2.RetryInfo()
    if status is not None and any(packed.Unpack(retry) for packed in status.details):
        return float(retry.retry_delay.ToNanoseconds()) / 1e9
    return None
