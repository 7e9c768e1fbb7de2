"""Query parameters of the HTTP API."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.v1 import digits_pb2 as pb
from digitserve.web.answers import Failure
from digitserve.web.parameters import PARAMETERS, READ_PARAMETERS, parse_options, parse_read_options

NAMES = [parameter.name for parameter in PARAMETERS]
READ_NAMES = [parameter.name for parameter in READ_PARAMETERS]
VALUES = (
    st.text(max_size=300)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["true", "auto", "mnist", "gray8", "28", "cells", "0.5", "_"])
)
QUERIES = st.lists(st.tuples(st.sampled_from(NAMES + READ_NAMES) | st.text(max_size=20), VALUES), max_size=5)


@given(QUERIES, st.sampled_from([(parse_options, pb.ClassifyRequest), (parse_read_options, pb.ReadRequest)]))
def test_any_query_gives_options_or_an_error_of_the_client(query: list[tuple[str, str]], route: Any) -> None:
    """Every query is accepted, or refused with 400 and a text of one line that says what was expected."""
    parse, message = route
    try:
        options = parse(query)
    except Failure as failure:
        assert failure.http_status == 400
        assert str(failure).startswith("query: ") and "expected" in str(failure)
        assert str(failure).isprintable() and len(str(failure)) < 600
    else:
        assert 0 < options.timeout_s <= 5
        assert message.FromString(options.fields.SerializeToString()) == options.fields


def test_defaults_are_those_of_grpc() -> None:
    """A request without a query has no field but its image."""
    options = parse_options([])
    assert options.fields == pb.ClassifyRequest()
    assert options[1:] == (None, "gray8", 2048, 5.0)


def test_all_parameters() -> None:
    """Each parameter sets its field."""
    query = {
        "width": "20", "height": "30", "pixel_format": "rgb8", "ink": "dark_on_light", "framing": "mnist", "top_k": "3",
        "explain": "true", "max_side": "0", "timeout_s": "0.5", "model_version": "4",
    }  # fmt: skip
    options = parse_options(query.items())
    assert options.fields == pb.ClassifyRequest(
        ink=pb.INK_DARK_ON_LIGHT, framing=pb.FRAMING_MNIST, top_k=3, explain=True, model_version="4"
    )
    assert options[1:] == ((30, 20), "rgb8", 0, 0.5)
    assert set(query) == set(NAMES)


def test_defaults_of_read_are_those_of_grpc() -> None:
    """A request to read without a query states only the placeholder, which is the default; pages keep up to 4,096 pixels a side."""
    options = parse_read_options([])
    assert options.fields == pb.ReadRequest(placeholder="?")
    assert options[1:] == (None, "gray8", 4096, 5.0)


def test_all_parameters_of_read() -> None:
    """Each parameter sets its field."""
    query = {
        "width": "20", "height": "30", "pixel_format": "rgb8", "layout": "cells", "num_digits": "5", "pattern": r"\d{5}",
        "min_confidence": "0.5", "placeholder": "_", "ink": "dark_on_light", "top_k": "3", "max_side": "0", "timeout_s": "0.5",
        "model_version": "4",
    }  # fmt: skip
    options = parse_read_options(query.items())
    assert options.fields == pb.ReadRequest(
        layout=pb.LAYOUT_CELLS, num_digits=5, pattern=r"\d{5}", min_confidence=0.5, placeholder="_", ink=pb.INK_DARK_ON_LIGHT,
        top_k=3, model_version="4",
    )  # fmt: skip
    assert options[1:] == ((30, 20), "rgb8", 0, 0.5)
    assert set(query) == set(READ_NAMES)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([("explain", "true")], "query: got the unknown parameter 'explain'; expected width, height, "),
        ([("layout", "book")], "query: layout: got 'book'; expected page, line, cells"),
        ([("min_confidence", "nan")], "query: min_confidence: got 'nan'; expected a number from 0 to 1"),
        ([("placeholder", "??")], "query: placeholder: got '??'; expected one character"),
        ([("pattern", "1" * 257)], "query: pattern: got '" + "1" * 200 + "...'; expected at most 256 characters"),
        ([("height", "28")], "query: got only one of width and height; expected both for raw pixels, none for a file"),
    ],
)
def test_errors_of_read_say_what_is_expected(query: list[tuple[str, str]], message: str) -> None:
    """The text names the parameter, what it got, and what is accepted."""
    with pytest.raises(Failure) as caught:
        parse_read_options(query)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([("size", "3")], "query: got the unknown parameter 'size'; expected width, height, "),
        ([("top_k", "1"), ("top_k", "1")], "query: got top_k more than once; expected it once"),
        ([("top_k", "-1")], "query: top_k: got '-1'; expected an integer from 0 to 1000"),
        ([("explain", "yes")], "query: explain: got 'yes'; expected true or false"),
        ([("ink", "red")], "query: ink: got 'red'; expected light_on_dark, dark_on_light, auto"),
        ([("timeout_s", "nan")], "query: timeout_s: got 'nan'; expected a number above 0, at most 5"),
        ([("width", "28")], "query: got only one of width and height; expected both for raw pixels, none for a file"),
        ([("pixel_format", "rgb8")], "query: got pixel_format without width and height"),
        ([("top_k", "9" * 5000)], "query: top_k: got '" + "9" * 200 + "...'; expected"),
    ],
)  # fmt: skip
def test_errors_say_what_is_expected(query: list[tuple[str, str]], message: str) -> None:
    """The text names the parameter, what it got, and what is accepted."""
    with pytest.raises(Failure) as caught:
        parse_options(query)
    assert str(caught.value).startswith(message)
