"""Child processes of this package, and the message channel between parent and child.

    parent: Child or AsyncChild ◀──JSON values, one per line, on a socket pair──▶ Channel.to_parent() :child

Children are started by exec, because a fork would copy the locks of gRPC's and onnxruntime's threads but not the threads.
The channel is a socket pair that the child inherits, not its standard output: what a library or a ``sitecustomize`` prints
goes to standard error and cannot break the channel. When the parent ends, its end of the channel closes, which the child
gets as ``ChannelClosed``. Children are started with ``-P``, so that modules in the working directory are not imported.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
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
        """Send a JSON value.

        Raises:
            ChannelClosed: the other end is closed.
        """
        try:
            self._socket.sendall(_encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None

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

    def __init__(self, module: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Start ``python -P -m MODULE``.

        Args:
            module: the module to run, such as ``digitserve.worker``.
            environment: variables added to those of this process.
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            with theirs:
                self.process = subprocess.Popen(
                    _command(module),
                    stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=(theirs.fileno(),),
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
        process: the process.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.process = process
        self._pidfd: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    async def start(
        cls, module: str, *, environment: Mapping[str, str] | None = None, pass_fds: Iterable[int] = ()
    ) -> Self:
        """Start ``python -P -m MODULE``.

        Args:
            module: the module to run, such as ``digitserve.worker``.
            environment: variables added to those of this process.
            pass_fds: more file descriptors for the child to inherit, under the same numbers.
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *_command(module),
                    stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=(theirs.fileno(), *pass_fds),
                    env=_environment(theirs, environment),
                )  # fmt: skip
            on_failure.pop_all()
        return cls(process, *await asyncio.open_unix_connection(sock=ours, limit=MAX_MESSAGE_BYTES))

    async def __aenter__(self) -> Self:
        """Return the child."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process if it still runs, wait for its end, and close the channel."""
        self.kill()
        await self.process.wait()
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

    def send_eof(self) -> None:
        """Send no more messages. The child then gets ``ChannelClosed`` and can still send."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def close(self) -> None:
        """Close this end of the channel. The child then gets ``ChannelClosed``. It can no longer be killed."""
        self._writer.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def kill(self) -> None:
        """End the process immediately, if it still runs."""
        # Not process.kill(): it polls first, and so may reap the process before asyncio's watcher does, which then
        # reports "Unknown child process" and exit code 255. The descriptor cannot name another process.
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _command(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]


def _environment(theirs: socket.socket, added: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(added or {}), _CHANNEL_VARIABLE: str(theirs.fileno())}


def _encode(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decode(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ChannelClosed
    return json.loads(line)
