"""Admission of calls of several connections, while one of them sends more than the worker can answer."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hpack import Encoder

from digitserve.protocol.names import CLASSIFY
from digitserve.telemetry.block import REASONS
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
NUM_CALLS = 40
GROUP = 60
"""Calls that the flood sends at once: more than may wait, so some are rejected."""


class Flood:
    """A client that sends calls as fast as it can, and ignores the answers."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._socket.sendall(PREFACE)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _run(self) -> None:
        encoder = Encoder()
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", CLASSIFY.path), (":authority", "test"), ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]  # fmt: skip
        body = pb.ClassifyRequest(pixels=bytes(784)).SerializeToString()
        body = b"\0" + struct.pack(">I", len(body)) + body
        stream_id = 1
        while not self._stop.is_set():
            parts = []
            for _ in range(GROUP):
                parts += [frame(1, 4, stream_id, encoder.encode(fields)), frame(0, 1, stream_id, body)]
                stream_id += 2
            self._socket.sendall(b"".join(parts))
            # The next group as soon as anything is answered: the worker never runs out of calls of this client.
            self._socket.recv(1 << 16)


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream_id) + payload


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[RunningWorker]:
    write_echo_bundle(tmp_path)
    with run_worker(tmp_path, max_batch_size=1, max_pending_images=40) as running:
        yield running


def test_a_flood_rejects_no_calls_of_another_connection(worker: RunningWorker) -> None:
    """While calls of one connection are rejected, because it fills its part of the queue, those of another one are not."""
    with Flood(worker.address):
        for number in range(NUM_CALLS):
            image = echo_image(number % 10)
            response = worker.classify(pb.ClassifyRequest(pixels=image.tobytes()))
            assert response.predictions[0].label == str(number % 10)
    rejected = worker.block.cells["digitserve_rejected"][REASONS.index("queue_full"), 0]
    assert rejected > NUM_CALLS
