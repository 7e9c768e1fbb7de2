"""Metrics of closed connections, and of requests that the transport refuses or ends."""

import dataclasses
from collections.abc import Callable

import pytest

from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native.limits import ReceiveBudget
from support.http2_peer import (
    CONTINUATION,
    HEADERS,
    LIMITS,
    PING,
    PREFACE,
    STREAM,
    UNARY,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
)

MANY_FIELDS = [(b"name-%d" % number, b"a" * 1000) for number in range(20)]
TWO_STREAMS = dataclasses.replace(LIMITS, max_streams=2)

NO_RPC = {
    RefusalReason.MALFORMED: [headers(1, request(UNARY, (b"X", b"y")))],
    RefusalReason.NOT_GRPC: [headers(1, request(method=b"GET"))],
    RefusalReason.HEADERS_TOO_LARGE: [
        raw(HEADERS, 0, 1, headers(1, request(UNARY, *MANY_FIELDS))[9:]), raw(CONTINUATION, 4, 1)
    ],
    RefusalReason.BAD_TIMEOUT: [headers(1, request(UNARY, (b"grpc-timeout", b"soon")))],
}  # fmt: skip


@pytest.mark.parametrize("reason", NO_RPC)
def test_requests_that_are_no_rpcs_are_counted_by_reason(reason: RefusalReason) -> None:
    """Each is counted once, and no handler gets it, so that RPCs that are started and handled agree."""
    peer = Peer()
    peer.send(*NO_RPC[reason])
    assert peer.counts.refused == {reason: 1}
    assert not peer.unary.events and not peer.connection.closing


def test_streams_over_the_limit_are_counted() -> None:
    """Those that are refused are no RPCs; the others go on."""
    peer = Peer(TWO_STREAMS)
    peer.send(*map(headers, (1, 3, 5, 7)))
    assert peer.counts.refused == {RefusalReason.TOO_MANY: 2}
    assert len(peer.unary.calls) == 2


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_rpcs_that_end_by_a_limit_are_counted(path: bytes) -> None:
    """A message that has no room or does not arrive in time is counted by reason, besides the end of its RPC."""
    peer = Peer(budget=ReceiveBudget(100))
    peer.send(headers(1, request(path)), data(1, message(bytes(1000))[:-1]))
    assert peer.counts.refused == {RefusalReason.RECEIVE_MEMORY: 1}
    peer = Peer()
    peer.send(headers(1, request(path)), data(1, message(bytes(100_000))[:50_000]))
    peer.check()
    peer.now += LIMITS.message_s + 1
    peer.check()
    assert peer.counts.refused == {RefusalReason.MESSAGE_TIMEOUT: 1}


def test_ordinary_calls_count_nothing() -> None:
    """Answers, errors, cancellations and deadlines are no refusals: the RPC metrics have them."""
    peer = Peer()
    for stream_id in range(1, 100, 2):
        peer.send(call(stream_id))
    peer.unary.answer = lambda unary, body: None
    peer.send(call(101), reset(101), call(103, b"", UNARY, (b"grpc-timeout", b"1S")), call(105, path=b"/un/known"))
    peer.wall += 2
    peer.check()
    assert not peer.counts.refused and not peer.connection.streams


def fail(_call: object, _body: bytes) -> None:
    raise ZeroDivisionError


def _crash(peer: Peer) -> None:
    peer.unary.answer = fail
    peer.send(call(1))


def _wait(peer: Peer) -> None:
    peer.send(headers(1, flags=0))
    peer.now += LIMITS.handshake_s + 1
    peer.check()


ENDS: dict[CloseReason, Callable[[Peer], object]] = {
    CloseReason.PROTOCOL_ERROR: lambda peer: peer.send(raw(PING, 0, 0, b"short")),
    CloseReason.FLOOD: lambda peer: peer.send(settings() * 2000),
    CloseReason.TIMEOUT: _wait,
    CloseReason.INTERNAL: _crash,
    CloseReason.DRAIN: lambda peer: peer.connection.drain(peer.now),
}


@pytest.mark.parametrize("reason", ENDS)
def test_the_reason_for_the_end_of_a_connection_is_known(reason: CloseReason) -> None:
    """The connection keeps the reason for which this side ends it; the loop counts it."""
    peer = Peer()
    assert peer.connection.close_reason is None
    ENDS[reason](peer)
    assert peer.connection.close_reason is reason


def test_an_error_during_a_drain_is_the_reason() -> None:
    """What ends a connection counts, not what was announced before."""
    peer = Peer()
    peer.connection.drain(peer.now, CloseReason.AGE)
    peer.send(raw(PING, 0, 0, b"short"))
    assert peer.connection.close_reason is CloseReason.PROTOCOL_ERROR


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1", PREFACE + raw(HEADERS, 4, 1, bytes(9)), raw(PING)])
def test_a_client_of_another_protocol_is_a_protocol_error(sent: bytes) -> None:
    """HTTP/1.1, invalid header compression and a wrong first frame are violations of HTTP/2."""
    peer = Peer(handshake=False)
    peer.send(sent)
    assert peer.connection.close_reason is CloseReason.PROTOCOL_ERROR
