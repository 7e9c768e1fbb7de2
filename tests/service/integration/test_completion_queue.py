"""The contract with grpcio's internals: what ``completion_queue`` takes for granted, on the releases it is pinned to."""

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from importlib.metadata import requires, version
from types import MethodType

import grpc
import pytest
from grpc import _server as grpc_server
from packaging.requirements import Requirement

from digitserve.transport.grpcio.completion_queue import OPTIONS, Call, Server
from support.serving import PATIENCE_S, wait_until

METHOD = "/test.Echo/Echo"


class Echo:
    """Answers with what it was sent; keeps what must wait."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waiting: list[Call] = []

    def on_accept(self, call: Call) -> None:
        self.events.append("accept")

    def on_message(self, call: Call, body: bytes) -> None:
        self.events.append("message")
        if body == b"wait":
            self.waiting.append(call)
        elif body == b"fail":
            call.fail(5, "not found: \u00fc", b"details")
        else:
            call.reply(body)

    def on_silence(self, call: Call) -> None:
        self.events.append("silence")

    def on_too_large(self, call: Call) -> None:
        self.events.append("too large")
        call.fail(8, "too large")

    def on_close(self, call: Call) -> None:
        self.events.append("close")


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def channel(echo: Echo) -> Iterator[grpc.Channel]:
    with futures.ThreadPoolExecutor(2) as pool:
        ordinary = grpc.server(pool, options=(*OPTIONS, ("grpc.max_receive_message_length", 1 << 16)))
        port = ordinary.add_insecure_port("127.0.0.1:0")
        server = Server(ordinary)
        server.take(METHOD, echo)
        server.start()
        thread = threading.Thread(target=lambda: all(server.poll(0.05) is not None for _ in iter(int, 1)))
        thread.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as connected:
            yield connected
        server.begin_shutdown()
        server.cancel_all()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


def test_the_pinned_releases_are_the_ones_this_contract_was_tried_on() -> None:
    """Grpcio is pinned to the minor release that is installed here, on which these tests pass."""
    (pin,) = [r for r in map(Requirement, requires("digitserve") or []) if r.name == "grpcio"]

    assert version("grpcio") in pin.specifier
    major, minor = map(int, version("grpcio").split(".")[:2])
    assert f"{major}.{minor + 1}.0" not in pin.specifier


def test_own_tags_are_told_from_grpcios() -> None:
    """Grpcio's own tags are strings or plain functions, never bound methods, which are ours."""
    assert not isinstance(grpc_server._SHUTDOWN_TAG, MethodType)
    assert not isinstance(grpc_server._REQUEST_CALL_TAG, MethodType)
    for make in (grpc_server._receive_close_on_server, grpc_server._receive_message):
        assert not isinstance(
            make(grpc_server._RPCState(), *([None, None] if "message" in make.__name__ else [])), MethodType
        )


def test_a_call_is_accepted_read_and_answered(channel: grpc.Channel, echo: Echo) -> None:
    """Events come in the order accept, message; the reply is what the taker gave, also when it is empty."""
    call = channel.unary_unary(METHOD)

    assert call(b"hello", timeout=PATIENCE_S) == b"hello"
    assert call(b"", timeout=PATIENCE_S) == b""
    assert echo.events == ["accept", "message"] * 2


def test_a_failure_carries_code_text_and_details(channel: grpc.Channel) -> None:
    """A status has its code, a message of any characters, and trailing details."""
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(METHOD)(b"fail", timeout=PATIENCE_S)

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "not found: \u00fc"
    assert dict(failed.value.trailing_metadata())["grpc-status-details-bin"] == b"details"


def test_a_cancelled_call_closes(channel: grpc.Channel, echo: Echo) -> None:
    """A client that cancels is noticed while its call waits; the call is then no longer open."""
    future = channel.unary_unary(METHOD).future(b"wait")
    wait_until(lambda: echo.waiting, "the message has arrived")
    future.cancel()
    wait_until(lambda: echo.events[-1] == "close", "the close is noticed")

    assert not echo.waiting[0].open


def test_an_expired_call_closes_and_knew_its_deadline(channel: grpc.Channel, echo: Echo) -> None:
    """A deadline arrives as Unix time, infinite where there is none; when it passes, the call closes."""
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(METHOD)(b"wait", timeout=1)
    # Kept, for a call that is forgotten is cancelled.
    kept = channel.unary_unary(METHOD).future(b"wait")
    wait_until(lambda: len(echo.waiting) == 2, "both have arrived")
    wait_until(lambda: "close" in echo.events, "the close is noticed")

    assert 1e9 < echo.waiting[0].deadline < 1e11
    assert echo.waiting[1].deadline > 1e18
    kept.cancel()


def test_silence_and_cancellation_before_a_message_are_told_apart(channel: grpc.Channel, echo: Echo) -> None:
    """A call that half-closes without a message is silent; one that is cancelled before its message is closed."""
    gate = threading.Event()

    def nothing() -> Iterator[bytes]:
        gate.wait(PATIENCE_S)
        yield from ()

    with pytest.raises(grpc.RpcError):
        channel.stream_unary(METHOD)(iter(()), timeout=PATIENCE_S)
    wait_until(lambda: "silence" in echo.events, "the silence is noticed")
    future = channel.stream_unary(METHOD).future(nothing())
    wait_until(lambda: echo.events.count("accept") == 2, "the second call is accepted")
    future.cancel()
    gate.set()
    wait_until(lambda: echo.events[-1] == "close", "the cancellation is noticed")

    assert echo.events.count("silence") == 1


def test_a_message_over_the_limit_is_reported(channel: grpc.Channel, echo: Echo) -> None:
    """A message that core refuses for its size is told from silence."""
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(METHOD)(bytes(1 << 17), timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait_until(lambda: echo.events == ["accept", "too large"], "it is reported")


def test_calls_matched_before_a_shutdown_are_answered_after_it(echo: Echo) -> None:
    """Calls that core has matched with an accept, and whose events are taken only after the shutdown has begun, are
    answered like all others: no exception leaves the loop.
    """
    with futures.ThreadPoolExecutor(1) as pool:
        ordinary = grpc.server(pool, options=OPTIONS)
        port = ordinary.add_insecure_port("127.0.0.1:0")
        server = Server(ordinary)
        server.take(METHOD, echo)
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(METHOD)
            first = call.future(b"first", timeout=PATIENCE_S)
            while not first.done():
                server.poll(0.05)
            calls = [call.future(b"later", timeout=PATIENCE_S) for _ in range(100)]
            # Nobody polls: core's own threads read the calls and match them.
            time.sleep(0.5)
            server.begin_shutdown()
            # The server says once only that it has stopped: it may be here, when the last call is over.
            stopped = False
            while not stopped and not all(future.done() for future in calls):
                stopped = server.poll(0.05) is None
            answered = sum(future.code() is grpc.StatusCode.OK for future in calls)
        server.cancel_all()
        while not stopped:
            stopped = server.poll(0.05) is None

    assert answered == echo.events.count("message") - 1
    assert {future.code() for future in calls} <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
    }
    assert answered > 0


def test_unknown_methods_take_the_ordinary_path(channel: grpc.Channel, echo: Echo) -> None:
    """A method that nobody took is answered by grpcio itself, beside ours."""
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/test.Echo/Other")(b"", timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert echo.events == []
