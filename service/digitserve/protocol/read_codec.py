"""Bytes of the protocol to requests to read an image. Knows protobuf, not gRPC.

    body ──decode_read──▶ ReadRequest ──reading, ``read_encoder``──▶ body

Called on the worker's one thread, once per request.
"""

from typing import NamedTuple

from digitserve.errors import InvalidRequest
from digitserve.protocol.codec import (
    CHANNELS,
    FORMAT_NAMES,
    INKS,
    KNOWN_INK,
    Limits,
    not_served,
    parse,
    quoted,
    unknown_value,
)  # fmt: skip
from digitserve.protocol.names import Layout
from digitserve.protocol.readings import DEFAULT_PLACEHOLDER, ReadOptions
from digitserve.types import Ink
from digitserve.v1 import digits_pb2 as pb

MAX_DIGITS = 64
"""Most digits that a request may expect in a line."""

MAX_PATTERN_CHARACTERS = 256
"""Longest pattern."""

SEPARATORS = ".,/-"
"""Characters that a line may have between its digits, besides spaces."""

_LAYOUTS = {
    pb.LAYOUT_UNSPECIFIED: Layout.PAGE,
    pb.LAYOUT_PAGE: Layout.PAGE,
    pb.LAYOUT_LINE: Layout.LINE,
    pb.LAYOUT_CELLS: Layout.CELLS,
}


class ReadRequest(NamedTuple):
    """A request to read an image that has passed every check of the codec.

    Attributes:
        pixels: height x width x channels bytes.
        height: in pixels, at least 1.
        width: in pixels, at least 1.
        channels: 1, 3 or 4.
        options: how to read it; the pattern is not checked, except for its length.
    """

    pixels: bytes
    height: int
    width: int
    channels: int
    options: ReadOptions

    @property
    def num_images(self) -> int:
        """Always 1."""
        return 1


def decode_read(body: bytes, limits: Limits) -> ReadRequest:
    """Parse and check a ``ReadRequest``.

    Raises:
        InvalidRequest: the message states what was received, and what is expected.
        NotServed: the request names another model version.
    """
    return _check(parse(pb.ReadRequest, body), limits)


def decode_read_stream_request(body: bytes, limits: Limits) -> ReadRequest:
    """Parse and check a ``ReadStreamRequest``; see ``decode_read``."""
    return _check(parse(pb.ReadStreamRequest, body).request, limits)


def _check(message: pb.ReadRequest, limits: Limits) -> ReadRequest:
    if message.model_version not in {"", limits.model_version}:
        raise not_served(message.model_version, limits.model_version)
    if message.pixel_format not in CHANNELS or message.ink not in KNOWN_INK or message.layout not in _LAYOUTS:
        raise unknown_value(
            ("pixel_format", message.pixel_format, pb.PixelFormat),
            ("ink", message.ink, pb.Ink),
            ("layout", message.layout, pb.Layout),
        )
    height, width, channels = message.height, message.width, CHANNELS[message.pixel_format]
    if not (height and width):
        raise InvalidRequest(f"got height {height} and width {width}; expected the height and width of the image")
    if max(height, width) > limits.max_side:
        raise limits.too_wide_error(height, width)
    pixels, num_bytes = message.pixels, height * width * channels
    if len(pixels) != num_bytes:
        raise InvalidRequest(
            f"pixels: got {len(pixels)} bytes; expected {num_bytes}, one image of {height}x{width} "
            f"{FORMAT_NAMES[message.pixel_format]}"
        )
    return ReadRequest(pixels, height, width, channels, _options(message))


def _options(message: pb.ReadRequest) -> ReadOptions:
    if message.num_digits > MAX_DIGITS:
        raise InvalidRequest(
            f"num_digits: got {message.num_digits}; expected at most {MAX_DIGITS}, or 0 for any number"
        )
    if len(message.pattern) > MAX_PATTERN_CHARACTERS:
        raise InvalidRequest(
            f"pattern: got {len(message.pattern)} characters; expected at most {MAX_PATTERN_CHARACTERS}"
        )
    # Not "less than 0 or more than 1": a NaN must fail too.
    if not 0 <= message.min_confidence <= 1:
        raise InvalidRequest(f"min_confidence: got {message.min_confidence:g}; expected a number from 0 to 1")
    return ReadOptions(
        _LAYOUTS[message.layout], message.num_digits, message.pattern, message.min_confidence,
        _placeholder(message.placeholder), message.top_k, INKS.get(message.ink, Ink.AUTO),
    )  # fmt: skip


def _placeholder(text: str) -> str:
    if not text:
        return DEFAULT_PLACEHOLDER
    if len(text) != 1 or not text.isprintable() or text.isnumeric() or text.isspace() or text in SEPARATORS:
        raise InvalidRequest(
            f"placeholder: got {quoted(text)}; expected one character that is neither a digit, a space nor one of {SEPARATORS}"
        )
    return text
