"""The child processes that decode image files, and the files that wait for them.

    api ──▶ DecoderPool ──▶ Decoder of small pictures ──▶ decoder_process
                 └─too many pixels─▶ Decoder of large ones ──▶ decoder_process

Owned by the HTTP server, and used on the supervisor's event loop. Each decoder has one process, which starts with its first file and
ends after ``IDLE_S`` without one, so that a service without HTTP clients has none. Small pictures do not wait for large ones. A file is a
picture, or a ``.npy`` array of images.
"""

import asyncio
import contextlib
import json
import signal
import socket
from typing import NamedTuple

from digitserve.child_process import AsyncChild
from digitserve.log import get_logger
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.vision.reduction import Reduction
from digitserve.web.answers import Failure, internal
from digitserve.web.decoder_messages import PREFIX, Answer, Question

MODULE = "digitserve.web.decoder_process"

SMALL_PIXELS = 1 << 20
"""Most pixels of a small picture: it is decoded in 40 ms at most (measured: 24 million in 1 s)."""

MAX_PIXELS = 1 << 23
"""Most pixels of a picture: a screen of 3840x2160. Decoding takes up to 24 bytes per pixel, 200 MB. JPEG files may have more."""

LARGE_NICE = 10
"""When workers are busy, photos wait, and drawings do not: at this niceness a process gets a tenth of the CPU time of a worker."""

SMALL_CPU_S, LARGE_CPU_S = 1.0, 5.0
"""CPU time for one file, at least ten times that of the largest. Beyond it the process ends: a crafted file can take hours."""

DECODE_S = 10.0
"""Time for one file. Beyond it the machine is busy, or the decoder hangs: the process is ended."""

WAIT_S = 5.0
"""Longest wait for the process, its start included."""

MAX_WAITING = 64
"""Most files that wait for a process: more than it decodes in ``WAIT_S`` if they are large."""

IDLE_S = 60.0
"""Time without a file after which a process ends, to free its memory."""

_BUSY = Status(
    Code.RESOURCE_EXHAUSTED, "too many images wait to be decoded; retry later, or send raw pixels", retry_after_s=1.0
)
_LATE = Status(
    Code.RESOURCE_EXHAUSTED,
    f"image: was not decoded within {DECODE_S:g} s; retry later, or send raw pixels",
    retry_after_s=1.0,
)
_TOO_SLOW = Status(Code.INVALID_ARGUMENT, "image: takes too much time to decode; expected a smaller or simpler one")
_CRASHED = Status(Code.INVALID_ARGUMENT, "image: cannot be decoded (the decoder ended); expected a complete file")

_log = get_logger("digitserve.web.decoder_pool")


class Decoded(NamedTuple):
    """A decoded file.

    Attributes:
        request: serialized request with the pixels.
        reduction: from the images in the file to these pixels; None if they were not reduced.
    """

    request: bytes
    reduction: Reduction | None


class _TooLarge(Exception):
    """The picture has too many pixels for this decoder."""


class _Process(NamedTuple):
    """A running process, and the connection to it."""

    child: AsyncChild
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Decoder:
    """One process, and the files that wait for it; owned by the pool."""

    def __init__(self, max_pixels: int, max_bytes: int, max_cpu_s: float, nice: int = 0) -> None:
        """Start with no process.

        Args:
            max_pixels: most pixels of a picture.
            max_bytes: of a file.
            max_cpu_s: most CPU time for a file in seconds.
            nice: added to the niceness of the process.
        """
        self._limits = {"max_pixels": max_pixels, "max_bytes": max_bytes, "max_cpu_s": max_cpu_s, "nice": nice}
        self._lock = asyncio.Lock()
        self._num_waiting = 0
        self._process: _Process | None = None
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 without a process."""
        return 0 if self._process is None else self._process.child.pid

    async def decode(self, body: bytes, question: Question) -> Decoded:
        """Decode a file.

        Raises:
            Failure: it cannot be decoded, or too many wait.
            _TooLarge: the picture has too many pixels.
        """
        if self._num_waiting >= MAX_WAITING:
            raise Failure.of(_BUSY)
        self._num_waiting += 1
        try:
            # Not wait_for: in Python 3.11 it ignores a cancellation that arrives together with the event.
            async with asyncio.timeout(WAIT_S):
                await self._lock.acquire()
        except TimeoutError:
            raise Failure.of(_BUSY) from None
        finally:
            self._num_waiting -= 1
        # The file is decoded also if the client disconnects: a new process after each such client would delay all others.
        asking = asyncio.create_task(self._ask(body, question))
        asking.add_done_callback(self._asked)
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
        if process is not None:
            process.writer.transport.abort()
            async with process.child:
                """Its end kills the process."""

    async def _ask(self, body: bytes, question: Question) -> Decoded:
        try:
            process = self._process or await self._start()
        except OSError as error:
            _log.error("cannot start a process for images", error=str(error))
            raise internal() from None
        if self._idle is not None:
            self._idle.cancel()
        done = False
        try:
            async with asyncio.timeout(DECODE_S):
                answer, request = await _exchange(process, body, question)
            done = True
        except TimeoutError:
            _log.warning("an image was not decoded in time", num_bytes=len(body), limit_s=DECODE_S)
            raise Failure.of(_LATE) from None
        except (OSError, EOFError):
            exit_code = await process.child.wait()
            _log.warning("the process that decodes images ended", num_bytes=len(body), exit_code=exit_code)
            raise Failure.of(_TOO_SLOW if exit_code == -signal.SIGPROF else _CRASHED) from None
        finally:
            if not done:  # the process may still write its answer
                await self.close()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)
        if answer.is_too_large:
            raise _TooLarge(answer.error)
        if answer.error:
            raise Failure.invalid(answer.error)
        return Decoded(request, answer.reduction)

    async def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            with theirs:
                child = await AsyncChild.start(
                    MODULE,
                    environment={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                    pass_fds=[theirs.fileno()],
                )
                on_failure.callback(child.kill)
                await child.send({"files_fd": theirs.fileno(), **self._limits})
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            on_failure.pop_all()
        self._process = _Process(child, reader, writer)
        return self._process

    def _asked(self, asking: "asyncio.Task[Decoded]") -> None:
        """Let the next file be decoded."""
        self._lock.release()
        if not asking.cancelled():
            asking.exception()  # retrieved here: if the client has disconnected, nothing awaits it

    def _end_idle(self) -> None:
        if not self._lock.locked():
            self._closing = asyncio.create_task(self.close())


class DecoderPool:
    """The decoders of a service; owned by the HTTP server."""

    def __init__(self, max_bytes: int) -> None:
        """Start no process.

        Args:
            max_bytes: of a file.
        """
        self._small = Decoder(SMALL_PIXELS, max_bytes, SMALL_CPU_S)
        self._large = Decoder(MAX_PIXELS, max_bytes, LARGE_CPU_S, LARGE_NICE)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return [decoder.pid for decoder in (self._small, self._large) if decoder.pid]

    async def decode(self, body: bytes, question: Question) -> Decoded:
        """Decode a file: a picture, or the images of a ``.npy`` file.

        Args:
            body: the file.
            question: how.

        Raises:
            Failure: it cannot be decoded, or too many wait.
        """
        try:
            return await self._small.decode(body, question)
        except _TooLarge:
            """Then it is a large one."""
        try:
            return await self._large.decode(body, question)
        except _TooLarge as error:
            raise Failure.invalid(str(error), 413) from None

    async def close(self) -> None:
        """End the processes."""
        await self._small.close()
        await self._large.close()


async def _exchange(process: _Process, body: bytes, question: Question) -> tuple[Answer, bytes]:
    """Send a file and its question, and return the answer.

    Raises:
        OSError: the process has ended.
        EOFError: the process has ended.
    """
    text = json.dumps(question).encode()
    process.writer.write(PREFIX.pack(len(text), len(body)) + text)
    process.writer.write(body)
    await process.writer.drain()
    num_json_bytes, num_bytes = PREFIX.unpack(await process.reader.readexactly(PREFIX.size))
    answer = Answer.from_list(json.loads(await process.reader.readexactly(num_json_bytes)))
    return answer, await process.reader.readexactly(num_bytes)
