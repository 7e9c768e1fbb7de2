"""A child process that decodes image files for the HTTP API: what a client sends cannot harm the supervisor.

    supervisor: DecoderPool ──Question, body──▶ main ──read_bounded──▶ reduced pixels ──▶ request
                            ◀──Answer, request──

The supervisor starts it as ``python -P -m digitserve.web.decoder_process``. It has one thread, and decodes one file at a time. Its
memory and CPU time per file are limited by the kernel: a file that needs more gets an error, and in the worst case this process ends.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import numpy as np

from digitserve.child_process import Channel, ChannelClosed
from digitserve.errors import ImageFileError
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.image_files import BoundedImages, TooManyPixels, read_bounded
from digitserve.vision.reduction import Reduction, reduce_by_block_means
from digitserve.web.decoder_messages import PREFIX, Answer, Question
from digitserve.web.messages import Sizes, serialize, too_many_images

BYTES_PER_PIXEL = 24
"""Memory for decoding and reducing: 22 for CMYK and WEBP, 19 for RGBA, 14 for JPEG (measured, 24 million pixels)."""

NUM_BODIES, EXTRA_BYTES = 3, 1 << 25
"""Memory for the body, the pixels and the request, in bodies of the largest size, and for what the libraries keep."""

RAW_HINT = "for raw pixels give the query parameters width and height"

_FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}


def decode(body: bytes, question: Question, max_pixels: int) -> tuple[Answer, bytes]:
    """Decode a file.

    Args:
        body: the file.
        question: how.
        max_pixels: most pixels of a picture.

    Returns:
        How it ended, and the serialized request with the pixels.
    """
    try:
        images = read_bounded(body, "image", max_pixels=max_pixels, raw_hint=RAW_HINT)
    except TooManyPixels as error:
        return Answer(str(error), is_too_large=True), b""
    except ImageFileError as error:
        return Answer(str(error)), b""
    if len(images.pixels) > question.max_images:
        return Answer(too_many_images(len(images.pixels), question.max_images)), b""
    return _to_request(images, question)


def _to_request(images: BoundedImages, question: Question) -> tuple[Answer, bytes]:
    pixels = images.pixels
    reduction = Reduction(images.factor, images.height, images.width)
    num_images, height, width, channels = pixels.shape
    max_pixels = question.max_bytes // (num_images * channels) or height * width
    factor = Reduction.to_fit(height, width, question.max_side, max_pixels).factor if question.max_side else 1
    if factor > 1:
        pixels = np.stack([reduce_by_block_means(image, factor) for image in pixels])
        reduction = Reduction(images.factor * factor, images.height, images.width)
    num_images, height, width, channels = pixels.shape
    sizes = Sizes(num_images, height, width, _FORMATS[channels])
    request = serialize(np.ascontiguousarray(pixels).data, sizes, message=question.message)
    return Answer(reduction=None if reduction.factor == 1 else reduction), request


def limit_process(max_pixels: int, max_bytes: int) -> None:
    """Limit the memory of this process, and make it the first one that ends if the container has none left.

    Args:
        max_pixels: most pixels of a picture.
        max_bytes: of a body.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _data_bytes() + BYTES_PER_PIXEL * max_pixels + NUM_BODIES * max_bytes + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):  # a sandbox may have no such file
        Path("/proc/self/oom_score_adj").write_text("1000")


def _data_bytes() -> int:
    """Return the bytes that count towards RLIMIT_DATA: VmData of proc(5), in KiB there; 0 if the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def serve(connection: socket.socket, max_pixels: int, max_cpu_s: float) -> None:
    """Answer questions until the supervisor closes the connection.

    Args:
        connection: to the supervisor.
        max_pixels: most pixels of a picture.
        max_cpu_s: most CPU time for a file in seconds. The kernel ends the process then: Python handles no signal while a decoder runs.
    """
    while prefix := connection.recv(PREFIX.size, socket.MSG_WAITALL):
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)
        num_json_bytes, num_bytes = PREFIX.unpack(prefix)
        _answer(connection, num_json_bytes, num_bytes, max_pixels)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(connection: socket.socket, num_json_bytes: int, num_bytes: int, max_pixels: int) -> None:
    """Receive a file and its question, and send the answer. Nothing of it stays in memory."""
    question = Question(*json.loads(connection.recv(num_json_bytes, socket.MSG_WAITALL)))
    # In one piece: a file object would join parts, which takes twice the memory.
    body = connection.recv(num_bytes, socket.MSG_WAITALL)
    try:
        answer, request = decode(body, question, max_pixels)
    except MemoryError:
        answer, request = Answer("image: takes too much memory; expected a smaller one", is_too_large=True), b""
    text = json.dumps(answer).encode()
    connection.sendall(PREFIX.pack(len(text), len(request)) + text)
    connection.sendall(request)


def silence_libraries() -> None:
    """Drop what libraries in C write to standard output and error: it depends on the file, so clients could write lines of the log.

    Python still writes exceptions to standard error.
    """
    sys.stderr = os.fdopen(os.dup(2), "w")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


def main() -> None:
    """Run as a child of the supervisor."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may ignore it
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a platform may send it to the whole group; the supervisor ends this process
    try:
        start = Channel.to_parent().receive()
    except ChannelClosed:
        return
    max_pixels = start["max_pixels"]
    # Loads the decoders before the memory is limited.
    decode(b"", Question(0, 1), max_pixels)
    limit_process(max_pixels, start["max_bytes"])
    os.nice(start["nice"])
    silence_libraries()
    with contextlib.suppress(ConnectionError), socket.socket(fileno=start["files_fd"]) as connection:
        serve(connection, max_pixels, start["max_cpu_s"])


if __name__ == "__main__":
    main()
