import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from digitserve.transport.native.huffman import decode

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def bits(text: str) -> bytes:
    """Return bytes of a string of 0 and 1."""
    text = text.replace(" ", "")
    return int(text, 2).to_bytes(len(text) // 8, "big")


@given(st.binary(max_size=64))
def test_strings_round_trip(string: bytes) -> None:
    """A string encoded with the table of RFC 7541, appendix B is decoded to itself."""
    assert decode(ENCODER.encode(string)) == string


def test_each_symbol_has_the_code_of_the_rfc() -> None:
    """Each of the 256 symbols has the code of RFC 7541, appendix B, alone and after each other symbol."""
    for first in range(256):
        string = b"".join(bytes((first, second)) for second in range(256))
        assert decode(ENCODER.encode(string)) == string
        assert decode(ENCODER.encode(bytes((first,)))) == bytes((first,))


@given(st.binary(max_size=12))
def test_random_input_is_accepted_as_by_the_hpack_library(encoded: bytes) -> None:
    """Random bytes give the string or the error that the ``hpack`` library gives."""
    try:
        expected = decode_huffman(encoded)
    except Exception:
        with pytest.raises(ValueError, match="EOS or ends in invalid padding"):
            decode(encoded)
    else:
        assert decode(encoded) == expected


@pytest.mark.parametrize(
    "encoded",
    [
        bits("00011 111"),  # a code of five bits and three bits
        bits("1111000 1"),  # a code of seven bits and one bit
        bits("00011 00011 00011 1"),
        b"",
    ],
)
def test_padding_of_up_to_seven_ones_is_accepted(encoded: bytes) -> None:
    """Padding is shorter than a byte and all ones; RFC 7541, section 5.2."""
    decode(encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        bits("00011 111 11111111"),  # eleven bits of padding
        bits("11111111"),  # eight bits
        bits("00011 110"),  # not all ones
        bits("00011 000"),
    ],
)
def test_other_padding_is_an_error(encoded: bytes) -> None:
    """Padding longer than seven bits, or with a bit other than one, is an error; RFC 7541, section 5.2."""
    with pytest.raises(ValueError, match="padding"):
        decode(encoded)


@pytest.mark.parametrize("before", [b"", b"a", b"aaa", b"~~"])
def test_eos_in_a_string_is_an_error(before: bytes) -> None:
    """A string that contains EOS is an error, whatever precedes and follows it; RFC 7541, section 5.2."""
    codes = "".join(format(REQUEST_CODES[symbol], f"0{REQUEST_CODES_LENGTH[symbol]}b") for symbol in before)
    text = codes + "1" * 30 + "00011"
    text += "1" * (-len(text) % 8)
    with pytest.raises(ValueError, match="EOS"):
        decode(bits(text))
