"""The HTTP port of a service on a thread of the test, with a fixed state in place of a supervisor."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from digitserve.supervision.http import HttpServer
from digitserve.supervision.ports import listen
from support.serving import LOCAL, PATIENCE_S, wait_until


class Ready:
    """The state of a service that is ready."""

    ready = True

    def status_line(self) -> str:
        return "digitserve ready"


class NotReady:
    """The state of a service without workers."""

    ready = False

    def status_line(self) -> str:
        return "digitserve not ready"


@contextmanager
def run_http_port(server: HttpServer) -> Iterator[tuple[str, int]]:
    """Serve on a thread, and yield the address; the server ends with the ``with`` block."""
    listener = listen(LOCAL, 0, "--http-port")
    address: tuple[str, int] = listener.getsockname()
    thread = threading.Thread(target=lambda: asyncio.run(server.run_on(listener)))
    thread.start()
    wait_until(lambda: server.started, "the server has started")
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
