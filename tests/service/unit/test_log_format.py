"""Formats of log lines: whatever an event contains, it is one line whose fields are its own."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.log_format import MAX_LINE_BYTES, json_line, text_line

TEXTS = st.text(st.characters(), max_size=200)
"""Any characters: also line breaks of all kinds, control characters and lone surrogates."""

VALUES = st.one_of(TEXTS, st.integers(-(1 << 70), 1 << 70), st.floats(), st.booleans())

FIXED = {"time": "2026-01-02T03:04:05.678901Z", "level": "warning", "logger": "digitserve.requests"}


@given(message=TEXTS, values=st.lists(VALUES, max_size=5))
def test_an_event_is_one_json_object(message: str, values: list[object]) -> None:
    """A line of JSON has only printable ASCII, and parses to the values of the event; NaN and infinity become text."""
    fields = {f"field_{number}": value for number, value in enumerate(values)}
    line = json_line({**FIXED, "message": message, **fields})
    assert re.fullmatch(r"[ -~]*", line)
    parsed = json.loads(line, parse_constant=pytest.fail)
    expected = {name: value if value == value and abs_finite(value) else str(value) for name, value in fields.items()}  # noqa: PLR0124 - NaN
    assert parsed == {**FIXED, "message": message, **expected}


def abs_finite(value: object) -> bool:
    return not isinstance(value, float) or abs(value) != float("inf")


TEXT_LINE = re.compile(
    r"""(\S+) (\w+) ([\w.]+) (?P<message>"(?:[^"\\]|\\.)*"|[^"=]*?)(?P<fields>( \w+=("(?:[^"\\]|\\.)*"|[^ "=]+))*)"""
)
FIELD = re.compile(r""" (\w+)=("(?:[^"\\]|\\.)*"|[^ "=]+)""")


def unquoted(text: str) -> str:
    return json.loads(text) if text.startswith('"') else text


@given(message=TEXTS, values=st.lists(TEXTS, max_size=5))
def test_values_forge_no_field_in_text(message: str, values: list[str]) -> None:
    """A line of text has only printable ASCII, and the message and the fields of the event can be read from it."""
    fields = {f"field_{number}": value for number, value in enumerate(values)}
    line = text_line({**FIXED, "message": message, **fields})
    match = TEXT_LINE.fullmatch(line)
    assert match
    assert re.fullmatch(r"[ -~]*", line)
    assert match.groups()[:3] == tuple(FIXED.values())
    assert unquoted(match["message"]) == message
    assert {name: unquoted(value) for name, value in FIELD.findall(match["fields"])} == fields


@given(exception=TEXTS)
def test_a_traceback_cannot_look_like_an_event(exception: str) -> None:
    """In text, each line of a traceback is indented and has only printable ASCII."""
    first, *more = text_line({**FIXED, "message": "failed", "exception": exception}).split("\n")
    assert first.endswith(" failed")
    assert all(re.fullmatch(r"    [ -~]*", line) for line in more)


@given(values=st.lists(st.text(st.characters(), max_size=300), min_size=1, max_size=4))
@pytest.mark.parametrize("line_of", [json_line, text_line])
def test_lines_have_a_maximum_size(line_of, values: list[str]) -> None:  # noqa: ANN001
    """However long its values are, a line with its line break fits into the limit, and keeps its first fields."""
    fields = {f"field_{number}": value * 50 for number, value in enumerate(values)}
    line = line_of({**FIXED, "message": "long", **fields})
    assert len(line) < MAX_LINE_BYTES
    assert all(value in line for value in FIXED.values())


@pytest.mark.parametrize("value", [b"pixels", bytearray(b"pixels"), memoryview(b"pixels")])
def test_bytes_are_never_written(value: object) -> None:
    """Bytes may be pixels of a caller: a line states only how many there are."""
    assert json.loads(json_line({**FIXED, "message": "image", "value": value}))["value"] == "6 bytes"


def test_fields_without_a_value_are_left_out() -> None:
    """``None`` means that a field does not apply."""
    assert "peer" not in json_line({**FIXED, "message": "call failed", "peer": None})
