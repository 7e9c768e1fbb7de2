"""Log lines of single requests: which requests of real clients have one, and what it states; on both transports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from digitserve.batching.batcher import Batcher
from digitserve.batching.refusals import Refusals
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, HEALTH_CHECK
from digitserve.v1 import digits_pb2 as pb
from digitserve.v1 import digits_pb2_grpc
from support.bundles import echo_request, write_echo_bundle
from support.log_lines import capture_logs
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("x-request-id", "id-7"), ("secret-bin", b"secret"))

PIXELS = b"\xc5\x17recognisable\x17\xc5"

Lines = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def worker(tmp_path: Path, transport: str, lines: Lines) -> Iterator[RunningWorker]:
    write_echo_bundle(tmp_path)
    changes = {"max_pending_images": 40, "log_requests_per_s": 100.0, "log_slow_s": 0.0}
    with run_worker(tmp_path, transport=transport, **changes) as running:
        yield running


def line_of(lines: Lines, event: str) -> dict[str, Any]:
    """Wait for the one line of this event."""
    wait_until(lambda: any(line["event"] == event for line in lines), event)
    (line,) = [line for line in lines if line["event"] == event]
    return line


def call(worker: RunningWorker, body: bytes, path: str = CLASSIFY.path) -> grpc.StatusCode:
    """Make a call with METADATA; return its status code."""
    try:
        worker.channel.unary_unary(path)(body, timeout=PATIENCE_S, metadata=METADATA)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_failed_call_is_one_line_of_its_caller(worker: RunningWorker, lines: Lines) -> None:
    """The line has the request id, trace context and address of the caller, what failed, and sizes and times; neither the pixels
    nor other metadata. Calls that are answered in time have none.
    """
    assert call(worker, echo_request(7).SerializeToString()) is grpc.StatusCode.OK
    body = pb.ClassifyRequest(pixels=PIXELS).SerializeToString()
    assert call(worker, body) is grpc.StatusCode.INVALID_ARGUMENT

    line = line_of(lines, "call failed")
    assert (line["request_id"], line["trace_id"], line["span_id"]) == ("id-7", TRACE, SPAN)
    assert (line["method"], line["code"], line["reason"]) == (
        "digitserve.v1.DigitService/Classify",
        "InvalidArgument",
        "invalid",
    )
    assert line["detail"].startswith("pixels: got 16 bytes")
    assert line["peer"].startswith("127.0.0.1:")
    assert (line["request_bytes"], line["model"]) == (len(body), "digits/1")
    assert 0 < line["total_ms"] < line["deadline_ms"] <= PATIENCE_S * 1e3 + 1e3
    assert len(lines) == 1
    assert "recognisable" not in repr(lines)
    assert "secret" not in repr(lines)


def test_a_call_of_another_method_that_fails_is_a_line(worker: RunningWorker, lines: Lines) -> None:
    """Failed calls of methods that are answered at once, and of methods that do not exist, have a line too."""
    assert call(worker, b"\x0a\x07nothing", HEALTH_CHECK.path) is grpc.StatusCode.NOT_FOUND
    assert call(worker, b"", "/some.Service/Method") is grpc.StatusCode.UNIMPLEMENTED
    failed, refused = line_of(lines, "call failed"), line_of(lines, "call refused")
    assert (failed["method"], failed["code"]) == ("grpc.health.v1.Health/Check", "NotFound")
    assert (refused["code"], refused["reason"]) == ("Unimplemented", "unknown_method")
    assert refused["trace_id"] == TRACE


def test_a_refused_call_is_a_line(
    tmp_path: Path, transport: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is rejected before its message is read has a line with the reason."""
    error = Refusals(max_images=1, max_bytes=1).too_many_images(0.01)
    monkeypatch.setattr(Batcher, "refusal", lambda *_: error)
    write_echo_bundle(tmp_path)
    with run_worker(tmp_path, transport=transport) as worker:
        assert call(worker, echo_request(7).SerializeToString()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    line = line_of(lines, "call refused")
    assert (line["method"], line["code"], line["reason"]) == (
        "digitserve.v1.DigitService/Classify",
        "ResourceExhausted",
        "queue_full",
    )
    assert (line["request_id"], line["trace_id"]) == ("id-7", TRACE)
    assert line["detail"].startswith("the queue has no room")


def test_a_call_without_a_valid_token_is_a_line(tmp_path: Path, transport: str, lines: Lines) -> None:
    """The line states that the token was not valid; no token is in it."""
    write_echo_bundle(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text("the-only-valid-token\n")
    metadata = (*METADATA, ("authorization", "Bearer some-other-token"))
    with run_worker(tmp_path, transport=transport, token_file=tokens) as worker:
        classify = worker.channel.unary_unary(CLASSIFY.path)
        with pytest.raises(grpc.RpcError):
            classify(b"", timeout=PATIENCE_S, metadata=metadata)
    line = line_of(lines, "call refused")
    assert (line["method"], line["code"], line["reason"]) == (
        "digitserve.v1.DigitService/Classify",
        "Unauthenticated",
        "unauthenticated",
    )
    assert line["trace_id"] == TRACE
    assert "token" not in repr({**line, "detail": ""})


def test_a_slow_call_is_a_line(tmp_path: Path, transport: str, lines: Lines) -> None:
    """A call that was answered after ``log_slow_s`` has a line with the time in the queue and of computing."""
    write_echo_bundle(tmp_path)
    with run_worker(tmp_path, transport=transport, log_slow_s=1e-9) as worker:
        assert call(worker, echo_request(7, 8).SerializeToString()) is grpc.StatusCode.OK
    line = line_of(lines, "slow call")
    assert (line["code"], line["reason"], line["images"], line["request_bytes"]) == ("OK", "slow", 2, 2 * 784)
    assert line["total_ms"] >= line["compute_ms"] > 0
    assert line["queue_ms"] >= 0
    assert line["response_bytes"] > 0
    assert line["trace_id"] == TRACE


def test_streams_have_a_line_for_each_failed_message_and_one_at_their_end(worker: RunningWorker, lines: Lines) -> None:
    """The line of the end has the number of messages and of those that failed."""
    good, bad = echo_request(7), pb.ClassifyRequest(pixels=PIXELS)
    stub = digits_pb2_grpc.DigitServiceStub(worker.channel)
    requests = [pb.ClassifyStreamRequest(request=request) for request in (good, bad, good)]
    answers = list(stub.ClassifyStream(iter(requests), timeout=PATIENCE_S, metadata=METADATA))
    assert [answer.WhichOneof("outcome") for answer in answers] == ["response", "error", "response"]

    failed, ended = line_of(lines, "message failed"), line_of(lines, "stream ended")
    assert {failed["method"], ended["method"]} == {f"{CLASSIFY_STREAM.service}/{CLASSIFY_STREAM.name}"}
    assert (failed["code"], failed["reason"], failed["trace_id"]) == ("InvalidArgument", "invalid", TRACE)
    assert (ended["code"], ended["messages"], ended["failed_messages"]) == ("OK", 3, 1)
    assert ended["trace_id"] == TRACE
    assert "recognisable" not in repr(lines)
