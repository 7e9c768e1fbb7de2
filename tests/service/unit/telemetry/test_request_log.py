"""Log lines of single requests: which are written, and what they state about the caller."""

import itertools
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.protocol.names import CLASSIFY, Code
from digitserve.protocol.status import Status
from digitserve.telemetry.request_log import MAX_TEXT, REPORT_S, Refused, RequestLog, TraceContext, parse_traceparent
from support.log_lines import capture_logs

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01".encode()

HEX = "0123456789abcdef"


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=length, max_size=length)


@given(
    version=hexadecimal(2),
    trace_id=hexadecimal(32),
    span_id=hexadecimal(16),
    flags=hexadecimal(2),
    more=st.sampled_from(["", "-", "-what the future brings", "x"]),
)
def test_traceparent_follows_the_specification(
    version: str, trace_id: str, span_id: str, flags: str, more: str
) -> None:
    """W3C Trace Context, 3.2: version ff and ids of zeros are invalid; only versions after 00 may have more parts."""
    valid = (
        version != "ff"
        and set(trace_id) != {"0"}
        and set(span_id) != {"0"}
        and (not more or (version != "00" and more[0] == "-"))
    )
    parsed = parse_traceparent(f"{version}-{trace_id}-{span_id}-{flags}{more}".encode())
    assert parsed == (TraceContext(trace_id, span_id) if valid else None)


@given(position=st.integers(0, len(TRACEPARENT) - 1), byte=st.integers(0, 255))
def test_traceparent_has_only_lower_case_digits_and_dashes(position: int, byte: int) -> None:
    """With another byte at any position, the field is invalid unless the byte is a digit in the place of one."""
    changed = TRACEPARENT[:position] + bytes([byte]) + TRACEPARENT[position + 1 :]
    same_kind = (byte in HEX.encode()) == (TRACEPARENT[position] != ord("-")) and (byte in b"-" + HEX.encode())
    assert (parse_traceparent(changed) is not None) == same_kind


@pytest.mark.parametrize(
    "value",
    [
        b"", b"00", TRACEPARENT[:-1], TRACEPARENT.upper(), TRACEPARENT + b"-", TRACEPARENT + b"0", b" " + TRACEPARENT,
        TRACEPARENT + b"\n", b"ff" + TRACEPARENT[2:], f"00-{'0' * 32}-{SPAN}-01".encode(), f"00-{TRACE}-{'0' * 16}-01".encode(),
    ],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored(value: bytes) -> None:
    """With an invalid ``traceparent`` the line has no trace context, as if the caller had sent none."""
    assert parse_traceparent(value) is None
    assert "trace_id" not in line([(b"traceparent", value)])


def line(metadata: Sequence[tuple[bytes, ...]] = (), peer: Any = ("192.0.2.1", 5), **fields: Any) -> dict[str, Any]:
    """Return the fields of a line about a call with this metadata."""
    log = RequestLog(lines_per_s=1.0, model="digits/1")
    now = time.monotonic()
    caller = Refused(peer, metadata, now - 0.5, math.inf)
    with capture_logs() as lines:
        log.write("call failed", CLASSIFY, caller, Code.INVALID_ARGUMENT, "invalid", now, "no pixels", **fields)
    (written,) = lines
    return {name: value for name, value in written.items() if value is not None}


def test_a_line_states_the_call_and_its_caller() -> None:
    """A line has the caller's request id and trace context, and no other header field."""
    written = line(
        [
            (b"user-agent", b"grpc"), (b"authorization", b"Bearer secret"), (b"x-request-id", b"id-7"),
            (b"traceparent", TRACEPARENT, b"more"),
        ],
        images=3,
    )  # fmt: skip
    assert written == {
        "event": "call failed", "log_level": "warning", "request_id": "id-7", "trace_id": TRACE, "span_id": SPAN,
        "method": "digitserve.v1.DigitService/Classify", "code": "InvalidArgument", "reason": "invalid", "detail": "no pixels",
        "peer": "192.0.2.1:5", "total_ms": 500.0, "model": "digits/1", "images": 3,
    }  # fmt: skip


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"two words", b"caf\xc3\xa9", b"line\nbreak", None, b"twice"])
def test_a_request_id_is_created_if_there_is_no_sane_one(sent: bytes | None) -> None:
    """An id of 1 to 128 visible ASCII characters is used; another one, none or two are replaced by a random one."""
    metadata = [(b"x-request-id", sent)] * (2 if sent == b"twice" else 1) if sent is not None else []
    assert re.fullmatch("[0-9a-f]{16}", line(metadata)["request_id"])


@pytest.mark.parametrize(
    ("peer", "text"), [(("2001:db8::1", 7, 0, 0), "[2001:db8::1]:7"), ("unix:", "unix:"), (b"", None), (None, None)]
)
def test_addresses(peer: Any, text: str | None) -> None:
    """IPv6 addresses are in brackets; a client without an address has no such field."""
    assert line(peer=peer).get("peer") == text


def test_a_deadline_counts_from_the_start_of_the_call() -> None:
    """``deadline_ms`` is what the caller allowed, not what was left."""
    now = time.monotonic()
    caller = Refused("", (), now - 0.3, time.time() + 0.7)
    with capture_logs() as lines:
        RequestLog(1.0).write("call failed", CLASSIFY, caller, Code.OK, "slow", now, "")
    assert lines[0]["deadline_ms"] == pytest.approx(1_000, abs=50)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.RESOURCE_EXHAUSTED, "queue_full"), (Code.DEADLINE_EXCEEDED, "deadline"), (Code.UNAVAILABLE, "draining"),
        (Code.UNIMPLEMENTED, "unknown_method"), (Code.UNAUTHENTICATED, "unauthenticated"),
    ],
)  # fmt: skip
def test_a_refused_call_has_its_path(code: Code, reason: str) -> None:
    """The path of an unknown method is the caller's, so its length is limited."""
    log = RequestLog(lines_per_s=1.0)
    caller = Refused("", (), 5.0, math.inf)
    with capture_logs() as lines:
        log.refused("/" + "x" * 1_000, caller, Status(code, "why"), 5.0)
    assert (lines[0]["method"], lines[0]["reason"], lines[0]["detail"]) == ("x" * MAX_TEXT, reason, "why")
    assert log.refusals_from == 6.0


# The token bucket, with times passed in.

RATES = st.floats(0.05, 100)
STEPS = st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["failure", "slow", "refusal"])), max_size=60)


def admitted(log: RequestLog, kind: str, now: float) -> bool:
    """Ask for a line as the handlers and transports do."""
    if kind == "failure":
        return log.admits("invalid", now)
    if kind == "slow":
        return log.admits_slow(now)
    with capture_logs() as lines:
        if now >= log.refusals_from:
            log.refused("/", Refused("", (), now, math.inf), Status(Code.UNAVAILABLE), now)
    return bool(lines)


@given(rate=RATES, steps=STEPS)
def test_lines_have_a_bounded_rate(rate: float, steps: list[tuple[float, str]]) -> None:
    """In any time there are at most the lines of its length and of one second, and at least one."""
    log, now, times = RequestLog(rate), 100.0, []
    for pause_s, kind in steps:
        now += pause_s
        if admitted(log, kind, now):
            times.append(now)
    for first, last in itertools.combinations_with_replacement(range(len(times)), 2):
        num_lines = last - first + 1
        assert num_lines <= max(1.0, rate) + rate * (times[last] - times[first]) + 1e-6


@given(rate=RATES, pauses=st.lists(st.floats(0, 2), max_size=100))
def test_refusals_do_not_displace_failures(rate: float, pauses: list[float]) -> None:
    """After any number of refusals, three quarters of the lines of a second are left for failures."""
    log, now = RequestLog(rate), 100.0
    for pause_s in pauses:
        now += pause_s
        admitted(log, "refusal", now)
    failures = sum(admitted(log, "failure", now) for _ in range(200))
    assert failures >= int(0.75 * rate) - 1


def test_slow_calls_leave_room_for_failures_but_not_for_refusals() -> None:
    """Of 10 lines at once, slow calls get half; then there are failures, and no refusals."""
    log = RequestLog(10.0)
    assert [admitted(log, "slow", 5.0) for _ in range(10)].count(True) == 5
    assert not admitted(log, "refusal", 5.0)
    assert [admitted(log, "failure", 5.0) for _ in range(10)].count(True) == 5


def test_omitted_lines_are_counted_and_reported() -> None:
    """A minute after the first omitted line their number is due; overload and cancellations are in other metrics."""
    log, counted = RequestLog(1.0), itertools.count()
    log.count_omitted = lambda: next(counted)
    assert log.admits("invalid", 5.0)
    assert not log.admits("invalid", 5.1)
    assert not log.admits_slow(5.2)
    assert not log.admits("cancelled", 5.3)
    assert log.report_at == 5.1 + REPORT_S
    assert next(counted) == 2
    with capture_logs() as lines:
        log.report()
        log.report()
    assert [(written["event"], written["num_lines"]) for written in lines] == [("request lines omitted", 2)]
    assert log.report_at == math.inf


def test_without_a_rate_there_are_no_lines() -> None:
    """0 turns the lines off; then none counts as omitted, and no call is slow."""
    log = RequestLog(0.0, slow_s=0.1)
    assert not any(admitted(log, kind, 1e9) for kind in ("failure", "slow", "refusal"))
    assert (log.report_at, log.slow_s) == (math.inf, math.inf)


def http(path: str = "/nonesuch", **headers: str) -> dict[str, Any]:
    return {
        "method": "GET", "path": path, "query_string": b"token=secret", "client": ("192.0.2.1", 5),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip


def test_a_failed_http_request_is_a_line_without_its_query() -> None:
    """A query may contain a secret; the path is the caller's, so its length is limited."""
    log = RequestLog(10.0)
    with capture_logs() as lines:
        log.http_failed(
            http("/" + "x" * 1_000, traceparent=TRACEPARENT.decode(), authorization="secret"), 404, 1.0, 1.5
        )
    (written,) = lines
    assert (written["trace_id"], written["code"], written["total_ms"]) == (TRACE, 404, 500.0)
    assert written["method"] == "GET /" + "x" * (MAX_TEXT - 1)
    assert "secret" not in repr(written)
