"""Messages between the supervisor and the child processes that decode image files.

    DecoderPool ──Question, body──▶ decoder_process
                ◀──Answer, request──

In a module of its own, so that the supervisor does not load Pillow.
"""

import struct
from typing import Any, NamedTuple, Self

from digitserve.vision.reduction import Reduction

PREFIX = struct.Struct(">II")
"""Before each message: the length of its JSON part, and of the bytes that follow it."""


class Question(NamedTuple):
    """What the supervisor asks with a file.

    Attributes:
        max_side: longest side that is sent to the workers; 0 for no limit.
        max_images: of the file.
        max_bytes: of the pixels that are sent; 0 for no limit.
        message: name of the request to the workers.
    """

    max_side: int
    max_images: int
    max_bytes: int = 0
    message: str = "ClassifyRequest"


class Answer(NamedTuple):
    """How the decoding ended.

    Attributes:
        error: the message for the client; empty if the image was decoded.
        is_too_large: whether the error is that there are too many pixels.
        reduction: from the images in the file to the pixels of the request; None if they were not reduced.
    """

    error: str = ""
    is_too_large: bool = False
    reduction: Reduction | None = None

    @classmethod
    def from_list(cls, values: list[Any]) -> Self:
        """Return the answer from its JSON form."""
        error, is_too_large, reduction = values
        return cls(error, is_too_large, None if reduction is None else Reduction(*reduction))
