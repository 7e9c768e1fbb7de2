"""Log lines of HTTP requests that failed.

    uvicorn ──▶ FailureLog ──▶ the application of ``http``
                    └──▶ RequestLog

Runs on the supervisor's event loop.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from digitserve.telemetry.request_log import RequestLog

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_FIRST_FAILURE = 400
_NOT_READY = 503
"""The answer to a probe while no worker is ready: the log has the reason already."""


class FailureLog:
    """An ASGI application around another one, which logs its answers with a status of 400 or more, except 503."""

    def __init__(self, app: AsgiApp, requests: RequestLog) -> None:
        """Wrap ``app``, and log with ``requests``."""
        self._app = app
        self._requests = requests

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Handle a request."""
        started = time.monotonic()
        status = 500  # if the application raises

        async def watch(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            if status >= _FIRST_FAILURE and status != _NOT_READY:
                self._requests.http_failed(scope, status, started, time.monotonic())
