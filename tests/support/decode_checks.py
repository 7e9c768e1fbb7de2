"""Checks of what ``decode`` and ``decode_read`` of the protocol return for any bytes, independently of their code."""

from google.protobuf.message import DecodeError

from digitserve.batching.prepare import prepare
from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.codec import Limits, Request, decode, decode_stream_request
from digitserve.protocol.read_codec import ReadRequest, decode_read, decode_read_stream_request
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from support.protobuf import field

LIMITS = Limits(model_version="7", max_side=40, max_images=6, max_request_bytes=1 << 20)


def assert_helpful(error: Exception) -> None:
    """The message states what was got and what was expected, and is short enough for a header."""
    text = str(error)
    assert "got" in text
    assert "expected" in text
    assert len(text) < 1000
    assert text.isprintable()


def assert_consistent(request: Request, message: pb.ClassifyRequest) -> None:
    """Check a request against its message, by the comments of the proto and independently of ``decode``."""
    height, width = message.height or 28, message.width or 28
    channels = {0: 1, 1: 1, 2: 3, 3: 4}[message.pixel_format]
    assert (request.height, request.width, request.channels) == (height, width, channels)
    assert 1 <= request.num_images <= LIMITS.max_images
    assert len(request.pixels) == request.num_images * height * width * channels
    assert message.num_images in {0, request.num_images}
    assert message.model_version in {"", "7"}
    assert max(height, width) <= LIMITS.max_side
    fits = (height, width) == (28, 28)
    unspecified = message.framing == pb.FRAMING_UNSPECIFIED and fits
    auto = unspecified and message.ink in {pb.INK_UNSPECIFIED, pb.INK_AUTO}
    as_is = message.framing == pb.FRAMING_AS_IS or (unspecified and not auto)
    assert request.framing is (Framing.AUTO if auto else Framing.AS_IS if as_is else Framing.MNIST)
    assert fits or not as_is
    default_ink = Ink.LIGHT_ON_DARK if as_is else Ink.AUTO
    assert request.ink is [default_ink, Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT, Ink.AUTO][message.ink]
    assert request.top_k == message.top_k
    prepared = prepare([(request, 0, request.num_images)])
    assert prepared.images.shape == (request.num_images, 28, 28, 1)
    assert prepared.blank.shape == prepared.several.shape == (request.num_images,)
    if as_is and channels == 1 and request.ink is Ink.LIGHT_ON_DARK:
        assert prepared.images.tobytes() == request.pixels


def is_valid(message: pb.ClassifyRequest) -> bool:
    """Return whether the comments of the proto allow a message, independently of ``decode``."""
    known = message.pixel_format in range(4) and message.ink in range(4) and message.framing in range(3)
    if not known or message.model_version not in {"", "7"} or (message.height == 0) != (message.width == 0):
        return False
    height, width = message.height or 28, message.width or 28
    image_bytes = height * width * (1, 1, 3, 4)[message.pixel_format]
    num_images, rest = divmod(len(message.pixels), image_bytes)
    return (
        max(height, width) <= LIMITS.max_side and rest == 0 and 1 <= num_images <= LIMITS.max_images
        and message.num_images in {0, num_images}
        and (message.framing != pb.FRAMING_AS_IS or (height, width) == (28, 28))
    )  # fmt: skip


def check_decode(body: bytes) -> None:
    """Decode as a unary request and as a message of a stream, and compare both with protobuf's parser."""
    try:
        message = pb.ClassifyRequest.FromString(body)
    except DecodeError:
        message = None
    outcomes = []
    for decode_body, sent in ((decode, body), (decode_stream_request, field(1, body))):
        try:
            request = decode_body(sent, LIMITS)
        except (InvalidRequest, NotServed) as error:
            assert_helpful(error)
            assert message is None or not is_valid(message)
            outcomes.append(type(error))
        else:
            assert message is not None and is_valid(message)
            assert_consistent(request, message)
            outcomes.append(request)
    assert outcomes[0] == outcomes[1]


def is_valid_read(message: pb.ReadRequest) -> bool:
    """Return whether the comments of the proto allow a message, independently of ``decode_read``."""
    known = message.pixel_format in range(4) and message.ink in range(4) and message.layout in range(4)
    if not known or message.model_version not in {"", "7"} or not (message.height and message.width):
        return False
    num_bytes = message.height * message.width * (1, 1, 3, 4)[message.pixel_format]
    placeholder = message.placeholder
    return (
        max(message.height, message.width) <= LIMITS.max_side and len(message.pixels) == num_bytes
        and message.num_digits <= 64 and len(message.pattern) <= 256
        and message.min_confidence >= 0 and message.min_confidence <= 1
        and len(placeholder) <= 1 and placeholder.isprintable() and placeholder not in {" ", ".", ",", "/", "-"}
        and not (placeholder and (placeholder.isnumeric() or placeholder.isspace()))
    )  # fmt: skip


def check_decode_read(body: bytes) -> None:
    """Decode as a call of ``Read`` and as a message of a stream, and compare both with protobuf's parser."""
    try:
        message = pb.ReadRequest.FromString(body)
    except DecodeError:
        message = None
    outcomes: list[ReadRequest | type] = []
    for decode_body, sent in ((decode_read, body), (decode_read_stream_request, field(1, body))):
        try:
            request = decode_body(sent, LIMITS)
        except (InvalidRequest, NotServed) as error:
            assert_helpful(error)
            assert message is None or not is_valid_read(message)
            outcomes.append(type(error))
        else:
            assert message is not None and is_valid_read(message)
            options = request.options
            assert (request.pixels, request.height, request.width) == (message.pixels, message.height, message.width)
            assert len(request.pixels) == request.height * request.width * request.channels
            assert (options.num_digits, options.pattern, options.top_k) == (
                message.num_digits, message.pattern, message.top_k,
            )  # fmt: skip
            assert options.layout == (message.layout or 1)
            assert options.placeholder == (message.placeholder or "?")
            assert options.ink is [Ink.AUTO, Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT, Ink.AUTO][message.ink]
            outcomes.append(request)
    assert outcomes[0] == outcomes[1]
