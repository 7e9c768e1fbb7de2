"""Contract test: what ``completion_queue`` relies on in grpcio's internals, on the releases that grpcio is pinned to."""

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from importlib.metadata import requires, version
from types import MethodType

import grpc
import pytest
from google.rpc import status_pb2
from grpc import _server as grpc_server
from packaging.requirements import Requirement

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.grpcio.completion_queue import OPTIONS, CompletionQueueServer
from digitserve.transport.handlers import UnaryCall
from support.serving import PATIENCE_S, wait_until

METHOD = "/test.Echo/Echo"


class Echo:
    """Answers with the request itself; keeps the calls that are to wait."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waiting: list[UnaryCall] = []

    def refusal(self, deadline: float) -> Status | None:
        return None

    def on_accept(self, call: UnaryCall) -> None:
        self.events.append("accept")

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        self.events.append("message")
        if body == b"wait":
            self.waiting.append(call)
        elif body == b"fail":
            call.fail(Status(Code.NOT_FOUND, "not found: \u00fc", retry_after_s=1.5))
        else:
            call.reply(body)

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        self.events.append("no message")

    def on_too_large(self, call: UnaryCall) -> None:
        self.events.append("too large")
        call.fail(Status(Code.RESOURCE_EXHAUSTED, "too large"))

    def on_close(self, call: UnaryCall) -> None:
        self.events.append("close")


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def channel(echo: Echo) -> Iterator[grpc.Channel]:
    with futures.ThreadPoolExecutor(2) as pool:
        ordinary = grpc.server(pool, options=(*OPTIONS, ("grpc.max_receive_message_length", 1 << 16)))
        port = ordinary.add_insecure_port("127.0.0.1:0")
        server = CompletionQueueServer(ordinary)
        server.add_unary_handler(METHOD, echo)
        server.start()
        thread = threading.Thread(target=lambda: all(server.poll(0.05) is not None for _ in iter(int, 1)))
        thread.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as connected:
            yield connected
        server.begin_shutdown()
        server.cancel_all()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


def test_grpcio_is_pinned_to_the_tested_release() -> None:
    """Grpcio is pinned to the minor release that is installed here, on which these tests pass."""
    (pin,) = [r for r in map(Requirement, requires("digitserve") or []) if r.name == "grpcio"]

    assert version("grpcio") in pin.specifier
    major, minor = map(int, version("grpcio").split(".")[:2])
    assert f"{major}.{minor + 1}.0" not in pin.specifier


def test_tags_are_distinguished_from_those_of_grpcio() -> None:
    """Grpcio's own tags are strings or plain functions, never bound methods, as those of ``completion_queue`` are."""
    assert not isinstance(grpc_server._SHUTDOWN_TAG, MethodType)
    assert not isinstance(grpc_server._REQUEST_CALL_TAG, MethodType)
    for make in (grpc_server._receive_close_on_server, grpc_server._receive_message):
        assert not isinstance(
            make(grpc_server._RPCState(), *([None, None] if "message" in make.__name__ else [])), MethodType
        )


def test_a_call_is_accepted_read_and_answered(channel: grpc.Channel, echo: Echo) -> None:
    """Events come in the order accept, message; the response is that of the handler, also when it is empty."""
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
    details = status_pb2.Status.FromString(dict(failed.value.trailing_metadata())["grpc-status-details-bin"])
    assert (details.code, details.message, len(details.details)) == (5, "not found: \u00fc", 1)


def test_a_cancelled_call_closes(channel: grpc.Channel, echo: Echo) -> None:
    """When a client cancels, its waiting call gets a close event and is no longer open."""
    future = channel.unary_unary(METHOD).future(b"wait")
    wait_until(lambda: echo.waiting, "the message has arrived")
    future.cancel()
    wait_until(lambda: echo.events[-1] == "close", "the close is reported")

    assert not echo.waiting[0].open


def test_an_expired_call_closes_and_has_its_deadline(channel: grpc.Channel, echo: Echo) -> None:
    """A deadline is given as Unix time, more than 1e18 if there is none; when it passes, the call closes."""
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(METHOD)(b"wait", timeout=1)
    # Kept, because a call without a reference is cancelled.
    kept = channel.unary_unary(METHOD).future(b"wait")
    wait_until(lambda: len(echo.waiting) == 2, "both have arrived")
    wait_until(lambda: "close" in echo.events, "the close is reported")

    assert 1e9 < echo.waiting[0].deadline < 1e11
    assert echo.waiting[1].deadline > 1e18
    kept.cancel()


def test_no_message_and_cancellation_are_distinguished(channel: grpc.Channel, echo: Echo) -> None:
    """A call that half-closes without a message has no message; one that is cancelled before its message is closed."""
    gate = threading.Event()

    def nothing() -> Iterator[bytes]:
        gate.wait(PATIENCE_S)
        yield from ()

    with pytest.raises(grpc.RpcError):
        channel.stream_unary(METHOD)(iter(()), timeout=PATIENCE_S)
    wait_until(lambda: "no message" in echo.events, "the missing message is reported")
    future = channel.stream_unary(METHOD).future(nothing())
    wait_until(lambda: echo.events.count("accept") == 2, "the second call is accepted")
    future.cancel()
    gate.set()
    wait_until(lambda: echo.events[-1] == "close", "the cancellation is reported")

    assert echo.events.count("no message") == 1


def test_a_message_over_the_limit_is_reported(channel: grpc.Channel, echo: Echo) -> None:
    """A message that core discards for its size is distinguished from no message."""
    with pytest.raises(grpc.RpcError) as rejected:
        channel.unary_unary(METHOD)(bytes(1 << 17), timeout=PATIENCE_S)

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait_until(lambda: echo.events == ["accept", "too large"], "it is reported")


def test_calls_matched_before_a_shutdown_are_answered_after_it(echo: Echo) -> None:
    """Calls that core has matched with an accept, and whose events are handled only after the shutdown has begun, are
    answered like all others, without an exception.
    """
    with futures.ThreadPoolExecutor(1) as pool:
        ordinary = grpc.server(pool, options=OPTIONS)
        port = ordinary.add_insecure_port("127.0.0.1:0")
        server = CompletionQueueServer(ordinary)
        server.add_unary_handler(METHOD, echo)
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(METHOD)
            first = call.future(b"first", timeout=PATIENCE_S)
            while not first.done():
                server.poll(0.05)
            calls = [call.future(b"later", timeout=PATIENCE_S) for _ in range(100)]
            # No thread polls now: core's own threads read the calls and match them.
            time.sleep(0.5)
            server.begin_shutdown()
            # ``poll`` returns None only once, when the server has stopped: perhaps here, after the last call.
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


def test_unknown_methods_are_answered_by_grpcio(channel: grpc.Channel, echo: Echo) -> None:
    """A method without a handler is answered by grpcio itself."""
    with pytest.raises(grpc.RpcError) as rejected:
        channel.unary_unary("/test.Echo/Other")(b"", timeout=PATIENCE_S)

    assert rejected.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert echo.events == []
