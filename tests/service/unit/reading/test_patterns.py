"""Patterns of lines: they accept what Python's ``re`` accepts, and wrong ones are explained."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.errors import InvalidRequest
from digitserve.reading.patterns import MAX_LENGTH, MAX_STATES, LineAutomaton

_ATOMS = st.sampled_from(["0", "1", "7", r"\d", "[0-3]", "[07-9]", r"\.", ",", "/", "-", " "])
_SUFFIXES = st.sampled_from(["", "", "", "?", "{2}", "{0,2}", "{1,3}"])


def _extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.tuples(inner, _SUFFIXES).map(lambda pair: f"({pair[0]}){pair[1]}")
    return st.lists(inner, min_size=1, max_size=3).map("".join) | group | st.tuples(inner, inner).map("|".join)


_PATTERNS = st.recursive(st.tuples(_ATOMS, _SUFFIXES).map("".join), _extend, max_leaves=8)


def _accepts(pattern: str, text: str, num_digits: int = 0) -> bool:
    automaton = LineAutomaton(pattern, num_digits)
    state = automaton.run(text)
    return state is not None and automaton.accepts(state)


@settings(max_examples=100)
@given(_PATTERNS, st.data())
def test_pattern_accepts_what_re_accepts(pattern: str, data: st.DataObject) -> None:
    """A pattern accepts a text exactly when Python's ``re`` matches all of it, for matching and for other texts."""
    ascii_pattern = re.compile(pattern, re.ASCII)
    for text in (data.draw(st.from_regex(ascii_pattern, fullmatch=True)), data.draw(st.text("0178./ ", max_size=5))):
        assert _accepts(pattern, text) == (ascii_pattern.fullmatch(text) is not None), text


@given(st.text("0123456789.,/-d\\[]{}?|() x", max_size=12))
def test_any_pattern_compiles_or_is_invalid(pattern: str) -> None:
    """Whatever a caller sends compiles, or is answered with an error about the pattern."""
    try:
        LineAutomaton(pattern, 0)
    except InvalidRequest as error:
        assert str(error).startswith("pattern")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("12a", "position 2: got 'a'"),
        ("(1", "position 2: got a group without its '\\)'"),
        ("1)", "position 1: got '\\)' without"),
        (r"1\x", "position 1: got '.*x'"),
        ("[]", "position 1: got \\[\\] without a digit"),
        ("[3-1]", "got the range 3-1"),
        ("[a]", "got 'a' in"),
        ("1{3,2}", "a repetition that is neither"),
        ("1{}", "as a number of repetitions"),
        ("1{999}", "as a number of repetitions, from 0 to 256"),
        ("*", "position 0: got '\\*'"),
        ("(" * 20 + "1" + ")" * 20, "more than 16 groups"),
        ("1" * (MAX_LENGTH + 1), "got 257 characters, expected at most 256"),
        ("(1{200}){200}", f"more than {MAX_STATES} characters"),
        ("((((){256}){256}){256}){256}", f"more than {MAX_STATES} characters"),
    ],
)
def test_wrong_pattern_is_explained(pattern: str, message: str) -> None:
    """The error states the position, what stands there and what is expected."""
    with pytest.raises(InvalidRequest, match=message):
        LineAutomaton(pattern, 0)


def test_number_of_digits_counts_digits_only() -> None:
    """Separators do not count, and both a pattern and a number of digits must fit."""
    assert _accepts("", "12/345", 5)
    assert not _accepts("", "12/34", 5)
    assert not _accepts("", "123456", 5)
    assert _accepts(r"\d{1,3}/\d{1,3}", "1/23", 3)
    assert not _accepts(r"\d{1,3}/\d{1,3}", "1/2", 3)
