"""Bytes of the protocol to requests. Knows protobuf, not gRPC.

    body ──decode──▶ Request ──prepare, network, ``encoder``──▶ body

``infer`` and ``tensors`` do the same for the Open Inference Protocol. Called on the worker's one thread, a few times per
request: what can be built once is not built per request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from google.protobuf.message import DecodeError, Message

from digitserve.errors import InvalidRequest, NotServed, TooLarge
from digitserve.protocol.records import CONTINUED, Answer
from digitserve.types import IMAGE_SIZE, Framing, Ink, default_framing, default_ink
from digitserve.v1 import digits_pb2 as pb

IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE

MAX_QUOTED_CHARACTERS = 64
"""Most characters of a caller's text that an error message quotes."""

CHANNELS = {
    pb.PIXEL_FORMAT_UNSPECIFIED: 1,
    pb.PIXEL_FORMAT_GRAY8: 1,
    pb.PIXEL_FORMAT_RGB8: 3,
    pb.PIXEL_FORMAT_RGBA8: 4,
}
"""Bytes of a pixel, by its format."""

_MAX_CHANNELS = max(CHANNELS.values())
_MAX_HEADER_BYTES = 128
"""Upper bound of a request's size without its pixels, with a model version of usual length."""
INKS = {
    pb.INK_LIGHT_ON_DARK: Ink.LIGHT_ON_DARK,
    pb.INK_DARK_ON_LIGHT: Ink.DARK_ON_LIGHT,
    pb.INK_AUTO: Ink.AUTO,
}
FRAMINGS = {pb.FRAMING_AS_IS: Framing.AS_IS, pb.FRAMING_MNIST: Framing.MNIST}
FORMAT_NAMES = {
    pb.PIXEL_FORMAT_UNSPECIFIED: "GRAY8",
    pb.PIXEL_FORMAT_GRAY8: "GRAY8",
    pb.PIXEL_FORMAT_RGB8: "RGB8",
    pb.PIXEL_FORMAT_RGBA8: "RGBA8",
}
# Looked up for each request: the methods of protobuf's enums build a list.
KNOWN_INK = frozenset(pb.Ink.values())
_KNOWN_FRAMING = frozenset(pb.Framing.values())

Layouts: TypeAlias = dict[int, tuple[tuple[bytes, bytes, int, int, tuple[Any, ...]], ...]]
"""Layouts of messages by their lengths: the bytes before and after the pixels, the start and end of the pixels, and the fields
of the ``Request`` after its pixels. The other messages of a client usually differ from one only in their pixels.
"""

MAX_LAYOUTS = 64
"""Most lengths whose layouts are kept; beyond it, all are discarded."""

_MAX_OF_LENGTH = 4
"""Most layouts of one length: clients may differ in ``top_k`` only."""

_MAX_AFTER_BYTES = 128
"""Most bytes after the pixels. A layout is kept only if its pixels have more bytes. So the bytes after them cannot contain a
second field of pixels of the same length, which would replace the first one.
"""

_PIXELS_TAG = bytes([pb.ClassifyRequest.PIXELS_FIELD_NUMBER << 3 | 2])
_REQUEST_TAG = bytes([pb.ClassifyStreamRequest.REQUEST_FIELD_NUMBER << 3 | 2])

_RESPONSE_TAG = bytes([pb.ClassifyStreamResponse.RESPONSE_FIELD_NUMBER << 3 | 2])
"""Tag of a length-delimited field."""

_RESPONSE_STARTS = [_RESPONSE_TAG + bytes([size]) for size in range(CONTINUED)]
"""The tag and the length of bodies whose length is one byte: of answers to one image."""


@dataclass(frozen=True)
class Limits:
    """What this worker accepts in a request.

    Attributes:
        model_version: the version being served.
        max_side: largest height or width, in pixels.
        max_images: most images per request.
        max_request_bytes: largest message.
        native_framing: default framing of 28x28 images, see ``types.native_framing``.
        layouts: of messages that were decoded with these limits.
        stream_layouts: the same for those of streams.
    """

    model_version: str
    max_side: int
    max_images: int
    max_request_bytes: int
    native_framing: Framing = Framing.AUTO
    layouts: Layouts = field(default_factory=dict, init=False, repr=False, compare=False)
    stream_layouts: Layouts = field(default_factory=dict, init=False, repr=False, compare=False)

    def too_large_error(self) -> TooLarge:
        """Return the error for a message over the limit."""
        side = math.isqrt((self.max_request_bytes - _MAX_HEADER_BYTES) // _MAX_CHANNELS)
        return TooLarge(
            f"got a message of more than {self.max_request_bytes} bytes; expected at most that: send several images in "
            f"several requests; reduce the image to at most {min(side, self.max_side)} pixels a side or send it as GRAY8"
        )

    def too_wide_error(self, height: int, width: int) -> InvalidRequest:
        """Return the error for an image with a side over the limit."""
        return InvalidRequest(
            f"got {height}x{width} pixels; expected at most {self.max_side} on a side: reduce the image"
        )

    def too_many_error(self, num_images: int) -> InvalidRequest:
        """Return the error for more images than a request may have."""
        return InvalidRequest(
            f"got {num_images} images; expected at most {self.max_images}: send them in several requests"
        )


class Form(Protocol):
    """Encodes the answers of a request that does not get a ``ClassifyResponse``."""

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """Return the response; there is one answer for each image, in order."""


class Request(NamedTuple):
    """A request that has passed every check.

    Attributes:
        pixels: num_images x height x width x channels bytes.
        num_images: at least 1.
        height: in pixels.
        width: in pixels.
        channels: 1, 3 or 4.
        ink: whether the strokes are lighter or darker than the background.
        framing: how images are brought to the network's size.
        top_k: classes to list for each image.
        explain: whether the answers say how the images were prepared.
        form: of the response; None for a ``ClassifyResponse``.
    """

    pixels: bytes
    num_images: int
    height: int
    width: int
    channels: int
    ink: Ink
    framing: Framing
    top_k: int
    explain: bool
    form: Form | None = None


_new_request = tuple.__new__
"""Creates a ``Request`` from a tuple of all its fields: a call of the class takes twice as long."""


def decode(body: bytes, limits: Limits) -> Request:
    """Parse and check a ``ClassifyRequest``.

    Messages with the layout of an earlier one are recognised by few comparisons, without protobuf.

    Raises:
        InvalidRequest: the message states what was received, what is expected, and which image.
        NotServed: the request names another model version.
    """
    for before, after, start, stop, fields in limits.layouts.get(len(body), ()):
        if body.startswith(before) and body.endswith(after):
            return _new_request(Request, (body[start:stop], *fields))
    request = _check(parse(pb.ClassifyRequest, body), limits)
    _remember(limits.layouts, b"", body, request)
    return request


def decode_stream_request(body: bytes, limits: Limits) -> Request:
    """Parse and check a ``ClassifyStreamRequest``; see ``decode``."""
    for before, after, start, stop, fields in limits.stream_layouts.get(len(body), ()):
        if body.startswith(before) and body.endswith(after):
            return _new_request(Request, (body[start:stop], *fields))
    request = _check(parse(pb.ClassifyStreamRequest, body).request, limits)
    rest = len(body) - len(_REQUEST_TAG)
    _remember(limits.stream_layouts, _REQUEST_TAG + varint(rest - len(varint(rest))), body, request)
    return request


def _remember(layouts: Layouts, start: bytes, body: bytes, request: Request) -> None:
    """Keep the layout of a message if it is the usual one: its pixels come first, right after ``start``."""
    pixels, *fields = request
    before = start + _PIXELS_TAG + varint(len(pixels))
    stop = len(before) + len(pixels)
    # Then these are the pixels of the request: what follows them is too short to hold as many once more.
    if len(body) - stop <= _MAX_AFTER_BYTES < len(pixels) and body.startswith(before):
        if len(layouts) >= MAX_LAYOUTS:
            layouts.clear()
        same = layouts.get(len(body), ())[: _MAX_OF_LENGTH - 1]
        layouts[len(body)] = (before, body[stop:], len(before), stop, tuple(fields)), *same


def encode_stream_response(body: bytes) -> bytes:
    """Return a ``ClassifyStreamResponse`` that holds a serialized ``ClassifyResponse``, without parsing it."""
    size = len(body)
    return b"".join((_RESPONSE_STARTS[size] if size < CONTINUED else _RESPONSE_TAG + varint(size), body))


def encode_stream_error(status: Message) -> bytes:
    """Return a ``ClassifyStreamResponse`` that holds a ``google.rpc.Status``."""
    return pb.ClassifyStreamResponse(error=status).SerializeToString()


def parse(kind: Any, body: bytes) -> Any:
    """Parse a message of a generated class.

    Raises:
        InvalidRequest: the bytes are not such a message.
    """
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest(
            f"got {len(body)} bytes that are not a {kind.DESCRIPTOR.name}; expected protobuf"
        ) from None


def varint(number: int) -> bytes:
    """Encode a length as protobuf does: seven bits per byte, the lowest first."""
    written = bytearray()
    while number >= CONTINUED:
        written.append(number % CONTINUED | CONTINUED)
        number >>= 7
    written.append(number)
    return bytes(written)


def _check(message: pb.ClassifyRequest, limits: Limits) -> Request:
    pixels = message.pixels
    if message.model_version not in {"", limits.model_version}:
        raise not_served(message.model_version, limits.model_version)
    pixel_format, stated_ink, stated_framing = message.pixel_format, message.ink, message.framing
    if pixel_format not in CHANNELS or stated_ink not in KNOWN_INK or stated_framing not in _KNOWN_FRAMING:
        raise _unknown(message)
    channels = CHANNELS[pixel_format]
    height, width = _sides(message, limits)
    num_images = _num_images(message, len(pixels), height * width * channels, limits)
    ink, framing = resolve_treatment(
        INKS.get(stated_ink), FRAMINGS.get(stated_framing), height, width, limits.native_framing
    )
    return Request(pixels, num_images, height, width, channels, ink, framing, message.top_k, message.explain)


def not_served(model_version: str, served_version: str) -> NotServed:
    """Return the error for a request that names another model version than the one being served."""
    return NotServed(
        f"model_version: got {quoted(model_version)}; expected '{served_version}', the version that is served"
    )


def quoted(text: str) -> str:
    """Quote a caller's text for an error message."""
    # Status messages travel as headers, whose size is bounded. repr escapes control characters.
    return repr(text[:MAX_QUOTED_CHARACTERS] + "..." * (len(text) > MAX_QUOTED_CHARACTERS))


def resolve_treatment(
    ink: Ink | None, framing: Framing | None, height: int, width: int, native: Framing
) -> tuple[Ink, Framing]:
    """Return how images are treated.

    Args:
        ink: that the request states, if any.
        framing: AS_IS or MNIST if the request states it.
        height: of the images, in pixels.
        width: of the images, in pixels.
        native: default framing of 28x28 images, see ``types.native_framing``.

    Raises:
        InvalidRequest: AS_IS for images of another size.
    """
    default = default_framing(height, width, native)
    if framing is None:
        # 28x28 images of stated polarity are used as they are.
        undecided = ink is None or ink is Ink.AUTO
        framing = default if undecided or default is not Framing.AUTO else Framing.AS_IS
    elif framing is Framing.AS_IS and default is Framing.MNIST:
        raise InvalidRequest(
            f"framing: got AS_IS for images of {height}x{width}; expected images of {IMAGE_SIZE}x{IMAGE_SIZE}: "
            "use MNIST, or leave the framing unset"
        )
    return default_ink(framing) if ink is None else ink, framing


def _unknown(message: pb.ClassifyRequest) -> InvalidRequest:
    """Return the error for the first field whose value the protocol does not have."""
    return unknown_value(
        ("pixel_format", message.pixel_format, pb.PixelFormat),
        ("ink", message.ink, pb.Ink),
        ("framing", message.framing, pb.Framing),
    )


def unknown_value(*fields: tuple[str, int, Any]) -> InvalidRequest:
    """Return the error for the first of these fields whose value its enum does not have: name, value, enum; there is one."""
    field, value, kind = next(found for found in fields if found[1] not in found[2].values())
    return InvalidRequest(f"{field}: got {value}; expected one of {', '.join(kind.keys())}")


def _sides(message: pb.ClassifyRequest, limits: Limits) -> tuple[int, int]:
    height, width = message.height, message.width
    if height == 0 and width == 0:
        return IMAGE_SIZE, IMAGE_SIZE
    if height == 0 or width == 0:
        raise InvalidRequest(
            f"got height {height} and width {width}; expected both, or neither for {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    if max(height, width) > limits.max_side:
        raise limits.too_wide_error(height, width)
    return height, width


def _num_images(message: pb.ClassifyRequest, num_bytes: int, image_bytes: int, limits: Limits) -> int:
    num_images, rest = divmod(num_bytes, image_bytes)
    if rest or not num_images or message.num_images not in {0, num_images}:
        raise _length_error(message, num_bytes, image_bytes)
    if num_images > limits.max_images:
        raise limits.too_many_error(num_images)
    return num_images


def _length_error(message: pb.ClassifyRequest, num_bytes: int, image_bytes: int) -> InvalidRequest:
    """Return the error for pixels that are not ``message.num_images`` whole images."""
    shape = f"{message.height or IMAGE_SIZE}x{message.width or IMAGE_SIZE}"
    each = f"{image_bytes} bytes for each image of {shape} {FORMAT_NAMES[message.pixel_format]}"
    if not num_bytes:
        return InvalidRequest(f"pixels: got none; expected {each}")
    num_images, rest = divmod(num_bytes, image_bytes)
    if rest:
        return InvalidRequest(f"pixels: got {num_bytes} bytes, so image {num_images} has only {rest}; expected {each}")
    return InvalidRequest(
        f"num_images: got {message.num_images}; expected {num_images}, from the length of pixels ({each})"
    )
