"""One image into a request to read it, and the response into a reading. No I/O; both clients share it.

image ──Reader.prepare──▶ pixels, reduced if they are many ──Reader.to_message──▶ ReadStreamRequest
Reading ◀──Reader.to_result── ReadResponse
"""

import math
from typing import Literal, TypeAlias, TypedDict

from digitserve.client.errors import InvalidRequest
from digitserve.client.readings import Reading, to_reading
from digitserve.client.requests import MAX_TOP_K, Sent, prepare
from digitserve.protocol.names import READ_STREAM, Layout
from digitserve.protocol.readings import DEFAULT_PLACEHOLDER
from digitserve.types import Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import READ_BYTES, READ_SIDE, Reduction

LayoutName: TypeAlias = Literal["page", "line", "cells"]

MAX_NUM_DIGITS = (1 << 32) - 1
"""Largest value of the field, a uint32."""

_LAYOUTS = {layout.name.lower(): layout for layout in Layout if layout}


class ReadOptions(TypedDict, total=False):
    """The keywords of ``Client.read`` that say how to read; ``read_stream`` has the same."""

    layout: Layout | LayoutName
    num_digits: int | None
    pattern: str
    min_confidence: float
    placeholder: str
    top_k: int
    ink: Ink | None
    max_side: int | None


class Reader:
    """How one call reads its images.

    Attributes:
        stream: name of the RPC for many images.
    """

    stream = READ_STREAM.name

    def __init__(
        self, layout: Layout | LayoutName = "page", num_digits: int | None = None, pattern: str = "", min_confidence: float = 0.0,
        placeholder: str = DEFAULT_PLACEHOLDER, top_k: int = 0, ink: Ink | None = None, max_side: int | None = READ_SIDE,
    ) -> None:  # fmt: skip
        """Check the options; ``Client.read`` describes them.

        Raises:
            InvalidRequest: one has an invalid value. The service checks the pattern.
        """
        chosen = _LAYOUTS.get(layout, Layout.UNSPECIFIED) if isinstance(layout, str) else layout
        if not chosen:
            raise InvalidRequest(f"layout: got {layout!r}; expected {', '.join(_LAYOUTS)}")
        _require_count("num_digits", num_digits or 0, MAX_NUM_DIGITS)
        _require_count("top_k", top_k, MAX_TOP_K)
        if not 0 <= min_confidence <= 1 or math.isnan(min_confidence):
            raise InvalidRequest(f"min_confidence: got {min_confidence}; expected 0 to 1")
        if len(placeholder) != 1:
            raise InvalidRequest(f"placeholder: got {len(placeholder)} characters; expected 1")
        if max_side is not None and not max_side > 0:
            raise InvalidRequest(f"max_side: got {max_side}; expected a number above 0")
        self._options = pb.ReadRequest(
            layout=f"LAYOUT_{chosen.name}",
            num_digits=num_digits or 0,
            pattern=pattern,
            min_confidence=min_confidence,
            placeholder=placeholder,
            top_k=top_k,
            ink=f"INK_{ink.name if ink else 'UNSPECIFIED'}",
        )
        self._max_side = max_side

    def prepare(self, image: object, index: int) -> Sent:
        """Check an image, and reduce it if it is too large.

        Raises:
            InvalidRequest: it is not one image.
        """
        return prepare(image, index, self._max_side, READ_BYTES)

    def to_message(self, sent: Sent) -> pb.ReadStreamRequest:
        """Return the message of an image; its ``request`` is that of a single call."""
        message = pb.ReadStreamRequest(request=self._options)
        request = message.request
        request.pixels, request.pixel_format = sent.pixels.tobytes(), sent.pixel_format
        request.height, request.width = sent.pixels.shape[:2]
        return message

    def to_result(self, response: pb.ReadResponse, reduction: Reduction | None) -> Reading:
        """Return the reading of an image that was reduced in this way."""
        return to_reading(response, reduction)


def _require_count(name: str, number: int, most: int) -> None:
    if not 0 <= number <= most:
        raise InvalidRequest(f"{name}: got {number}; expected 0 to {most}")
