"""A connection of HTTP/2 whose frames the caller writes; see ``wire_traffic``."""

import select
import socket
import time
from collections.abc import Callable

import hpack
from hyperframe.frame import Frame

from digitserve.protocol.names import Code
from support import http2_peer as h2
from support.chaos.traffic import TIMEOUT_S

MAX_CONCURRENT_STREAMS = 3
"""Identifier of the setting: RFC 9113, section 6.5.2."""

RESERVE_S = 2.0
"""Longest wait for permission to open a stream: an overloaded service pauses connections, in turns of half a second."""


class WireConnection:
    """A connection whose frames the caller writes, and whose answers this class reads.

    Attributes:
        port: of this end.
        closed: whether the service has closed it.
        failure: what the last GOAWAY said.
        window: bytes that may be sent in DATA frames.
        max_streams: number of streams that may be open; 0 while the service is overloaded.
        going_away: whether the service has sent GOAWAY.
        answers: by stream.
        late: streams for which frames arrived after their end.
    """

    def __init__(self, address: str, opening: bytes) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self.port: int = self._socket.getsockname()[1]
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._rest = b""
        self._last_stream = h2.MAX_STREAM_ID
        self._pongs = 0
        self._replies = b""
        self.failure = ""
        self.window = 65_535  # RFC 9113, section 6.9.2
        self.max_streams = h2.MAX_STREAM_ID
        self.closed = self.going_away = False
        self.answers: dict[int, h2.Answer] = {}
        self.late: set[int] = set()
        self.send(opening)

    def send(self, octets: bytes) -> None:
        """Send, and read meanwhile, because the service does not read from clients that do not read.

        What answers the frames that were read is sent afterwards: after the PING of a drain, no request may follow.
        """
        left = memoryview(octets)
        while left and not self.closed:
            readable, writable, _ = select.select([self._socket], [self._socket], [], TIMEOUT_S)
            if readable:
                self._read()
            if writable:
                left = left[self._write(left[: 1 << 16]) :]
        self._flush()

    def reserve(self, stream_ids: list[int], num_bytes: int) -> bool:
        """Wait until the service allows another stream beside these, and DATA frames of this size; return whether it does."""

        def is_free() -> bool:
            num_open = sum(not self.ended(stream_id) for stream_id in stream_ids)
            return num_open < self.max_streams and self.window >= num_bytes

        self.read_until(lambda: self.going_away or is_free(), time.monotonic() + RESERVE_S)
        if self.going_away or self.closed or not is_free():
            return False
        self.window -= num_bytes
        return True

    def is_usable(self) -> bool:
        """Read what has arrived; return whether requests can be sent."""
        while not self.closed and select.select([self._socket], [], [], 0)[0]:
            self._read()
            self._flush()
        return not self.closed and not self.going_away

    def read_until(self, condition: Callable[[], bool], ends_s: float) -> None:
        """Read until a condition is true, the service closes the connection, or the monotonic time ``ends_s``."""
        while not condition() and not self.closed and (left_s := ends_s - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left_s)[0]:
                self._read()
                self._flush()

    def ping(self, ends_s: float) -> None:
        """Exchange a PING: what the service sent before has arrived then."""
        expected = self._pongs + 1
        self.send(h2.raw(h2.PING, 0, 0, bytes(8)))
        self.read_until(lambda: self._pongs >= expected, ends_s)

    def shut_down(self) -> None:
        """Close the sending half."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.closed = True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        self.closed = True

    def ended(self, stream_id: int) -> bool:
        """Return whether a stream has ended, or will never be answered."""
        answer = self.answers.get(stream_id)
        return stream_id > self._last_stream or (answer is not None and (answer.ended or answer.reset is not None))

    def code(self, stream_id: int) -> str:
        """Return how a stream ended."""
        answer = self.answers.get(stream_id, h2.Answer())
        if answer.status is not None:
            return Code(answer.status).name
        if answer.reset is not None:
            return f"RESET {answer.reset}"
        if answer.ended:
            return f"HTTP {answer.headers.get(b':status', b'').decode()}"
        return "UNAVAILABLE" if self.closed or stream_id > self._last_stream else "OPEN"

    def _write(self, octets: bytes | memoryview) -> int:
        try:
            return self._socket.send(octets, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self.closed = True
            return 0

    def _flush(self) -> None:
        if self._replies and not self.closed:
            replies, self._replies = self._replies, b""
            self.send(replies)

    def _read(self) -> None:
        try:
            received = self._socket.recv(1 << 16)
        except OSError:
            received = b""
        self.closed = self.closed or not received
        self._rest += received
        while len(self._rest) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._rest[:9]))
            if len(self._rest) < 9 + length:
                break
            frame.parse_body(memoryview(self._rest[9 : 9 + length]))
            self._rest = self._rest[9 + length :]
            self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == h2.SETTINGS and "ACK" not in frame.flags:
            self.max_streams = frame.settings.get(MAX_CONCURRENT_STREAMS, self.max_streams)
            self._replies += h2.raw(h2.SETTINGS, h2.ACK)
        elif frame.type == h2.PING and "ACK" not in frame.flags:
            self._replies += h2.raw(h2.PING, h2.ACK, 0, frame.opaque_data)
        elif frame.type == h2.PING:
            self._pongs += 1
        elif frame.type == h2.GOAWAY:
            self.going_away = True
            self._last_stream = frame.last_stream_id
            self.failure = f"GOAWAY {frame.error_code} {frame.additional_data!r}"
        elif frame.type == h2.WINDOW_UPDATE and frame.stream_id == 0:
            self.window += frame.window_increment
        elif frame.type in {h2.HEADERS, h2.DATA, h2.RST_STREAM}:
            self._on_stream(frame)

    def _on_stream(self, frame: Frame) -> None:
        answer = self.answers.setdefault(frame.stream_id, h2.Answer())
        if answer.ended and frame.type != h2.RST_STREAM:
            self.late.add(frame.stream_id)
        if frame.type == h2.RST_STREAM:
            answer.reset = frame.error_code
            return
        if frame.type == h2.HEADERS:
            fields = dict(self._decoder.decode(frame.data, raw=True))
            answer.headers = answer.headers or fields
            if "END_STREAM" in frame.flags:
                answer.trailers = fields
        elif frame.data:
            answer.body += frame.data
            self._replies += h2.window_update(0, len(frame.data))
        answer.ended = answer.ended or "END_STREAM" in frame.flags
