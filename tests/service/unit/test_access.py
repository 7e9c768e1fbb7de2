"""Tokens: what a file may contain, and which values of ``authorization`` are admitted."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.access import MAX_FILE_BYTES, MAX_TOKENS, MIN_TOKEN_CHARACTERS, Tokens, read_tokens
from digitserve.errors import SettingsError
from digitserve.settings import Settings

TOKEN = "secret-of-16-characters"  # noqa: S105 - of the test

TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=MIN_TOKEN_CHARACTERS, max_size=60)
VALID = TEXT.filter(lambda token: not token.startswith("#"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_no_file_no_tokens() -> None:
    """Without the setting nobody needs a token."""
    assert Tokens.of(Settings()) is None


@given(tokens=st.lists(VALID, min_size=1, max_size=5), other=VALID)
def test_each_token_of_the_file_is_valid_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str], other: str
) -> None:
    """Every token is admitted, with comments, blank lines and spaces around it; prefixes, longer ones and others are not."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("# comment\n\n" + "".join(f"  {token}\t\r\n# more\n" for token in tokens))
    read = Tokens(path)
    for token in tokens:
        assert read.admits(f"Bearer {token}".encode()) and read.admits(f"bEARER   {token}".encode())
        for wrong in (token[:-1], token + "x", token.swapcase() + "y", ""):
            assert read.admits(f"Bearer {wrong}".encode()) == (wrong in tokens)
        for value in (token, f"Basic {token}", f"Bearer{token}", f"Bearer {token} ", f"Bearer {token} {token}", ""):
            assert not read.admits(value.encode())
    assert read.admits(f"Bearer {other}".encode()) == (other in tokens)


@given(st.binary(max_size=100))
def test_any_bytes_are_judged(tmp_path_factory: pytest.TempPathFactory, sent: bytes) -> None:
    """No value of the header field fails with an exception."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(TOKEN)
    assert not Tokens(path).admits(sent)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "got no token, expected one per line"),
        (b"# only\n\n   \n", "got no token, expected one per line"),
        (b"x" * (MIN_TOKEN_CHARACTERS - 1), "line 1: expected a token of at least 16 visible ASCII characters"),
        (f"{TOKEN}\n# more\n{TOKEN} {TOKEN}\n".encode(), "line 3: expected a token"),
        (f"{TOKEN}ü".encode(), "line 1: expected a token"),
        (TOKEN.encode() + b"\0", "line 1: expected a token"),
        (b"#" * (MAX_FILE_BYTES + 1), f"expected at most {MAX_FILE_BYTES} bytes"),
        (b"".join(b"%016d\n" % number for number in range(MAX_TOKENS + 1)), f"expected at most {MAX_TOKENS}"),
    ],
    ids=["empty", "comments", "short", "two in a line", "not ASCII", "control character", "too long", "too many"],
)
def test_invalid_files(path: Path, content: bytes, expected: str) -> None:
    """The error has flag, path, and what is expected, but no token."""
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=re.escape(f"--token-file {path}")) as raised:
        read_tokens(path)
    assert expected in str(raised.value)
    assert TOKEN not in str(raised.value) and "x" * 8 not in str(raised.value).replace(str(path), "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The error has the reason."""
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "missing", "No such file")):
        with pytest.raises(SettingsError, match=reason):
            read_tokens(path)
