"""Images into requests to read, and responses into readings, without a socket."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from digitserve.client import Box, Ignored, IgnoredKind, Ink, InvalidRequest, Layout, Line, Mark, MarkKind, Verdict
from digitserve.client.read_requests import Reader
from digitserve.client.readings import to_reading
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import READ_BYTES, Reduction


def request_for(image: object, **options: Any) -> pb.ReadRequest:
    """Return the request for an image."""
    reader = Reader(**options)
    return reader.to_message(reader.prepare(image, 0)).request


def test_an_image_is_sent_as_it_is() -> None:
    """Without options the request has the image, the layout PAGE and the usual placeholder."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert request_for(pixels) == pb.ReadRequest(
        pixels=pixels.tobytes(), height=2, width=4, pixel_format=pb.PIXEL_FORMAT_RGB8, layout=pb.LAYOUT_PAGE, placeholder="?"
    )  # fmt: skip
    assert request_for(Image.fromarray(pixels)) == request_for(pixels)


@pytest.mark.parametrize("layout", ["cells", Layout.CELLS])
def test_every_option_has_its_field(layout: Any) -> None:
    """Each keyword sets the field of its name; layouts are names or members of the enum."""
    request = request_for(
        np.zeros((3, 5), np.uint8), layout=layout, num_digits=5, pattern=r"\d{5}", min_confidence=0.5, placeholder="_",
        top_k=3, ink=Ink.DARK_ON_LIGHT,
    )  # fmt: skip
    request.ClearField("pixels")
    assert request == pb.ReadRequest(
        height=3, width=5, pixel_format=pb.PIXEL_FORMAT_GRAY8, layout=pb.LAYOUT_CELLS, num_digits=5, pattern=r"\d{5}",
        min_confidence=0.5, placeholder="_", top_k=3, ink=pb.INK_DARK_ON_LIGHT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "book"}, "layout: got 'book'; expected page, line, cells"),
        ({"layout": Layout.UNSPECIFIED}, "layout: got <Layout.UNSPECIFIED: 0>; expected page, line, cells"),
        ({"num_digits": -1}, "num_digits: got -1; expected 0 to 4294967295"),
        ({"top_k": 1 << 32}, "top_k: got 4294967296; expected 0 to 4294967295"),
        ({"min_confidence": 1.5}, "min_confidence: got 1.5; expected 0 to 1"),
        ({"min_confidence": math.nan}, "min_confidence: got nan; expected 0 to 1"),
        ({"placeholder": "??"}, "placeholder: got 2 characters; expected 1"),
        ({"max_side": 0}, "max_side: got 0; expected a number above 0"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    """The error names the option, what it got and what is accepted."""
    with pytest.raises(InvalidRequest) as caught:
        Reader(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2)), np.zeros((5, 28, 28), np.uint8), [np.zeros((2, 2), np.uint8)], "a.png"]
)
def test_it_reads_one_image_at_a_time(image: Any) -> None:
    """Several images, and what is no image, are refused."""
    with pytest.raises(InvalidRequest, match="expected"):
        Reader().prepare(image, 0)


@pytest.mark.parametrize(
    ("shape", "max_side", "sent"),
    [
        # A page keeps its pixels up to the limits of the service: 4,096 a side, and 16 MiB.
        ((4096, 4096), 4096, (4096, 4096)),
        ((4097, 100), 4096, (2049, 50)),
        ((3000, 2000, 3), 4096, (1500, 1000)),
        ((2200, 2200, 3), 4096, (2200, 2200)),
        ((3000, 2000, 3), None, (3000, 2000)),
        ((300, 200, 3), 100, (100, 67)),
    ],
)
def test_large_images_are_reduced_until_they_fit(
    shape: tuple[int, ...], max_side: int | None, sent: tuple[int, int]
) -> None:
    """The sides and the bytes are limited; with ``max_side=None`` nothing is."""
    request = request_for(np.zeros(shape, np.uint8), max_side=max_side)
    assert (request.height, request.width) == sent
    assert max_side is None or len(request.pixels) <= READ_BYTES


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 1000))
def test_no_smaller_reduction_would_fit(height: int, width: int, max_side: int, max_pixels: int) -> None:
    """The factor is the smallest with which the sides and the number of pixels are within their limits."""
    factor = Reduction.to_fit(height, width, max_side, max_pixels).factor

    def fits(factor: int) -> bool:
        size = Reduction(factor, height, width).size
        return max(size) <= max_side and math.prod(size) <= max_pixels

    assert fits(factor)
    assert not any(fits(smaller) for smaller in range(1, factor))


RESPONSE = pb.ReadResponse(
    lines=[
        pb.ReadLine(
            text="4.?", confidence=0.25, box=pb.Box(top=1, bottom=5, left=2, right=20), matches=False,
            marks=[
                pb.Mark(text="4", kind=pb.MARK_KIND_DIGIT, box=pb.Box(top=1, bottom=5, left=2, right=5), label="4",
                        class_index=4, confidence=0.5, verdict=pb.VERDICT_ACCEPTED, ood_score=0.25,
                        top=[pb.ClassScore(label="4", class_index=4, confidence=0.5)]),
                pb.Mark(text=".", kind=pb.MARK_KIND_SEPARATOR, box=pb.Box(top=4, bottom=5, left=6, right=7), confidence=1),
                pb.Mark(text="?", kind=pb.MARK_KIND_UNREAD, box=pb.Box(top=1, bottom=5, left=15, right=20), label="8",
                        class_index=8, verdict=pb.VERDICT_UNFAMILIAR),
            ],
        ),
        pb.ReadLine(text="7", confidence=1, matches=True, marks=[pb.Mark(text="7", kind=pb.MARK_KIND_DIGIT)]),
    ],
    ignored=[pb.Ignored(kind=pb.IGNORED_KIND_RULING, box=pb.Box(top=0, bottom=1, left=0, right=34))],
    model_name="digits", model_version="4", timing=pb.Timing(queue_s=0.5, batch_size=7),
)  # fmt: skip


def test_a_response_becomes_a_reading() -> None:
    """Every field of the response is there; lines are joined by newlines."""
    reading = to_reading(RESPONSE)
    four, point, unread = reading.lines[0].marks
    assert reading.text == "4.?\n7"
    assert four == Mark("4", MarkKind.DIGIT, Box(1, 5, 2, 5), "4", 4, 0.5, Verdict.ACCEPTED, 0.25, four.top)
    assert [(score.label, score.class_index, score.confidence) for score in four.top] == [("4", 4, 0.5)]
    assert point == Mark(".", MarkKind.SEPARATOR, Box(4, 5, 6, 7), confidence=1)
    assert (unread.kind, unread.label, unread.verdict) == (MarkKind.UNREAD, "8", Verdict.UNFAMILIAR)
    assert reading.lines[0] == Line("4.?", 0.25, Box(1, 5, 2, 20), (four, point, unread), matches=False)
    assert [line.complete for line in reading.lines] == [False, True]
    assert reading.ignored == (Ignored(IgnoredKind.RULING, Box(0, 1, 0, 34)),)
    assert (reading.model, reading.version) == ("digits", "4")
    assert (reading.timing.queue_s, reading.timing.batch_size) == (0.5, 7)


def test_boxes_are_in_pixels_of_the_image_as_it_was_given() -> None:
    """Boxes of a reduced image are enlarged, up to its border; those of empty messages are empty."""
    reading = to_reading(RESPONSE, Reduction(3, 100, 101))
    assert reading.lines[0].box == (3, 15, 6, 60)
    assert reading.lines[0].marks[1].box == (12, 15, 18, 21)
    assert reading.ignored[0].box == (0, 3, 0, 101)


def test_kinds_of_a_newer_service_are_unspecified() -> None:
    """Numbers of enums that this client does not know raise nothing."""
    message = pb.ReadResponse()
    message.lines.add().marks.add(kind=99, verdict=99)  # type: ignore[arg-type]
    message.ignored.add(kind=99)  # type: ignore[arg-type]
    reading = to_reading(message)
    assert reading.lines[0].marks[0].kind is MarkKind.UNSPECIFIED
    assert reading.lines[0].marks[0].verdict is Verdict.UNSPECIFIED
    assert reading.ignored[0].kind is IgnoredKind.UNSPECIFIED
