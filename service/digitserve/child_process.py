"""Child processes of this package: started by exec, with a message channel of their own.

    parent: Child or AsyncChild ──JSON values, one per line, on a socket pair──▶ Channel.to_parent() :child

The channel is a socket pair that the child inherits, not its standard output: a library or a ``sitecustomize`` may print
whatever it likes, which goes to standard error. A parent that ends closes its end of the channel, which the child sees as
``ChannelClosed``. Children are started with ``-P``: modules in the working directory are never imported by accident.
"""

import asyncio
import contextlib
import json
import os
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
"""Longest message that an asyncio parent reads; its default of 64 KiB is less than a report of the load generator."""


class ChannelClosed(EOFError):
    """The other end of the channel is closed: its process has ended, or will."""


class Channel:
    """One end of a channel, for blocking calls. ``send`` and ``receive`` may be called on two threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lines = end.makefile("rb")

    @classmethod
    def to_parent(cls) -> Self:
        """Return the end that this process, a child, was started with; to be called once."""
        fd = int(os.environ.pop(_CHANNEL_VARIABLE))
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        return cls(socket.socket(fileno=fd))

    def send(self, message: Any) -> None:
        """Send a JSON value.

        Raises:
            ChannelClosed: the other process has ended.
        """
        try:
            self._socket.sendall(_encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None

    def receive(self, timeout_s: float | None = None) -> Any:
        """Wait for a JSON value.

        Args:
            timeout_s: longest wait in seconds; without a limit by default. After a timeout the channel cannot be read again.

        Raises:
            ChannelClosed: the other end is closed.
            TimeoutError: nothing came in time.
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
        """Close this end; the other process sees ``ChannelClosed``."""
        self._lines.close()
        self._socket.close()


class Child:
    """A child process for blocking callers. Used in a ``with`` statement, at whose end the process is killed if it still runs.

    Attributes:
        channel: to the child.
        process: the process.
    """

    def __init__(self, module: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Start ``python -P -m MODULE``.

        Args:
            module: to run, such as ``digitserve.worker``.
            environment: variables added to this process's own.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                _command(module),
                stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=(theirs.fileno(),),
                env=_environment(theirs, environment),
            )  # fmt: skip
        self.channel = Channel(ours)

    def __enter__(self) -> Self:
        """Return the child."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process if it still runs, and wait for its end."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class AsyncChild:
    """A child process for an asyncio event loop; ``start`` makes it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.process = process

    @classmethod
    async def start(
        cls, module: str, *, environment: Mapping[str, str] | None = None, pass_fds: Iterable[int] = ()
    ) -> Self:
        """Start ``python -P -m MODULE``.

        Args:
            module: to run, such as ``digitserve.worker``.
            environment: variables added to this process's own.
            pass_fds: more file descriptors for the child to inherit, under the same numbers.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_command(module),
                stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=(theirs.fileno(), *pass_fds),
                env=_environment(theirs, environment),
            )  # fmt: skip
        return cls(process, *await asyncio.open_unix_connection(sock=ours, limit=MAX_MESSAGE_BYTES))

    async def send(self, message: Any) -> None:
        """Send a JSON value; silently nothing when the child has ended, which ``receive`` reports."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(_encode(message))
            await self._writer.drain()

    async def receive(self) -> Any:
        """Wait for a JSON value.

        Raises:
            ChannelClosed: the child has ended or closed its end.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        return _decode(line)

    def close(self) -> None:
        """Close this end of the channel; the child sees ``ChannelClosed``."""
        self._writer.close()

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


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
