"""The promises of the codec of ``Read``: protobuf writes and reads what it is compared with."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.codec import Limits, encode_stream_error, encode_stream_response
from digitserve.protocol.names import Code, IgnoredKind, Layout, MarkKind, Verdict
from digitserve.protocol.read_codec import (
    MAX_DIGITS,
    MAX_PATTERN_CHARACTERS,
    ReadRequest,
    decode_read,
    decode_read_stream_request,
)  # fmt: skip
from digitserve.protocol.read_encoder import ReadEncoder
from digitserve.protocol.readings import Ignored, Line, Mark, Reading, ReadOptions
from digitserve.protocol.status import Status
from digitserve.types import Box, Ink
from digitserve.v1 import digits_pb2 as pb

LIMITS = Limits(model_version="3", max_side=64, max_images=10, max_request_bytes=1 << 20)
LABELS = tuple("0123456789")


def decoded(**fields: Any) -> ReadRequest:
    """Decode an image of 2x3 with further fields."""
    message = pb.ReadRequest(**{"pixels": bytes(range(6)), "height": 2, "width": 3, **fields})
    return decode_read(message.SerializeToString(), LIMITS)


def rejection(**fields: Any) -> str:
    """Return the text of the error for such a request."""
    with pytest.raises(InvalidRequest) as raised:
        decoded(**fields)
    return str(raised.value)


def test_defaults_are_those_of_the_protocol() -> None:
    """What a request does not state is a grey page without expectations."""
    assert decoded() == ReadRequest(bytes(range(6)), 2, 3, 1, ReadOptions())
    assert decoded().options == ReadOptions(Layout.PAGE, 0, "", 0.0, "?", 0, Ink.AUTO)
    assert decoded().num_images == 1


CHANNELS = {pb.PIXEL_FORMAT_UNSPECIFIED: 1, pb.PIXEL_FORMAT_GRAY8: 1, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}
INKS = (Ink.AUTO, Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT, Ink.AUTO)


@given(st.data())
def test_every_valid_request_is_decoded(data: st.DataObject) -> None:
    """All fields arrive as they were sent, in a call and on a stream."""
    pixel_format = data.draw(st.sampled_from(list(CHANNELS)))
    height, width = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 8))
    channels = CHANNELS[pixel_format]
    pixels = data.draw(st.binary(min_size=height * width * channels, max_size=height * width * channels))
    ink, layout = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    options = ReadOptions(
        Layout(layout or 1),
        data.draw(st.integers(0, MAX_DIGITS)),
        data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_PATTERN_CHARACTERS)),
        data.draw(st.floats(0, 1, width=32)),
        data.draw(st.sampled_from("?_*xé字")),
        data.draw(st.integers(0, 2**32 - 1)),
        INKS[ink],
    )
    message = pb.ReadRequest(
        pixels=pixels, height=height, width=width, pixel_format=pixel_format, ink=ink, layout=layout,  # type: ignore[arg-type]
        num_digits=options.num_digits, pattern=options.pattern, min_confidence=options.min_confidence,
        placeholder=options.placeholder, top_k=options.top_k, model_version=data.draw(st.sampled_from(["", "3"])),
    )  # fmt: skip
    expected = ReadRequest(pixels, height, width, channels, options)
    assert decode_read(message.SerializeToString(), LIMITS) == expected
    stream = pb.ReadStreamRequest(request=message).SerializeToString()
    assert decode_read_stream_request(stream, LIMITS) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected(body: bytes) -> None:
    """No bytes cause another error than those of the protocol."""
    for decode in (decode_read, decode_read_stream_request):
        try:
            assert isinstance(decode(body, LIMITS), ReadRequest)
        except (InvalidRequest, NotServed) as error:
            assert str(error)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"height": 0}, ["height 0 and width 3", "expected the height and width"]),
        ({"width": 0}, ["height 2 and width 0"]),
        ({"height": 65}, ["65x3", "at most 64"]),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, ["at most 64"]),
        ({"pixels": b""}, ["pixels: got 0 bytes; expected 6, one image of 2x3 GRAY8"]),
        ({"pixels": bytes(12)}, ["got 12 bytes; expected 6"]),
        ({"pixel_format": pb.PIXEL_FORMAT_RGB8}, ["got 6 bytes; expected 18", "RGB8"]),
        ({"pixel_format": 99}, ["pixel_format: got 99", "PIXEL_FORMAT_GRAY8"]),
        ({"ink": 99}, ["ink: got 99"]),
        ({"layout": 99}, ["layout: got 99", "LAYOUT_CELLS"]),
        ({"num_digits": MAX_DIGITS + 1}, ["num_digits: got 65", "at most 64"]),
        ({"pattern": "1" * (MAX_PATTERN_CHARACTERS + 1)}, ["pattern: got 257 characters", "at most 256"]),
        ({"min_confidence": -0.1}, ["min_confidence: got -0.1", "from 0 to 1"]),
        ({"min_confidence": 1.5}, ["got 1.5"]),
        ({"min_confidence": math.nan}, ["got nan"]),
        ({"min_confidence": math.inf}, ["got inf"]),
        *(
            ({"placeholder": text}, ["placeholder: got"])
            for text in ("??", "0", "٣", "½", " ", "\n", "\0", ".", "-", "x" * 999)
        ),
    ],
)
def test_invalid_requests_are_rejected(fields: dict[str, Any], parts: list[str]) -> None:
    """The error states what was received and what is expected, in limited length."""
    text = rejection(**fields)
    assert len(text) < 300
    for part in parts:
        assert part in text


def test_another_model_version_is_not_served() -> None:
    """The error names the version that is."""
    with pytest.raises(NotServed, match="expected '3'"):
        decoded(model_version="2")


BOXES = st.builds(Box, *[st.integers(0, 4096)] * 4)
FLOATS = st.floats(0, 1, width=32)
INDICES = st.integers(0, 9)
MARKS = st.builds(
    Mark, st.characters(exclude_categories=["Cs"]), st.sampled_from(MarkKind), BOXES, st.none() | INDICES, FLOATS,
    st.sampled_from(Verdict), FLOATS, st.lists(st.tuples(INDICES, FLOATS), max_size=3),
)  # fmt: skip
LINES = st.builds(
    Line, st.text(st.characters(exclude_categories=["Cs"])), FLOATS, BOXES, st.lists(MARKS, max_size=4), st.booleans()
)
READINGS = st.builds(
    Reading,
    st.lists(LINES, max_size=3),
    st.lists(st.builds(Ignored, st.sampled_from(IgnoredKind), BOXES), max_size=3),
)


@given(READINGS)
def test_every_reading_is_encoded(reading: Reading) -> None:
    """A client gets all that was read, in order, with the model and the times."""
    body = ReadEncoder("digits", "3", LABELS).encode(reading, (0.25, 0.5, 0.125), 17)
    response = pb.ReadResponse.FromString(body)
    assert (response.model_name, response.model_version) == ("digits", "3")
    timing = response.timing
    assert (timing.queue_s, timing.preprocess_s, timing.inference_s, timing.batch_size) == (0.25, 0.5, 0.125, 17)

    def box(message: pb.Box) -> Box:
        return Box(message.top, message.bottom, message.left, message.right)

    lines = [
        Line(
            line.text, line.confidence, box(line.box),
            [
                Mark(
                    mark.text, MarkKind(mark.kind), box(mark.box), mark.class_index if mark.label else None,
                    mark.confidence, Verdict(mark.verdict), mark.ood_score,
                    [(score.class_index, score.confidence) for score in mark.top],
                )
                for mark in line.marks
            ],
            line.matches,
        )
        for line in response.lines
    ]  # fmt: skip
    assert lines == reading.lines
    assert [Ignored(IgnoredKind(one.kind), box(one.box)) for one in response.ignored] == reading.ignored
    assert all(mark.label == LABELS[mark.class_index] for line in response.lines for mark in line.marks if mark.label)


def test_numbers_of_numpy_are_encoded() -> None:
    """A reader may return numbers of numpy."""
    mark = Mark("3", MarkKind.DIGIT, Box(*np.arange(4)), np.int64(3), np.float32(0.5), Verdict.ACCEPTED, np.float32(1))  # type: ignore[arg-type]
    reading = Reading([Line("3", np.float32(0.5), mark.box, [mark])])  # type: ignore[arg-type]
    response = pb.ReadResponse.FromString(ReadEncoder("digits", "3", LABELS).encode(reading, (0, 0, 0), 1))
    assert response.lines[0].marks[0].label == "3"


def test_messages_of_streams_have_the_fields_of_those_to_classify() -> None:
    """The handler of streams encodes both alike."""
    response = pb.ReadResponse(model_name="digits")
    body = encode_stream_response(response.SerializeToString())
    assert pb.ReadStreamResponse.FromString(body) == pb.ReadStreamResponse(response=response)
    status = Status(Code.NOT_FOUND, "why").to_proto()
    assert pb.ReadStreamResponse.FromString(encode_stream_error(status)) == pb.ReadStreamResponse(error=status)
