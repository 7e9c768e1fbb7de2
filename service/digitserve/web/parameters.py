"""The query parameters of ``POST /v1/classify`` and ``POST /v1/read``; no state.

One declaration of a parameter feeds its check, its error, and its entry in the OpenAPI description.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from digitserve.protocol.names import Layout
from digitserve.protocol.read_codec import MAX_DIGITS, MAX_PATTERN_CHARACTERS
from digitserve.protocol.readings import DEFAULT_PLACEHOLDER
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import MAX_SIDE, READ_SIDE
from digitserve.web.answers import Failure

MAX_TIMEOUT_S = 5.0
"""Longest and default time for the answer of a worker."""

MAX_TOP_K = 1_000

_MAX_NUMBER = 1 << 16
"""Largest width, height and ``max_side``: the largest value of ``--max-side``."""

_MAX_TEXT = 200
"""Most characters of a value that an error quotes, and of a version."""

_MAX_DIGITS = 20
"""Most characters of a number: Python converts longer ones in quadratic time."""


@dataclass(frozen=True)
class Parameter:
    """A query parameter.

    Attributes:
        name: in the query.
        text: for the OpenAPI description.
        schema: of its value, in OpenAPI.
        parse: returns the value of a text, or raises ValueError.
        default: value if it is absent.
    """

    name: str
    text: str
    schema: dict[str, Any]
    parse: Callable[[str], Any]
    default: Any

    @property
    def expected(self) -> str:
        """The accepted values, for people."""
        schema = self.schema
        if "enum" in schema:
            return ", ".join(map(str, schema["enum"]))
        if schema["type"] == "boolean":
            return "true or false"
        if schema["type"] == "string":
            return "one character" if schema["maxLength"] == 1 else f"at most {schema['maxLength']} characters"
        if schema["type"] == "integer":
            return f"an integer from {schema['minimum']} to {schema['maximum']}"
        if "minimum" in schema:
            return f"a number from {schema['minimum']} to {schema['maximum']}"
        return f"a number above {schema['exclusiveMinimum']}, at most {schema['maximum']:g}"


def _integer(name: str, text: str, least: int, most: int, default: int | None) -> Parameter:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS and least <= int(value) <= most):
            raise ValueError(value)
        return int(value)

    shown = {} if default is None else {"default": default}
    return Parameter(name, text, {"type": "integer", "minimum": least, "maximum": most, **shown}, parse, default)


def _choice(name: str, text: str, values: Iterable[str], default: str) -> Parameter:
    """Declare a choice; ``default`` is what the service uses if it is absent."""
    choices = list(values)

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(value)
        return value

    return Parameter(name, text, {"type": "string", "enum": choices, "default": default}, parse, "")


def _boolean(name: str, text: str) -> Parameter:
    return Parameter(
        name, text, {"type": "boolean", "default": False}, {"true": True, "false": False}.__getitem__, default=False
    )


def _parse_timeout(value: str) -> float:
    seconds = float(value) if len(value) <= _MAX_DIGITS else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise ValueError(value)
    return seconds


def _parse_share(value: str) -> float:
    share = float(value) if len(value) <= _MAX_DIGITS else -1.0
    if not 0 <= share <= 1:
        raise ValueError(value)
    return share


def _parse_text(value: str) -> str:
    if len(value) > _MAX_TEXT:
        raise ValueError(value)
    return value


def _parse_pattern(value: str) -> str:
    if len(value) > MAX_PATTERN_CHARACTERS:
        raise ValueError(value)
    return value


def _parse_character(value: str) -> str:
    if len(value) != 1:
        raise ValueError(value)
    return value


PIXEL_FORMATS = {"gray8": pb.PIXEL_FORMAT_GRAY8, "rgb8": pb.PIXEL_FORMAT_RGB8, "rgba8": pb.PIXEL_FORMAT_RGBA8}

MODEL_VERSION = Parameter(
    "model_version", "Model version that must be served; otherwise the answer is 404.", {"type": "string", "maxLength": _MAX_TEXT},
    _parse_text, "",
)  # fmt: skip

_RAW = (
    _integer("width", "Width of raw images in pixels. With width and height the body is raw pixels, otherwise a file.",
             1, _MAX_NUMBER, None),
    _integer("height", "Height of raw images in pixels.", 1, _MAX_NUMBER, None),
    _choice("pixel_format", "Format of raw pixels: one byte per pixel, three (RGB) or four (RGB and straight alpha).",
            PIXEL_FORMATS, "gray8"),
)  # fmt: skip

_TIMEOUT = Parameter(
    "timeout_s", "Time for the answer in seconds, after the image was received and decoded.",
    {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S, "default": MAX_TIMEOUT_S},
    _parse_timeout, MAX_TIMEOUT_S,
)  # fmt: skip


def _max_side(default: int) -> Parameter:
    text = "Pictures with a longer side are reduced by block means until no side is longer; 0: never."
    return _integer("max_side", text, 0, _MAX_NUMBER, default)


PARAMETERS = (
    *_RAW,
    _choice("ink", "Whether the strokes are lighter or darker than the background; with framing=as_is the default is light_on_dark.",
            [ink.value for ink in Ink], Ink.AUTO.value),
    _choice("framing", "How an image becomes the input of the network: unchanged, as in MNIST, or decided by the service.",
            [framing.value for framing in Framing], Framing.AUTO.value),
    _integer("top_k", "Number of labels to list per image, most probable first.", 0, MAX_TOP_K, 0),
    _boolean("explain", "Whether to describe how each image was prepared, with the pixels that the network saw."),
    _max_side(MAX_SIDE),
    _TIMEOUT,
    MODEL_VERSION,
)  # fmt: skip
"""Those of ``POST /v1/classify``."""

READ_PARAMETERS = (
    *_RAW,
    _choice("layout", "Any number of lines; one line; or rows of boxes or ruled cells with at most one digit each.",
            [layout.name.lower() for layout in Layout if layout], Layout.PAGE.name.lower()),
    _integer("num_digits", "Digits that each line has, with layout=cells cells; 0: any number.", 0, MAX_DIGITS, 0),
    Parameter("pattern", "What each line must look like, such as \\d{5}; without it, anything.",
              {"type": "string", "maxLength": MAX_PATTERN_CHARACTERS}, _parse_pattern, ""),
    Parameter("min_confidence", "Digits with a lower confidence are not read.",
              {"type": "number", "minimum": 0, "maximum": 1, "default": 0}, _parse_share, 0.0),
    Parameter("placeholder", "Stands in the text for what was not read.",
              {"type": "string", "minLength": 1, "maxLength": 1, "default": DEFAULT_PLACEHOLDER}, _parse_character, DEFAULT_PLACEHOLDER),
    _choice("ink", "Whether the strokes are lighter or darker than the background.", [ink.value for ink in Ink], Ink.AUTO.value),
    _integer("top_k", "Number of labels to list per digit, most probable first.", 0, MAX_TOP_K, 0),
    _max_side(READ_SIDE),
    _TIMEOUT,
    MODEL_VERSION,
)  # fmt: skip
"""Those of ``POST /v1/read``."""


_READ_FIELDS = ("num_digits", "pattern", "min_confidence", "placeholder", "top_k", "model_version")
"""Parameters whose values are fields of ReadRequest."""


class Options(NamedTuple):
    """What the query of a request says.

    Attributes:
        fields: of the request, without its image.
        raw_size: height and width of raw images; None for a file.
        pixel_format: of raw images.
        max_side: longest side of pictures in pixels before they are sent; 0 for no limit.
        timeout_s: time for the answer.
    """

    fields: pb.ClassifyRequest | pb.ReadRequest
    raw_size: tuple[int, int] | None
    pixel_format: str
    max_side: int
    timeout_s: float


def parse(query: Iterable[tuple[str, str]], parameters: Iterable[Parameter] = PARAMETERS) -> dict[str, Any]:
    """Return the values of parameters by name, with defaults.

    Args:
        query: names and values from the client.
        parameters: that are known.

    Raises:
        Failure: one is unknown, is given twice, or has an invalid value.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values = {name: parameter.default for name, parameter in known.items()}
    given = set()
    for name, text in query:
        parameter = known.get(name)
        if parameter is None:
            raise Failure.invalid(f"query: got the unknown parameter {_quote(name)}; expected {', '.join(known)}")
        if name in given:
            raise Failure.invalid(f"query: got {name} more than once; expected it once")
        given.add(name)
        try:
            values[name] = parameter.parse(text)
        except (ValueError, KeyError):
            raise Failure.invalid(f"query: {name}: got {_quote(text)}; expected {parameter.expected}") from None
    return values


def parse_options(query: Iterable[tuple[str, str]]) -> Options:
    """Return what the query of ``POST /v1/classify`` says.

    Raises:
        Failure: see ``parse``; or parameters contradict each other.
    """
    values = parse(query)
    framing = values["framing"]
    fields = pb.ClassifyRequest(
        ink=f"INK_{(values['ink'] or 'unspecified').upper()}",
        framing=f"FRAMING_{'UNSPECIFIED' if framing in {'', Framing.AUTO.value} else framing.upper()}",
        top_k=values["top_k"],
        explain=values["explain"],
        model_version=values["model_version"],
    )
    return _options(fields, values)


def parse_read_options(query: Iterable[tuple[str, str]]) -> Options:
    """Return what the query of ``POST /v1/read`` says.

    Raises:
        Failure: see ``parse``; or parameters contradict each other.
    """
    values = parse(query, READ_PARAMETERS)
    fields = pb.ReadRequest(
        ink=f"INK_{(values['ink'] or 'unspecified').upper()}",
        layout=f"LAYOUT_{(values['layout'] or 'unspecified').upper()}",
        **{name: values[name] for name in _READ_FIELDS},
    )
    return _options(fields, values)


def _options(fields: pb.ClassifyRequest | pb.ReadRequest, values: dict[str, Any]) -> Options:
    width, height, pixel_format = values["width"], values["height"], values["pixel_format"]
    if (width is None) != (height is None):
        raise Failure.invalid("query: got only one of width and height; expected both for raw pixels, none for a file")
    if pixel_format and width is None:
        raise Failure.invalid("query: got pixel_format without width and height; expected them for raw pixels")
    raw_size = None if width is None else (height, width)
    return Options(fields, raw_size, pixel_format or "gray8", values["max_side"], values["timeout_s"])


def _quote(text: str) -> str:
    """Quote a text of the client, shortened and without control characters."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:_MAX_TEXT])
    return f"'{shown}{'...' if len(text) > _MAX_TEXT else ''}'"
