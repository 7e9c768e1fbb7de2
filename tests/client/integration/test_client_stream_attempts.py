"""gRPC core must not send a stream of the client library again: it can lose a message, and answers then belong to other images."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

from digitserve.client.channel import open_connections
from digitserve.credentials import Credentials
from digitserve.v1 import digits_pb2 as pb
from support import http2_peer as h2
from support.serving import PATIENCE_S

GOAWAY = h2.raw(h2.GOAWAY, 0, 0, bytes(8))
"""No stream was processed, so gRPC sends each again by default, without any policy."""


class RefusingServer:
    """Ends each connection as soon as it has received the header fields of a stream.

    Attributes:
        address: host:port.
        num_streams: streams that clients have opened.
    """

    def __init__(self, last_words: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._last_words = last_words
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_streams = 0

    def serve(self) -> None:
        """Serve one connection after another until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(PATIENCE_S)
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(h2.settings() + h2.raw(h2.SETTINGS, h2.ACK))
        received = b""
        while octets := connection.recv(1 << 16):
            received += octets
            position = len(h2.PREFACE)
            while len(received) >= position + 9:
                if received[position + 3] == h2.HEADERS:
                    self.num_streams += 1
                    connection.sendall(self._last_words)
                    # Closing sends a reset instead of FIN.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                position += 9 + int.from_bytes(received[position : position + 3], "big")

    def close(self) -> None:
        """End ``serve``."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def refusing_server(last_words: bytes) -> Iterator[RefusingServer]:
    server = RefusingServer(last_words)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(PATIENCE_S)


@pytest.mark.parametrize("last_words", [GOAWAY, b""], ids=["goaway", "reset"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_lost_stream_is_not_sent_again_by_grpc(kind: str, last_words: bytes) -> None:
    """A stream whose connection ends fails after one attempt; ``classify_stream`` then opens another one with all images that
    have no answer.
    """
    messages = [pb.ClassifyStreamRequest()] * 3

    async def call_async(address: str) -> grpc.StatusCode:
        (connection,) = open_connections(grpc.aio, address, Credentials(), 1)
        call = connection.streams.ClassifyStream(iter(messages), timeout=PATIENCE_S)
        code = await call.code()
        for channel in connection.channels:
            await channel.close()
        return code

    def call_blocking(address: str) -> grpc.StatusCode:
        (connection,) = open_connections(grpc, address, Credentials(), 1)
        code = connection.streams.ClassifyStream(iter(messages), timeout=PATIENCE_S).code()
        for channel in connection.channels:
            channel.close()
        return code

    with refusing_server(last_words) as server:
        code = asyncio.run(call_async(server.address)) if kind == "async" else call_blocking(server.address)
        # grpc.aio sometimes reports an error of its own.
        assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        assert server.num_streams == 1
