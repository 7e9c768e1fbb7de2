"""Between the bytes of the protocol and what the batcher and the network see. Knows protobuf, not gRPC.

    body ──decode──▶ Request ──rows──▶ uint8[784] an image ──network──▶ Answer ──encode──▶ body

Called on the worker's one thread, once a request each; so nothing is built here that can be built once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from digitserve.batching.batcher import framing_work
from digitserve.errors import InvalidRequest, NotServed, TooLarge
from digitserve.types import IMAGE_SIZE, Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.framing import as_is, frame
from digitserve.vision.gray import to_gray

IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE

MAX_REPEATED = 64
"""Characters of a caller's text that are repeated to it."""

_CHANNELS = {
    pb.PIXEL_FORMAT_UNSPECIFIED: 1,
    pb.PIXEL_FORMAT_GRAY8: 1,
    pb.PIXEL_FORMAT_RGB8: 3,
    pb.PIXEL_FORMAT_RGBA8: 4,
}
_INK = {
    pb.INK_LIGHT_ON_DARK: Ink.LIGHT_ON_DARK,
    pb.INK_DARK_ON_LIGHT: Ink.DARK_ON_LIGHT,
    pb.INK_AUTO: Ink.AUTO,
}
_FORMAT_NAMES = {
    pb.PIXEL_FORMAT_UNSPECIFIED: "GRAY8",
    pb.PIXEL_FORMAT_GRAY8: "GRAY8",
    pb.PIXEL_FORMAT_RGB8: "RGB8",
    pb.PIXEL_FORMAT_RGBA8: "RGBA8",
}
VERDICTS = (pb.VERDICT_ACCEPTED, pb.VERDICT_UNFAMILIAR, pb.VERDICT_BLANK, pb.VERDICT_SEVERAL)
"""In the order of ``metrics.VERDICTS``."""
ACCEPTED, UNFAMILIAR, BLANK, SEVERAL = range(4)

_ONE_IMAGE = pb.ClassifyRequest(pixels=bytes(IMAGE_BYTES))
_HEAD = _ONE_IMAGE.SerializeToString()[:-IMAGE_BYTES]
"""What comes before the pixels of a request that holds one image of the network's size and nothing else."""
_HEAD_ON_STREAM = pb.ClassifyStreamRequest(request=_ONE_IMAGE).SerializeToString()[:-IMAGE_BYTES]

_PLAIN = (1, IMAGE_SIZE, IMAGE_SIZE, 1, Ink.LIGHT_ON_DARK, Framing.AS_IS, True, 0)
"""What is known of it, as ``Request`` has it."""

_CONTINUED = 0x80
"""Marks a byte of a length that another one follows."""

_RESPONSE_TAG = bytes([pb.ClassifyStreamResponse.RESPONSE_FIELD_NUMBER << 3 | 2])
"""Field 1 with a length."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask of this worker.

    Attributes:
        model_version: the version being served.
        max_side: largest height or width, in pixels.
        max_images: most images in a request.
        max_request_bytes: largest message.
    """

    model_version: str
    max_side: int
    max_images: int
    max_request_bytes: int

    def too_large(self) -> TooLarge:
        """Return the error for a message over the limit."""
        return TooLarge(
            f"got a message of more than {self.max_request_bytes} bytes, the most that is taken; send less at once"
        )


class Request(NamedTuple):
    """A request that has passed every check.

    Attributes:
        pixels: num_images x height x width x channels bytes.
        num_images: at least 1.
        height: in pixels.
        width: in pixels.
        channels: 1, 3 or 4.
        ink: which side the strokes are on.
        framing: how images come to the network's size.
        plain: the pixels are the network's rows as they stand.
        top_k: classes to list for each image.
    """

    pixels: bytes
    num_images: int
    height: int
    width: int
    channels: int
    ink: Ink
    framing: Framing
    plain: bool
    top_k: int

    @property
    def framing_work(self) -> int:
        """Units of framing work an image, 0 when none is framed."""
        return framing_work(self.height, self.width, self.channels) if self.framing is Framing.MNIST else 0


class Answer(NamedTuple):
    """What is said of one image.

    Attributes:
        class_index: column of the most probable label.
        confidence: its probability.
        verdict: position in ``VERDICTS``.
        ood_score: higher is stranger.
        probabilities: float32[labels].
    """

    class_index: int
    confidence: float
    verdict: int
    ood_score: float
    probabilities: NDArray[np.float32]


def decode(body: bytes, limits: Limits) -> Request:
    """Parse and check a ``ClassifyRequest``.

    Raises:
        InvalidRequest: says what was got, what was expected, and which image.
        NotServed: another model version is asked for.
    """
    return _plain(body, _HEAD) or _check(_parse(pb.ClassifyRequest, body), limits)


def decode_on_stream(body: bytes, limits: Limits) -> Request:
    """Parse and check a ``ClassifyStreamRequest``; raises as ``decode`` does."""
    return _plain(body, _HEAD_ON_STREAM) or _check(_parse(pb.ClassifyStreamRequest, body).request, limits)


def response_on_stream(body: bytes) -> bytes:
    """Return a ``ClassifyStreamResponse`` with a serialized ``ClassifyResponse``, which is not parsed for it."""
    return _RESPONSE_TAG + _varint(len(body)) + body


def error_on_stream(status: Message) -> bytes:
    """Return a ``ClassifyStreamResponse`` with a ``google.rpc.Status``."""
    return pb.ClassifyStreamResponse(error=status).SerializeToString()


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest(f"got {len(body)} bytes that are no {kind.DESCRIPTOR.name}; expected protobuf") from None


def _plain(body: bytes, head: bytes) -> Request | None:
    """Decide the common case by one comparison: nothing but one image of the network's size."""
    if len(body) != len(head) + IMAGE_BYTES or not body.startswith(head):
        return None
    return Request(body[len(head) :], *_PLAIN)


def _varint(number: int) -> bytes:
    """Write a length as protobuf does: seven bits a byte, the lowest first, all but the last marked."""
    written = bytearray()
    while number >= _CONTINUED:
        written.append(number % _CONTINUED | _CONTINUED)
        number >>= 7
    written.append(number)
    return bytes(written)


def _check(message: pb.ClassifyRequest, limits: Limits) -> Request:
    pixels = message.pixels
    if message.model_version not in {"", limits.model_version}:
        raise NotServed(f"model_version: got '{shorten(message.model_version)}'; served is '{limits.model_version}'")
    _check_known(message.pixel_format, pb.PixelFormat.values(), "pixel_format", pb.PixelFormat.keys())
    _check_known(message.ink, pb.Ink.values(), "ink", pb.Ink.keys())
    _check_known(message.framing, pb.Framing.values(), "framing", pb.Framing.keys())
    channels = _CHANNELS[message.pixel_format]
    height, width = _sides(message, limits)
    num_images = _num_images(message, len(pixels), height * width * channels, limits)
    framing = _framing(message, height, width)
    ink = _ink(message, framing)
    plain = framing is Framing.AS_IS and channels == 1 and ink is Ink.LIGHT_ON_DARK
    return Request(pixels, num_images, height, width, channels, ink, framing, plain, message.top_k)


def shorten(text: str) -> str:
    """Return a caller's text, or its beginning: status messages travel as headers, whose size is bounded."""
    return text if len(text) <= MAX_REPEATED else f"{text[:MAX_REPEATED]}..."


def _check_known(value: int, known: Collection[int], field: str, names: Sequence[str]) -> None:
    if value not in known:
        raise InvalidRequest(f"{field}: got {value}; expected one of {', '.join(names)}")


def _sides(message: pb.ClassifyRequest, limits: Limits) -> tuple[int, int]:
    height, width = message.height, message.width
    if height == 0 and width == 0:
        return IMAGE_SIZE, IMAGE_SIZE
    if height == 0 or width == 0:
        raise InvalidRequest(
            f"got height {height} and width {width}; expected both, or neither for {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    if max(height, width) > limits.max_side:
        raise InvalidRequest(f"got {height}x{width} pixels; expected at most {limits.max_side} on a side")
    return height, width


def _num_images(message: pb.ClassifyRequest, num_bytes: int, image_bytes: int, limits: Limits) -> int:
    shape = f"{message.height or IMAGE_SIZE}x{message.width or IMAGE_SIZE}"
    each = f"{image_bytes} bytes for each image of {shape} {_FORMAT_NAMES[message.pixel_format]}"
    if not num_bytes:
        raise InvalidRequest(f"pixels: got none; expected {each}")
    num_images, rest = divmod(num_bytes, image_bytes)
    if rest:
        raise InvalidRequest(
            f"pixels: got {num_bytes} bytes, which leaves image {num_images} with {rest}; expected {each}"
        )
    if message.num_images not in {0, num_images}:
        raise InvalidRequest(f"num_images: got {message.num_images}; pixels holds {num_images} ({each})")
    if num_images > limits.max_images:
        raise InvalidRequest(
            f"got {num_images} images; expected at most {limits.max_images}: send them in several requests"
        )
    return num_images


def _framing(message: pb.ClassifyRequest, height: int, width: int) -> Framing:
    fits = height == width == IMAGE_SIZE
    if message.framing == pb.FRAMING_MNIST or (message.framing == pb.FRAMING_UNSPECIFIED and not fits):
        return Framing.MNIST
    if not fits:
        raise InvalidRequest(
            f"framing: FRAMING_AS_IS needs images of {IMAGE_SIZE}x{IMAGE_SIZE}, got {height}x{width}; "
            "expected FRAMING_MNIST, or leave it out"
        )
    return Framing.AS_IS


def _ink(message: pb.ClassifyRequest, framing: Framing) -> Ink:
    if message.ink == pb.INK_UNSPECIFIED:
        return Ink.LIGHT_ON_DARK if framing is Framing.AS_IS else Ink.AUTO
    return _INK[message.ink]


def rows(request: Request, start: int, stop: int) -> tuple[bytes | memoryview, list[int]]:
    """Prepare images ``start`` to ``stop`` of a request for the network.

    Returns:
        784 bytes an image, and for framed images the verdict that framing gave, else an empty list.
    """
    image_bytes = request.height * request.width * request.channels
    pixels: bytes | memoryview = request.pixels
    if stop - start < request.num_images:
        pixels = memoryview(pixels)[start * image_bytes : stop * image_bytes]
    if request.plain:
        return pixels, []
    gray = to_gray(pixels, stop - start, request.height, request.width, request.channels)
    if request.framing is Framing.AS_IS:
        return as_is(gray, request.ink).tobytes(), []
    framed = [frame(image, request.ink) for image in gray]
    seen = [BLANK if one.blank else SEVERAL if one.several else ACCEPTED for one in framed]
    return b"".join([one.pixels.tobytes() for one in framed]), seen


class Encoder:
    """Writes ``ClassifyResponse`` messages for one model."""

    def __init__(self, name: str, version: str, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._model = pb.ClassifyResponse(model_name=name, model_version=version).SerializeToString()

    def encode(self, answers: list[Answer], top_k: int, seconds: tuple[float, float, float], batch_size: int) -> bytes:
        """Write the response to a request.

        Args:
            answers: one an image, in order.
            top_k: classes to list for each.
            seconds: in the queue, in preprocessing, in the network.
            batch_size: of the batch that answered the last image.
        """
        # Never a message that is kept and filled again: protobuf frees what it held before only with the message itself.
        response = pb.ClassifyResponse()
        for answer in answers:
            prediction = response.predictions.add()
            self._fill(prediction, answer)
            if top_k and answer.verdict != BLANK:
                self._list(prediction, answer.probabilities, top_k)
        timing = response.timing
        timing.queue_s, timing.preprocess_s, timing.inference_s = seconds
        timing.batch_size = batch_size
        # Two messages in a row are one that has the fields of both.
        return response.SerializeToString() + self._model

    def _fill(self, prediction: pb.Prediction, answer: Answer) -> None:
        if answer.verdict != BLANK:
            prediction.label = self._labels[answer.class_index]
            prediction.class_index = answer.class_index
            prediction.confidence = answer.confidence
        prediction.verdict = VERDICTS[answer.verdict]
        prediction.ood_score = answer.ood_score

    def _list(self, prediction: pb.Prediction, probabilities: NDArray[np.float32], top_k: int) -> None:
        for index in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            prediction.top.add(label=self._labels[index], class_index=index, confidence=float(probabilities[index]))
