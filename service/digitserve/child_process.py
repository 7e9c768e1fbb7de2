"""Child processes of this package, and the message channel between parent and child.

    parent: Child or AsyncChild ◀──JSON values, one per line, on a socket pair──▶ Channel.to_parent() :child

Children are started by exec, because a fork would copy the locks of gRPC's and onnxruntime's threads but not the threads.
The channel is a socket pair that the child inherits, not its standard output: what a library or a ``sitecustomize`` prints
goes to standard error and cannot break the channel. When the parent ends, its end of the channel closes, which the child
gets as ``ChannelClosed``. Children are started with ``-P``, so that modules in the working directory are not imported, and
with SIGINT blocked: Ctrl-C reaches the whole foreground process group of a terminal, and only the parent decides what
happens then.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

_CHANNEL_VARIABLE = "_DIGITSERVE_CHANNEL_FD"
"""Environment variable that holds the number of the child's file descriptor."""

_STDERR = 2

MAX_MESSAGE_BYTES = 1 << 24
"""Longest message that ``AsyncChild`` reads. asyncio's default of 64 KiB is less than a report of the load generator."""


class ChannelClosed(EOFError):
    """The other process has ended or has closed its end of the channel."""


class Channel:
    """One end of a channel, for blocking calls. ``send`` and ``receive`` may be called on two threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lines = end.makefile("rb")

    @classmethod
    def to_parent(cls) -> Self:
        """Return the end that this child process was started with. Call it once per process."""
        fd = int(os.environ.pop(_CHANNEL_VARIABLE))
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        return cls(socket.socket(fileno=fd))

    def send(self, message: Any) -> None:
        """Send a JSON value. A closed other end is no error here: ``receive`` reports it."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(_encode(message))

    def receive(self, timeout_s: float | None = None) -> Any:
        """Wait for a JSON value.

        Args:
            timeout_s: longest wait in seconds; no limit by default. After a timeout the channel cannot be read again.

        Raises:
            ChannelClosed: the other end is closed.
            TimeoutError: no message arrived in time.
            ValueError: the message is not JSON.
        """
        self._socket.settimeout(timeout_s)
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        return _decode(line)

    def fileno(self) -> int:
        """Return the file descriptor, for ``select`` and ``epoll``."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end. The other process then gets ``ChannelClosed``."""
        self._lines.close()
        self._socket.close()


class Child:
    """A child process for blocking callers. The end of its ``with`` statement kills the process if it still runs.

    Attributes:
        channel: the parent's end of the channel.
        process: the process.
    """

    def __init__(
        self, module: str, *, environment: Mapping[str, str] | None = None, pass_fds: Iterable[int] = ()
    ) -> None:
        """Start ``python -P -m MODULE``.

        Args:
            module: the module to run, such as ``digitserve.worker``.
            environment: variables added to those of this process.
            pass_fds: more file descriptors for the child to inherit, under the same numbers.
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            with theirs, _sigint_blocked():
                self.process = subprocess.Popen(
                    _command(module),
                    stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=(theirs.fileno(), *pass_fds),
                    env=_environment(theirs, environment),
                )  # fmt: skip
            on_failure.pop_all()
        self.channel = Channel(ours)

    def __enter__(self) -> Self:
        """Return the child."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel, kill the process if it still runs, and wait for its end."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class AsyncChild:
    """A child process for an asyncio event loop, made by ``start``.

    The end of its ``async with`` statement kills the process if it still runs, waits for its end and closes the channel.

    Attributes:
        pid: process id.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pidfd: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._pidfd = pidfd
        self._reader = reader
        self._writer = writer
        self._sent_last = False
        self._loop = asyncio.get_running_loop()
        self._exit_code: asyncio.Future[int] = self._loop.create_future()
        self.pid = process.pid
        self._loop.add_reader(pidfd, self._ended)

    @classmethod
    async def start(
        cls,
        module: str,
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Iterable[int] = (),
        output: int = _STDERR,
    ) -> Self:
        """Start ``python -P -m MODULE``. If that fails, no process and no descriptor is left open.

        Args:
            module: the module to run, such as ``digitserve.worker``.
            environment: variables added to those of this process.
            pass_fds: more file descriptors for the child to inherit, under the same numbers.
            output: descriptor that becomes its standard output and error.

        Raises:
            OSError: the system has no process, memory or file descriptor left.
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            with theirs, _sigint_blocked():
                # Not asyncio's subprocess: it starts a thread per child, and if it cannot, the child is never reaped.
                # In a process group of its own: if this process is killed while the child is stopped, the kernel ends the child.
                process = subprocess.Popen(  # noqa: ASYNC220 - only waits for exec, as asyncio does
                    _command(module),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(theirs.fileno(), *pass_fds),
                    env=_environment(theirs, environment), process_group=0,
                )  # fmt: skip
            on_failure.callback(process.wait)
            on_failure.callback(process.kill)
            pidfd = os.pidfd_open(process.pid)
            on_failure.callback(os.close, pidfd)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_MESSAGE_BYTES)
            child = cls(process, pidfd, reader, writer)
            on_failure.pop_all()
        return child

    async def __aenter__(self) -> Self:
        """Return the child."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process if it still runs, wait for its end, and close the channel."""
        self.kill()
        await self.wait()
        self.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def send(self, message: Any) -> None:
        """Send a JSON value. A child that has ended is no error here: ``receive`` reports it."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(_encode(message))
            await self._writer.drain()

    async def receive(self) -> Any:
        """Wait for a JSON value.

        Raises:
            ChannelClosed: the child has ended or has closed its end.
            ValueError: the message is not JSON, or is longer than ``MAX_MESSAGE_BYTES``.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        return _decode(line)

    def send_soon(self, message: Any) -> None:
        """Send a JSON value that is small, without waiting; nothing after ``send_last``."""
        if not self._sent_last:
            with contextlib.suppress(OSError):
                self._writer.write(_encode(message))

    def send_last(self, message: Any) -> None:
        """Send the last JSON value. After it the child gets ``ChannelClosed``, and can still send.

        Later calls have no effect.
        """
        if self._sent_last:
            return
        self._sent_last = True
        with contextlib.suppress(OSError):
            self._writer.write(_encode(message))
            self._writer.write_eof()

    async def wait(self) -> int:
        """Wait for the end of the process; return its exit code, or the negative number of the signal that ended it."""
        return await asyncio.shield(self._exit_code)

    def close(self) -> None:
        """Close this end of the channel. The child then gets ``ChannelClosed``."""
        self._writer.close()

    def kill(self) -> None:
        """End the process immediately, if it still runs."""
        self._process.kill()

    def _ended(self) -> None:
        """Read the exit code. The event loop calls it when the pidfd is readable, because the process has ended."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exit_code.set_result(self._process.wait())


def _command(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in this thread: a process that it starts inherits the mask."""
    # A handler that the child sets could not act on a SIGINT that arrives while the child starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _environment(theirs: socket.socket, added: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(added or {}), _CHANNEL_VARIABLE: str(theirs.fileno())}


def _encode(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decode(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ChannelClosed
    return json.loads(line)
