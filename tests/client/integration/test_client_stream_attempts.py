"""gRPC core must not send a stream of the client library again: it can lose a message, and answers then belong to other images."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest

from digitserve.client.channel import open_connections
from digitserve.client.requests import Classifier, request_options
from digitserve.client.stream_window import StreamInterrupted, failed_outcome, to_item
from digitserve.credentials import Credentials
from digitserve.v1 import digits_pb2 as pb
from support import http2_peer as h2
from support.serving import PATIENCE_S

GOAWAY = h2.raw(h2.GOAWAY, 0, 0, bytes(8))
"""No stream was processed, so gRPC sends each again by default, without any policy."""

IMAGE = to_item(0, np.zeros((2, 2), np.uint8), Classifier(request_options(0, None, None)))


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

    async def fail_async(address: str) -> None:
        (connection,) = open_connections(grpc.aio, address, Credentials(), 1)
        try:
            async for _ in connection.streams.ClassifyStream(iter(messages), timeout=PATIENCE_S):
                """There is no answer."""
        finally:
            for channel in connection.channels:
                await channel.close()

    def fail(address: str) -> None:
        (connection,) = open_connections(grpc, address, Credentials(), 1)
        try:
            next(connection.streams.ClassifyStream(iter(messages), timeout=PATIENCE_S))
        finally:
            for channel in connection.channels:
                channel.close()

    with refusing_server(last_words) as server:
        with pytest.raises(grpc.RpcError) as failure:
            asyncio.run(fail_async(server.address)) if kind == "async" else fail(server.address)
        with pytest.raises(StreamInterrupted):
            failed_outcome(IMAGE, failure.value, PATIENCE_S)
        assert server.num_streams == 1
