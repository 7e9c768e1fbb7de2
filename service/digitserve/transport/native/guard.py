"""Connections of a service with tokens: calls without a valid one are rejected when their header fields arrive.

    server ──▶ GuardedConnection._start ──admitted──▶ Connection._start ──▶ handlers
                    │
                  Guard ──▶ Tokens

Used on the worker's one thread. Without tokens the service uses ``Connection``, so tokens then cost nothing. With them,
the result of the check is kept with the remembered header block: most calls cost a comparison of two references.
"""

import hmac
from collections.abc import Callable, Mapping

from digitserve.access import FREE_PREFIX, Tokens
from digitserve.protocol.status import Status
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import UnaryHandler
from digitserve.transport.native.connection import Connection, Method
from digitserve.transport.native.head import RequestHead
from digitserve.transport.native.limits import Counts, Limits, ReceiveBudget
from digitserve.transport.respond import unauthenticated_handlers
from digitserve.types import Source

_FREE_PREFIX = FREE_PREFIX.encode()


class Guard:
    """Authenticates calls, and records those that it rejects; owned by the server.

    Attributes:
        tokens: of the service.
    """

    def __init__(self, tokens: Tokens, recorder: Recorder) -> None:
        self.tokens = tokens
        self._handlers = {path.encode(): handler for path, handler in unauthenticated_handlers(recorder).items()}

    def reject(self, path: bytes, source: Source) -> Status:
        """Record a call of a method without a valid token; return its status."""
        return (self._handlers.get(path) or self._handlers[b""]).refusal(0.0, source)


class GuardedConnection(Connection):
    """A connection whose calls need a token, except health checks."""

    __slots__ = ("_admitted", "_admitted_by", "_guard")

    def __init__(
        self,
        guard: Guard,
        methods: Mapping[bytes, Method],
        unknown: UnaryHandler,
        limits: Limits,
        budget: ReceiveBudget,
        counts: Counts,
        now: float,
        on_output: Callable[[], None],
    ) -> None:
        """Accept a connection; see ``Connection``."""
        super().__init__(methods, unknown, limits, budget, counts, now, on_output)
        self._guard = guard
        # The last value that was admitted, and the tokens by which.
        self._admitted = b""
        self._admitted_by: object = None

    def _start(self, stream_id: int, flags: int, head: RequestHead) -> None:
        """Start an RPC if its token is valid; otherwise answer it now."""
        if getattr(head, "judged_by", None) is not self._guard.tokens.value:
            self._judge(head)
        if not head.refused:
            super()._start(stream_id, flags, head)
            return
        self._reject(stream_id, flags, head, self._guard.reject(head.path, self.source))

    def _judge(self, head: RequestHead) -> None:
        """Decide whether a call is rejected, and keep the result with its header fields."""
        digests = self._guard.tokens.value
        head.judged_by = digests
        head.refused = not head.path.startswith(_FREE_PREFIX) and not self._admits(head, digests)

    def _admits(self, head: RequestHead, digests: object) -> bool:
        sent = head.values(b"authorization")
        if len(sent) != 1:
            return False
        # Clients send the same value again with other header fields, such as deadlines.
        if self._admitted_by is digests and hmac.compare_digest(sent[0], self._admitted):
            return True
        admits = self._guard.tokens.admits(sent[0])
        if admits:
            self._admitted, self._admitted_by = sent[0], digests
        return admits
