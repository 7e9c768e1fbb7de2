"""Connections of a service with tokens, without sockets."""

from pathlib import Path

import pytest

from digitserve.access import UNAUTHENTICATED, Tokens
from digitserve.protocol.names import CLASSIFY, HEALTH_SERVICE, Code
from digitserve.telemetry.block import METHODS, OTHER_METHOD, Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.native.guard import Guard
from digitserve.transport.native.hpack import encode_fields
from support.bundles import LABELS
from support.http2_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    STREAM,
    UNARY,
    Peer,
    headers,
    message,
    raw,
    request,
)  # fmt: skip

FIRST, SECOND = b"first-token-0123456789", b"second-token-0123456789"
HEALTH = f"/{HEALTH_SERVICE}/Anything".encode()

Field = tuple[bytes, bytes]


def bearer(token: bytes) -> Field:
    return b"authorization", b"Bearer " + token


class Service:
    """Tokens that change, the metrics of refused calls, and a client with one connection.

    Attributes:
        judged: values that were compared with the tokens.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "tokens"
        self.path.write_bytes(FIRST)
        self.tokens = Tokens(self.path)
        self.block = Block(LABELS)
        self.judged: list[bytes] = []
        admits = self.tokens.admits
        monkeypatch.setattr(self.tokens, "admits", lambda value: self.judged.append(value) or admits(value))  # type: ignore[func-returns-value]
        self.peer = Peer(guard=Guard(self.tokens, Recorder(self.block, LABELS)))
        self.stream_id = -1

    def change(self, *tokens: bytes) -> None:
        self.path.write_bytes(b"\n".join(tokens))
        self.tokens.check()

    def call(self, *fields: Field, path: bytes = UNARY) -> int | None:
        """Make a call whose header block does not use the dynamic table, so it is remembered; return its status."""
        self.stream_id += 2
        block = encode_fields(request(path, *fields))
        body = raw(DATA, END_STREAM, self.stream_id, message(b"hello"))
        self.peer.send(raw(HEADERS, END_HEADERS, self.stream_id, block), body)
        return self.peer.answer(self.stream_id).status

    def num_refused(self) -> dict[str, float]:
        """Return the number of calls with UNAUTHENTICATED by method."""
        cells = self.block.cells["grpc_server_handled"].reshape(len(METHODS), len(Code))[:, Code.UNAUTHENTICATED]
        return {method.name: count for method, count in zip(METHODS, cells, strict=True) if count}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(tmp_path, monkeypatch)


@pytest.mark.parametrize("path", [UNARY, STREAM, b"/unknown"])
def test_a_refused_call_reaches_no_handler(service: Service, path: bytes) -> None:
    """A call without a valid token is answered when its header fields arrive; its message is ignored."""
    peer = service.peer
    peer.send(headers(1, request(path, bearer(b"wrong"))))
    assert peer.answer(1).status == Code.UNAUTHENTICATED
    assert peer.answer(1).trailers[b"grpc-message"].decode() == UNAUTHENTICATED.message
    assert peer.send(raw(DATA, END_STREAM, 1, message(b"hello"))) == []
    assert peer.unary.events == peer.stream.events == peer.unknown.events == []
    assert not peer.connection.streams and not peer.connection.answered


def test_calls_are_counted_by_method(service: Service) -> None:
    """Refused calls count under their method, those of unknown ones together."""
    for path in (CLASSIFY.path.encode(), CLASSIFY.path.encode(), b"/unknown"):
        assert service.call(path=path) == Code.UNAUTHENTICATED
    assert service.num_refused() == {CLASSIFY.name: 2, OTHER_METHOD.name: 1}


def test_health_is_free(service: Service) -> None:
    """Methods of the health service need no token."""
    service.call(path=HEALTH)
    assert len(service.peer.unknown.calls) == 1 and not service.num_refused()


def test_each_request_of_a_connection_is_judged_by_its_own_fields(service: Service) -> None:
    """A valid token admits its own call only, in whatever order calls with and without it follow each other."""
    fields: list[tuple[Field, ...]] = [(), (bearer(FIRST),), (bearer(SECOND),), (bearer(FIRST), bearer(FIRST))]
    for number in range(32):
        sent = fields[number * 7 // 3 % len(fields)]
        expected = Code.OK if sent == (bearer(FIRST),) else Code.UNAUTHENTICATED
        assert service.call(*sent) == expected


def test_the_verdict_is_remembered(service: Service) -> None:
    """Equal header blocks, and equal tokens with other fields, are compared with the tokens once."""
    for _ in range(3):
        assert service.call(bearer(FIRST)) == Code.OK
    for number in range(3):
        assert service.call(bearer(FIRST), (b"x-request", b"%d" % number)) == Code.OK
    assert service.judged == [bearer(FIRST)[1]]


def test_a_change_of_the_tokens_ends_what_is_remembered(service: Service) -> None:
    """After a change every verdict is made again, also for remembered header blocks."""
    assert (service.call(bearer(FIRST)), service.call(bearer(SECOND))) == (Code.OK, Code.UNAUTHENTICATED)
    service.change(FIRST, SECOND)
    assert (service.call(bearer(FIRST)), service.call(bearer(SECOND))) == (Code.OK, Code.OK)
    service.change(SECOND)
    assert (service.call(bearer(FIRST)), service.call(bearer(SECOND))) == (Code.UNAUTHENTICATED, Code.OK)
    service.change(FIRST)
    assert service.call(bearer(SECOND), (b"x-request", b"other")) == Code.UNAUTHENTICATED


def test_refusals_obey_the_limit_of_streams(service: Service) -> None:
    """A refused request counts as an open stream until it ends, so a client cannot start more of them than of others."""
    limit = service.peer.connection.limits.max_streams
    ids = range(1, 2 * limit + 3, 2)
    service.peer.send(*(headers(each, request(UNARY), END_HEADERS) for each in ids))
    assert [service.peer.answer(each).reset is None for each in ids] == [True] * limit + [False]
