"""Tokens: what a file may contain, and which values of ``authorization`` are admitted."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.access import (
    MAX_TOKENS,
    MIN_TOKEN_CHARACTERS,
    NOTHING_VALID,
    LastValid,
    Tokens,
    read_tokens,
)  # fmt: skip
from digitserve.certificate import KeyFiles
from digitserve.errors import SettingsError
from digitserve.file_watch import MAX_FILE_BYTES
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


@settings(max_examples=30)
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


class Unlisted(frozenset[bytes]):
    """Hashes that can be looked up, but not compared one by one."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError


def test_the_time_does_not_depend_on_the_number_of_tokens(path: Path) -> None:
    """No token is compared with all valid ones, so calls with unknown tokens cost the same however many are valid."""
    path.write_text(TOKEN)
    tokens = Tokens(path)
    tokens.value = Unlisted(tokens.value)
    assert tokens.admits(f"Bearer {TOKEN}".encode()) and not tokens.admits(b"Bearer unknown")


def test_any_bytes_are_judged(path: Path) -> None:
    """No value of the header field fails with an exception."""
    path.write_text(TOKEN)
    tokens = Tokens(path)

    @given(st.binary(max_size=100))
    def check(sent: bytes) -> None:
        assert not tokens.admits(sent)

    check()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "got no token, expected one per line"),
        (b"# only\n\n   \n", "got no token, expected one per line"),
        (b"x" * (MIN_TOKEN_CHARACTERS - 1), "line 1: expected a token of at least 16 visible ASCII characters"),
        (f"{TOKEN}\n# more\n{TOKEN} {TOKEN}\n".encode(), "line 3: expected a token"),
        (f"{TOKEN}ü".encode(), "line 1: expected a token"),
        (TOKEN.encode() + b"\0", "line 1: expected a token"),
        (b"#" * (MAX_FILE_BYTES + 1), f"cannot be read: More than {MAX_FILE_BYTES} bytes"),
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


@settings(max_examples=30)
@given(
    st.none() | st.builds(KeyFiles, st.binary(), st.binary(), st.none() | st.binary()),
    st.none() | st.lists(st.binary(min_size=32, max_size=32), min_size=1).map(frozenset),
)
def test_workers_get_the_last_valid_content(key_files: KeyFiles | None, digests: frozenset[bytes] | None) -> None:
    """Certificate and tokens are the same after their way through JSON; nothing in it means that there are none."""
    sent = LastValid(key_files, digests)
    assert LastValid.from_dict(json.loads(json.dumps(sent.to_dict()))) == sent
    assert LastValid.from_dict({}) == NOTHING_VALID


def test_a_worker_starts_with_the_last_valid_tokens(path: Path) -> None:
    """While the file is not valid, tokens that were valid before can be used; as soon as it is valid, those of the file are."""
    path.write_text(TOKEN)
    digests = read_tokens(path)
    path.write_text("")
    tokens = Tokens(path, digests)
    assert tokens.admits(f"Bearer {TOKEN}".encode())
    path.write_text(TOKEN[::-1])
    tokens.check()
    assert tokens.admits(f"Bearer {TOKEN[::-1]}".encode()) and not tokens.admits(f"Bearer {TOKEN}".encode())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The error has the reason; a pipe without a writer does not block."""
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "Is a directory"), (tmp_path / "missing", "No such file"), (tmp_path / "pipe", "got no token"),
        (Path("/dev/zero"), "More than"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=reason):
            read_tokens(path)
