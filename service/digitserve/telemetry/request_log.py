"""Log lines of single requests: those that failed, were refused or were slow, at a bounded rate.

    handlers, pipeline ──admits──▶ RequestLog ──write──▶ digitserve.log
    transports ──refused──────────────▲

Owned by the ``Recorder`` of a worker and called on the worker's one thread; the HTTP server of the supervisor has its own. Calls
that are answered in time cost nothing here: headers of a caller are only read for a line that is written. Lines never
contain pixels, and no header fields except ``traceparent`` and ``x-request-id``.
"""

import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from digitserve.log import get_logger
from digitserve.protocol.names import Code, Method

REPORT_S = 60.0
"""Seconds after the first line that was omitted until their number is logged."""

MAX_TEXT = 300
"""Most characters of an error's text, and of a path, in a line."""

_RESERVE_S = 1.0
"""Lines that may be written together after a pause, in seconds of their rate."""

_SLOW_SHARE, _REFUSALS_SHARE = 1 / 2, 1 / 4
"""Parts of these lines that slow calls and refusals may use."""

_MAX_DEADLINE_S = 1e9
"""Longer ones are no deadlines: a transport reports about 1e18 s or infinity if the caller set none."""

_YIELDING = {"queue_full", "deadline", "draining", "cancelled", "ended"}
"""Reasons of overload, of clients that leave, and of streams that end well. There may be thousands of them per second, and
metrics count them, so failures come first."""

_REFUSAL_REASONS = {
    Code.RESOURCE_EXHAUSTED: "queue_full",
    Code.DEADLINE_EXCEEDED: "deadline",
    Code.UNAVAILABLE: "draining",
    Code.UNIMPLEMENTED: "unknown_method",
    Code.UNAUTHENTICATED: "unauthenticated",
}
"""Reasons of calls that are refused when they start."""

# W3C Trace Context, level 1, section 3.2.2. Versions after 00 may append more parts; version ff is invalid.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL
)
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")

_log = get_logger("digitserve.requests")


class TraceContext(NamedTuple):
    """The caller's span, from ``traceparent``.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits.
        span_id: 16 of them.
    """

    trace_id: str
    span_id: str


def parse_traceparent(value: bytes) -> TraceContext | None:
    """Return the trace context of a ``traceparent`` field; None if it is invalid (W3C Trace Context, section 3.2.2)."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    return None if version == b"00" and more is not None else TraceContext(trace_id.decode(), span_id.decode())


class Caller(Protocol):
    """What a line states about the origin of a request: a call, a stream, or a request that was refused at once.

    Attributes:
        peer: address of the client; a pair for IP.
        metadata: header fields; the first two items of each are name and value, both bytes.
        accepted: monotonic time in seconds.
        deadline: Unix time in seconds.
    """

    accepted: float
    deadline: float

    @property
    def peer(self) -> Any: ...  # noqa: D102
    @property
    def metadata(self) -> Iterable[Any]: ...  # noqa: D102


@dataclass(slots=True)
class Refused:
    """The ``Caller`` of a call that was refused when it started; see there."""

    peer: Any
    metadata: Iterable[Any]
    accepted: float
    deadline: float


class RequestLog:
    """Writes the lines of one process.

    Its token bucket is one number, as in the generic cell rate algorithm (ITU-T I.371): the time at which the bucket is full
    again. Slow calls may empty it to a half, refusals by a quarter. So neither displaces failures, which may empty it.

    Attributes:
        refusals_from: monotonic time in seconds from which the next line about a refusal may be written. A transport compares
            it itself, because refusals must cost as little as possible.
        slow_s: seconds from which an answered call is slow; infinite for none.
        report_at: monotonic time in seconds at which ``report`` is due; infinite if no line was omitted.
        count_omitted: called for each line about a failure or a slow call that is not written because of the rate.
    """

    def __init__(self, lines_per_s: float = 0.0, slow_s: float = math.inf, model: str | None = None) -> None:
        """Start with a full bucket.

        Args:
            lines_per_s: most lines per second; 0 for none.
            slow_s: see above.
            model: name and version, for each line.
        """
        self.refusals_from = 0.0 if lines_per_s else math.inf
        self.slow_s = slow_s if lines_per_s else math.inf
        self.report_at = math.inf
        self.count_omitted: Callable[[], object] = lambda: None
        self._model = model
        self._interval_s = 1 / lines_per_s if lines_per_s else math.inf
        self._full_at = self.refusals_from
        self._reserve_s = max(0.0, _RESERVE_S - self._interval_s)
        self._num_omitted = 0

    def admits(self, reason: str, now: float) -> bool:
        """Return whether the line of a failure is written: ``write`` must follow. Otherwise the line counts as omitted.

        Args:
            reason: why the request failed.
            now: monotonic time in seconds.
        """
        if reason in _YIELDING:
            return self._admits(self._reserve_s * _REFUSALS_SHARE, now)
        return self._admits(self._reserve_s, now) or self._omit(now)

    def admits_slow(self, now: float) -> bool:
        """Return whether the line of a slow call is written, as ``admits`` does."""
        return self._admits(self._reserve_s * _SLOW_SHARE, now) or self._omit(now)

    def _admits(self, reserve_s: float, now: float) -> bool:
        if now < self._full_at - reserve_s:
            return False
        self._take(now)
        return True

    def _take(self, now: float) -> None:
        self._full_at = max(self._full_at, now) + self._interval_s
        self.refusals_from = self._full_at - self._reserve_s * _REFUSALS_SHARE

    def _omit(self, now: float) -> bool:
        if self._full_at < math.inf:
            self._num_omitted += 1
            self.count_omitted()
            self.report_at = min(self.report_at, now + REPORT_S)
        return False

    def report(self) -> None:
        """Log how many lines were omitted since the last report, if any."""
        if self._num_omitted:
            _log.warning("request lines omitted", num_lines=self._num_omitted, _limited_by=None)
        self._num_omitted, self.report_at = 0, math.inf

    def write(
        self,
        event: str,
        method: Method | str,
        caller: Caller,
        code: Code,
        reason: str,
        now: float,
        detail: str,
        **fields: object,
    ) -> None:
        """Write a line; ``admits`` or ``admits_slow`` has allowed it.

        Args:
            event: what happened.
            method: of the RPC, or its path without the first ``/``, from the caller.
            caller: of the request.
            code: its status.
            reason: why it failed, or why there is a line.
            now: monotonic time in seconds.
            detail: the text that the caller gets.
            fields: more of them; those with the value None are left out.
        """
        name = method[:MAX_TEXT] if isinstance(method, str) else f"{method.service}/{method.name}"
        timeout_s = caller.deadline - time.time() + now - caller.accepted
        log = _log.error if code is Code.INTERNAL else _log.info if code is Code.OK else _log.warning
        log(
            event,
            **_origin(caller.metadata),
            method=name,
            code=code.label,
            reason=reason,
            detail=detail[:MAX_TEXT] or None,
            peer=_address(caller.peer),
            deadline_ms=_ms(timeout_s) if timeout_s < _MAX_DEADLINE_S else None,
            total_ms=_ms(now - caller.accepted),
            model=self._model,
            **fields,
            _limited_by=None,
        )

    def refused(self, path: str, caller: Caller, status: Any, now: float) -> None:
        """Write the line of a call that was refused before its message was read; ``refusals_from`` has passed.

        Args:
            path: of the RPC, from the caller.
            caller: of the call.
            status: with ``code`` and ``message``.
            now: monotonic time in seconds.
        """
        self._take(now)
        reason = _REFUSAL_REASONS.get(status.code, "refused")
        self.write("call refused", path.removeprefix("/"), caller, status.code, reason, now, status.message)

    def http_failed(self, scope: Mapping[str, Any], status: int, started: float, now: float) -> None:
        """Write the line of a failed HTTP request, if the rate allows it.

        Args:
            scope: of ASGI.
            status: of HTTP.
            started: monotonic time in seconds.
            now: the same at its end.
        """
        if now >= self.report_at:
            self.report()
        if self.admits("http", now):
            _log.warning(
                "HTTP request failed",
                **_origin(scope["headers"]),
                # Without the query, which may contain a secret.
                method=f"{scope['method'][:16]} {scope['path'][:MAX_TEXT]}",
                code=status,
                peer=_address(scope.get("client")),
                total_ms=_ms(now - started),
                _limited_by=None,
            )


def _origin(metadata: Iterable[Any]) -> dict[str, str]:
    """Return the id of a request, and its trace context if the caller sent a valid one."""
    request_ids, traces = [], []
    for name, value, *_ in metadata:
        if name == b"x-request-id":
            request_ids.append(value)
        elif name == b"traceparent":
            traces.append(value)
    # More than one cannot be trusted: a proxy may have added its own to that of the caller.
    request_id = request_ids[0] if len(request_ids) == 1 and _REQUEST_ID.fullmatch(request_ids[0]) else None
    trace = parse_traceparent(traces[0]) if len(traces) == 1 else None
    return {
        "request_id": secrets.token_hex(8) if request_id is None else request_id.decode(),
        **({} if trace is None else trace._asdict()),
    }


def _address(peer: Any) -> str | None:
    """Return the address of a client as text."""
    if not isinstance(peer, tuple):
        return str(peer) if peer else None
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
