"""The health handlers with fake streams, against grpcio's health servicer where it has the same behaviour."""

import contextlib
import gc
import itertools
import weakref
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health as reference
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.names import HEALTH_WATCH, OPEN_INFERENCE_SERVICE, SERVICE, Code
from digitserve.protocol.status import NO_MESSAGE
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.health import Health
from digitserve.types import Source
from support.server_stream import NO_DEADLINE, ScriptedStream, codes_of_ended, num_started

LABELS = tuple("0123456789")
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
KNOWN = ("", SERVICE, OPEN_INFERENCE_SERVICE)
NAMES = (*KNOWN, "nonesuch", "digitserve.v1", "x" * 5000)


def request(service: str = "") -> bytes:
    return HealthCheckRequest(service=service).SerializeToString()


def statuses(stream: ScriptedStream) -> list[int]:
    """Return the statuses written to a watch."""
    return [HealthCheckResponse.FromString(body).status for body in stream.written]


class Server:
    """The health of a worker, and what it records."""

    def __init__(self, max_watches: int = 1000) -> None:
        self.block = Block(LABELS)
        self.health = Health(Recorder(self.block, LABELS), max_watches, clock=lambda: 1.0)

    def watch(
        self, service: str | None = "", deadline: float = NO_DEADLINE, source: Source | None = None
    ) -> ScriptedStream:
        """Open a watch on a connection, by default its own, and send its request if there is one."""
        stream = ScriptedStream(self.health, deadline, source)
        if service is not None:
            stream.receive(request(service))
        return stream

    def ended(self) -> list[Code]:
        return codes_of_ended(self.block, HEALTH_WATCH)


class Reference:
    """grpcio's servicer with the same names and the same changes of the status."""

    def __init__(self) -> None:
        self.servicer = reference.HealthServicer()
        self._set(NOT_SERVING)

    def _set(self, status: Any) -> None:
        for service in KNOWN:
            self.servicer.set(service, status)

    def set_serving(self) -> None:
        self._set(SERVING)

    def set_not_serving(self) -> None:
        self.servicer.enter_graceful_shutdown()

    def check(self, service: str) -> tuple[Code, bytes]:
        """Return the code of a Check, and its response."""
        context = FakeContext()
        response = self.servicer.Check(HealthCheckRequest(service=service), context)
        return Code(context.code.value[0]), response.SerializeToString()

    def watch(self, service: str) -> list[bytes]:
        """Start a watch; its messages are appended to the list."""
        messages: list[bytes] = []
        self.servicer.Watch(
            HealthCheckRequest(service=service), FakeContext(), lambda one: messages.append(one.SerializeToString())
        )
        return messages


class FakeContext:
    """A ``grpc.ServicerContext`` that keeps the code."""

    code = grpc.StatusCode.OK

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def add_callback(self, callback: Any) -> bool:
        return True


def check(health: Health, service: str) -> tuple[Code, bytes]:
    """Return the code of a Check, and its response."""
    try:
        return Code.OK, health.check(request(service))
    except NotServed:
        return Code.NOT_FOUND, b""


CHANGES = st.lists(st.sampled_from(["set_serving", "set_not_serving"]), max_size=4)


@given(CHANGES, st.sampled_from(NAMES) | st.text(max_size=40))
@settings(max_examples=500)
def test_check_answers_as_grpcio_does(changes: list[str], service: str) -> None:
    """After any changes of the status, Check of any name has the response and the code of grpcio's servicer."""
    health, expected = Server().health, Reference()
    for change in changes:
        getattr(health, change)()
        getattr(expected, change)()
        assert check(health, service) == expected.check(service)


@given(CHANGES, CHANGES, st.sampled_from(NAMES))
@settings(max_examples=500)
def test_watch_sends_what_grpcio_sends_without_repetitions(before: list[str], after: list[str], service: str) -> None:
    """A watch whose client reads gets the messages of grpcio's servicer; a status that did not change is sent once."""
    server, expected = Server(), Reference()
    for change in before:
        getattr(server.health, change)()
        getattr(expected, change)()
    stream, messages = server.watch(service), expected.watch(service)
    stream.confirm()
    for change in after:
        getattr(server.health, change)()
        getattr(expected, change)()
        if stream.num_unsent:
            stream.confirm()

    assert stream.written == [one for i, one in enumerate(messages) if i == 0 or messages[i - 1] != one]
    assert stream.open


@pytest.mark.parametrize("change", ["set_serving", "set_not_serving"])
def test_list_returns_each_name_with_the_status_of_its_check(change: str) -> None:
    """List has exactly the fixed names, each with what Check returns for it."""
    health = Server().health
    getattr(health, change)()
    listed = HealthListResponse.FromString(health.list_services(HealthListRequest().SerializeToString())).statuses
    assert {name: one.SerializeToString() for name, one in listed.items()} == {
        name: health.check(request(name)) for name in KNOWN
    }


def test_an_unknown_service_is_explained_in_a_short_message() -> None:
    """The error of Check names what it got and which names exist; a long name is cut, because it is sent as a header."""
    health = Server().health
    with pytest.raises(NotServed, match=f"got 'nonesuch'; expected '' or '{SERVICE}'"):
        health.check(request("nonesuch"))
    with pytest.raises(NotServed, match=r"got 'x{64}\.\.\.'"):
        health.check(request("x" * 100_000))


@given(st.binary(max_size=20))
@settings(max_examples=1000)
def test_any_bytes_are_answered_or_rejected(body: bytes) -> None:
    """For any bytes, unary methods return or raise a ``RequestError``, and a watch gets one message or a status."""
    server = Server()
    for respond in (server.health.check, server.health.list_services):
        with contextlib.suppress(InvalidRequest, NotServed):
            assert isinstance(respond(body), bytes)
    stream = server.watch(None)
    stream.receive(body)
    assert len(stream.written) == 1 if stream.open else stream.code is Code.INVALID_ARGUMENT


def test_the_end_of_serving_is_final() -> None:
    """Once the shutdown has begun, SERVING is not reported again."""
    server = Server()
    server.health.set_serving()
    server.health.set_not_serving()
    server.health.set_serving()
    stream = server.watch()
    assert statuses(stream) == [NOT_SERVING]
    assert server.health.check(request()) == HealthCheckResponse(status=NOT_SERVING).SerializeToString()


def test_a_watch_that_does_not_read_holds_one_message_and_then_gets_the_newest() -> None:
    """While a message is unsent nothing more is written; afterwards only the newest status is."""
    server = Server()
    stream = server.watch(SERVICE)
    server.health.set_serving()
    server.health.set_not_serving()
    assert statuses(stream) == [NOT_SERVING]
    stream.confirm()
    assert statuses(stream) == [NOT_SERVING]

    server = Server()
    stream = server.watch(SERVICE)
    server.health.set_serving()
    stream.confirm()
    assert statuses(stream) == [NOT_SERVING, SERVING]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_second_message_ends_a_watch(confirmed: bool) -> None:
    """A watch with two messages ends with INVALID_ARGUMENT, after its message is sent, even if all are closed then."""
    server = Server()
    stream = server.watch()
    if confirmed:
        stream.confirm()
    stream.receive(request(SERVICE))
    server.health.close_watches()
    if not confirmed:
        stream.confirm()
    assert (stream.code, len(stream.written)) == (Code.INVALID_ARGUMENT, 1)
    stream.close()
    assert server.ended() == [Code.INVALID_ARGUMENT]


def test_a_watch_without_a_message_has_the_status_of_such_a_unary_call() -> None:
    """A client that half-closes before its request gets ``NO_MESSAGE``."""
    server = Server()
    stream = server.watch(None)
    stream.half_close()
    assert stream.status == NO_MESSAGE
    assert stream.written == []


def test_a_half_closed_watch_stays_open() -> None:
    """The half-close after the request, which ordinary clients send, does not end the watch."""
    server = Server()
    stream = server.watch()
    stream.half_close()
    stream.confirm()
    server.health.set_serving()
    assert statuses(stream) == [NOT_SERVING, SERVING]
    assert stream.open


@pytest.mark.parametrize("service", [None, ""])
def test_a_message_over_the_limit_ends_a_watch(service: str | None) -> None:
    """A first or second message that is too large ends the watch with RESOURCE_EXHAUSTED."""
    stream = Server().watch(service)
    if service is not None:
        stream.confirm()
    stream.receive_too_large()
    assert stream.code is Code.RESOURCE_EXHAUSTED


def test_watches_beyond_the_limit_are_refused_until_one_is_closed() -> None:
    """The limit holds for open watches, whether or not their requests arrived; those that exist are not affected."""
    server, source = Server(max_watches=3), Source()
    streams = [server.watch(service, source=source) for service in (None, SERVICE, "nonesuch")]
    refused = server.watch(None, source=source)
    assert (refused.code, refused.reads) == (Code.RESOURCE_EXHAUSTED, 0)
    refused.close()
    streams.pop().close()
    assert server.watch(source=source).open
    assert all(stream.open for stream in streams)
    assert server.ended() == [Code.CANCELLED, Code.RESOURCE_EXHAUSTED]


def test_many_watches_of_a_client_do_not_prevent_those_of_others() -> None:
    """Beyond the limit, the first watch of each connection is accepted; none where the transport does not know connections."""
    server, source, other = Server(max_watches=3), Source(), Source()
    for _ in range(3):
        assert server.watch(source=source).open
    first = server.watch(source=other)
    assert first.open and not server.watch(None, source=other).open
    first.close()
    assert server.watch(source=other).open
    assert not server.watch(None, source=Source(is_connection=False)).open


def test_the_limit_allows_a_watch_on_each_of_a_thousand_connections() -> None:
    """A thousand clients that each watch the health are all notified."""
    server = Server(max_watches=1000)
    streams = [server.watch() for _ in range(1000)]
    for stream in streams:
        stream.confirm()
    server.health.set_serving()
    assert all(statuses(stream) == [NOT_SERVING, SERVING] for stream in streams)


def test_closing_the_watches_sends_the_newest_status_first() -> None:
    """Each watch ends with UNAVAILABLE, the code that grpcio's clients get at a shutdown, after NOT_SERVING is sent."""
    server = Server()
    server.health.set_serving()
    ready, slow, silent, unknown = server.watch(), server.watch(SERVICE), server.watch(None), server.watch("nonesuch")
    ready.confirm()
    unknown.confirm()
    server.health.set_not_serving()
    ready.confirm()
    server.health.close_watches()

    assert [stream.code for stream in (ready, slow, silent, unknown)] == [
        Code.UNAVAILABLE, None, Code.UNAVAILABLE, Code.UNAVAILABLE,
    ]  # fmt: skip
    slow.confirm()
    assert slow.open
    slow.confirm()
    assert slow.code is Code.UNAVAILABLE
    assert statuses(ready) == statuses(slow) == [SERVING, NOT_SERVING]
    assert (statuses(silent), statuses(unknown)) == ([], [SERVICE_UNKNOWN])
    late = server.watch(None)
    assert (late.code, late.reads) == (Code.UNAVAILABLE, 0)


@pytest.mark.parametrize(("deadline", "code"), [(NO_DEADLINE, Code.CANCELLED), (1.0, Code.DEADLINE_EXCEEDED)])
def test_a_watch_that_its_client_ends_is_recorded_by_its_cause(deadline: float, code: Code) -> None:
    """A cancelled watch counts as CANCELLED, an expired one as DEADLINE_EXCEEDED; neither as a rejected request."""
    server = Server()
    stream = server.watch(deadline=deadline)
    assert server.ended() == []
    stream.close()
    assert (server.ended(), num_started(server.block, HEALTH_WATCH)) == ([code], 1)
    assert not server.block.cells["digitserve_rejected"].any()


def test_a_closed_watch_is_freed_without_the_garbage_collector() -> None:
    """Nothing refers to a stream that is closed, whatever service it named."""
    server = Server()
    gc.disable()
    try:
        for service in NAMES:
            stream = server.watch(service)
            freed = weakref.ref(stream)
            stream.close()
            del stream
            assert freed() is None
    finally:
        gc.enable()


class WatchMachine(RuleBasedStateMachine):
    """Watches are opened, asked, read, broken off and closed in any order, while the status changes."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.opened: list[ScriptedStream] = []
        self.services: dict[ScriptedStream, str] = {}
        self.newest, self.final, self.closing = NOT_SERVING, False, False

    @rule(target=streams, deadline=st.sampled_from([NO_DEADLINE, 1.0]))
    def open(self, deadline: float) -> ScriptedStream:
        stream = self.server.watch(None, deadline)
        self.opened.append(stream)
        return stream

    @rule(stream=streams, service=st.sampled_from(NAMES))
    def message(self, stream: ScriptedStream, service: str) -> None:
        if stream.reading:
            self.services.setdefault(stream, service)
            stream.receive(request(service))

    @rule(stream=streams)
    def half_close(self, stream: ScriptedStream) -> None:
        if stream.reading:
            stream.half_close()

    @rule(stream=streams)
    def sent(self, stream: ScriptedStream) -> None:
        if stream.num_unsent and not stream.closed:
            stream.confirm()

    @rule(stream=consumes(streams))
    def close(self, stream: ScriptedStream) -> None:
        stream.close()

    @rule()
    def serve(self) -> None:
        self.server.health.set_serving()
        self.newest = NOT_SERVING if self.final else SERVING

    @rule()
    def drain(self) -> None:
        self.server.health.set_not_serving()
        self.newest, self.final = NOT_SERVING, True

    @rule()
    def close_watches(self) -> None:
        self.server.health.close_watches()
        self.closing = True

    @invariant()
    def at_most_one_message_is_unsent(self) -> None:
        assert all(stream.num_unsent <= 1 for stream in self.opened)

    @invariant()
    def a_watch_that_has_read_everything_has_the_newest_status(self) -> None:
        for stream in self.opened:
            if stream.open and not stream.num_unsent and stream in self.services:
                known = self.services[stream] in KNOWN
                assert statuses(stream)[-1] == (self.newest if known else SERVICE_UNKNOWN)

    @invariant()
    def no_status_is_repeated(self) -> None:
        for stream in self.opened:
            sent = statuses(stream)
            assert all(one != following for one, following in itertools.pairwise(sent))
            assert sent in ([], [SERVICE_UNKNOWN]) or SERVICE_UNKNOWN not in sent

    @invariant()
    def closing_ends_all_that_have_read_everything(self) -> None:
        if self.closing:
            assert not [stream for stream in self.opened if stream.open and not stream.num_unsent]

    def teardown(self) -> None:
        for stream in self.opened:
            while stream.num_unsent and not stream.closed:
                stream.confirm()
        self.a_watch_that_has_read_everything_has_the_newest_status()
        for stream in self.opened:
            if not stream.closed:
                stream.close()
        assert not self.server.health._watches
        assert len(self.server.ended()) == num_started(self.server.block, HEALTH_WATCH) == len(self.opened)


TestWatches = WatchMachine.TestCase
TestWatches.settings = settings(max_examples=1000, stateful_step_count=30)
