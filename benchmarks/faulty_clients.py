"""Clients that send random faulty requests: a process that ``soak`` starts, and stops with SIGTERM.

    python -m benchmarks.faulty_clients --port 50051 --seed 1

Each thread repeatedly opens a connection, sends up to a few hundred requests of random kinds together, and disconnects at a
random point: after all answers, or within a request or an answer, with or without a reset. Answers are not checked; the
counters of the service show whether each request ended.
"""

import argparse
import gzip
import random
import signal
import socket
import struct
import sys
import threading

import numpy as np

from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.names import MODEL_INFER
from digitserve.transport.native.hpack import encode_fields
from digitserve.v1 import digits_pb2 as pb

SERVICE = "/digitserve.v1.DigitService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS = 1, 4
MAX_FRAME_BYTES = 16_384
NUM_THREADS = 12
MAX_REQUESTS = 200
"""Most requests of a connection: most answers have 200 bytes, and the first flow-control window 64 KiB."""

ANSWER_S = 2.0
"""Longest wait for answers: requests that do not end have none."""

LARGE_WINDOWS = struct.pack(">HI", 4, 1 << 20)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


class Requests:
    """Encodes random requests of one client."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, 64 * 784, np.uint8).tobytes()
        self._one = pb.ClassifyRequest(pixels=pixels[:784]).SerializeToString()
        self._many = pb.ClassifyRequest(pixels=pixels).SerializeToString()
        self._framed = pb.ClassifyRequest(pixels=pixels[:6400], height=80, width=80, explain=True).SerializeToString()
        self._compressed = gzip.compress(self._one)
        self._infer = oip.ModelInferRequest(model_name="digits", raw_input_contents=[pixels[:784]])
        self._infer.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
        self._kinds = [
            (30, lambda i: self._call(i, "Classify", self._one)),
            (3, lambda i: self._call(i, "Classify", self._many)),
            (3, lambda i: self._call(i, "Classify", self._framed)),
            (3, lambda i: self._call(i, "GetModel", b"")),
            (3, lambda i: self._request(i, HEALTH + "Check", self._message(b""))),
            (5, lambda i: self._call(i, "Classify", self._compressed, (b"grpc-encoding", b"gzip"), flag=1)),
            (2, lambda i: self._call(i, "Classify", self._one, (b"grpc-encoding", b"gzip"), flag=1)),  # not gzip
            (2, lambda i: self._call(i, "Classify", self._one, (b"grpc-encoding", b"snappy"), flag=1)),
            (5, lambda i: self._call(i, "Classify", self._one, (b"grpc-timeout", b"1u"))),
            (2, lambda i: self._call(i, "Classify", self._one, (b"grpc-timeout", b"soon"))),
            (8, lambda i: self._call(i, "Classify", self._one) + frame(RST_STREAM, 0, i, bytes(4))),
            (3, lambda i: self._headers(i, SERVICE + "Classify") + frame(RST_STREAM, 0, i, bytes(4))),
            (2, lambda i: self._call(i, "Classify", self._one[:-1])),  # malformed
            (2, lambda i: self._call(i, "Classify", rng.randbytes(40))),
            (2, lambda i: self._request(i, SERVICE + "Classify", b"")),
            (2, lambda i: self._request(i, SERVICE + "Classify", self._message(self._one) * 2)),
            (2, lambda i: self._request(i, SERVICE + "Classify", struct.pack(">BI", 0, 1 << 30))),  # too large
            (2, lambda i: self._call(i, "Unknown", b"")),
            (2, lambda i: self._headers(i, "/", (b"x-a", rng.randbytes(20).hex().encode() * 400))),
            (1, lambda i: self._headers(i, SERVICE + "Classify", (b"BAD", b"1"))),
            (1, lambda i: self._headers(i, SERVICE + "Classify", ended=False)),  # without a message
            (4, lambda i: self._request(i, SERVICE + "ClassifyStream", self._stream_messages())),
            (1, lambda i: self._request(i, SERVICE + "ClassifyStream", self._stream_messages(), ended=False)),
            (1, lambda i: self._request(i, HEALTH + "Watch", self._message(b""))),
            (10, lambda i: self._request(i, MODEL_INFER.path, self._infer_message())),
            (
                2,
                lambda i: self._request(i, MODEL_INFER.path, self._infer_message()) + frame(RST_STREAM, 0, i, bytes(4)),
            ),
            (2, lambda i: self._request(i, MODEL_INFER.path, self._message(rng.randbytes(40)))),
            (1, lambda i: self._request(i, REFLECTION, self._message(b"\x3a\x00"))),
        ]
        self._weights = [weight for weight, _ in self._kinds]

    def several(self, count: int) -> bytes:
        """Encode a preface and requests of random kinds."""
        settings = frame(SETTINGS, 0, 0, self._rng.choice([b"", LARGE_WINDOWS]))
        parts = [PREFACE, settings, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20))]
        for number, (_, encode) in enumerate(self._rng.choices(self._kinds, self._weights, k=count)):
            parts.append(encode(2 * number + 1))
            if self._rng.random() < 0.02:
                parts.append(frame(PING, 0, 0, bytes(8)))
        if self._rng.random() < 0.1:
            parts.append(self._rng.randbytes(200))  # violates the protocol
        return b"".join(parts)

    def _infer_message(self) -> bytes:
        """Encode a valid request with a new id, and mostly with parameters that the service has not seen or has forgotten."""
        self._infer.id = str(self._rng.random())
        self._infer.parameters["timeout"].int64_param = self._rng.getrandbits(12)
        return self._message(self._infer.SerializeToString())

    def _stream_messages(self) -> bytes:
        bodies = (pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(self._one)),) * self._rng.randrange(5)
        return b"".join(self._message(body.SerializeToString()) for body in bodies)

    def _call(self, stream_id: int, method: str, body: bytes, *fields: tuple[bytes, bytes], flag: int = 0) -> bytes:
        return self._request(stream_id, SERVICE + method, self._message(body, flag), *fields)

    def _request(
        self, stream_id: int, path: str, body: bytes, *fields: tuple[bytes, bytes], ended: bool = True
    ) -> bytes:
        parts = [self._headers(stream_id, path, *fields, ended=False)]
        starts = range(0, max(1, len(body)), MAX_FRAME_BYTES)
        for start in starts:
            last = ended and start == starts[-1]
            parts.append(frame(DATA, END_STREAM if last else 0, stream_id, body[start : start + MAX_FRAME_BYTES]))
        return b"".join(parts)

    @staticmethod
    def _headers(stream_id: int, path: str, *fields: tuple[bytes, bytes], ended: bool = True) -> bytes:
        block = encode_fields(
            [
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b"te", b"trailers"),
                (b"content-type", b"application/grpc"), *fields,
            ]
        )[:MAX_FRAME_BYTES]  # fmt: skip
        return frame(HEADERS, END_HEADERS | (END_STREAM if ended else 0), stream_id, block)

    @staticmethod
    def _message(body: bytes, flag: int = 0) -> bytes:
        return struct.pack(">BI", flag, len(body)) + body


def visit(rng: random.Random, requests: Requests, port: int) -> None:
    """Open a connection, send requests, read some answers, and disconnect."""
    count = rng.choice([1, 2, 10, 50, MAX_REQUESTS])
    sent = requests.several(count)
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        if rng.random() < 0.3:
            sent = sent[: rng.randrange(len(sent))]
        connection.sendall(sent)
        num_read = 0
        enough = rng.choice([0, 100, 1 << 30, 1 << 30])
        connection.settimeout(rng.choice([0.02, 0.1, 0.5]))
        try:
            while num_read < enough and (received := connection.recv(1 << 16)):
                num_read += len(received)
        except TimeoutError:
            pass
        if rng.random() < 0.3:  # disconnect with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def keep_visiting(port: int, seed: int, stopping: threading.Event) -> None:
    """Open one connection after another until the process ends."""
    rng = random.Random(seed)
    requests = Requests(rng)
    while not stopping.is_set():
        try:
            visit(rng, requests, port)
        except OSError:  # the service may close the connection
            continue


def main() -> int:
    """Run as a command, until SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="of the service on 127.0.0.1")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default 0)")
    options = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threads = [
        threading.Thread(target=keep_visiting, args=(options.port, options.seed * NUM_THREADS + number, stopping))
        for number in range(NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
