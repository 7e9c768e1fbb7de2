"""Text on a terminal: what it can show, widths of texts, colours, and blocks of lines side by side.

    cli.picture, cli.drawing, top.screen ──▶ Block ──▶ flow ──▶ lines

Needs no package, because the commands of the light client use it too. Any thread may call it.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

GAP = "  "
"""Between blocks that are side by side."""

RESET = "\x1b[0m"
BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "1;31", "32", "33", "36"
"""Parameters of SGR, the escape sequence that sets the colour of text."""


@dataclass(frozen=True)
class Terminal:
    """What a terminal can show.

    Attributes:
        width: in columns.
        unicode: whether it shows block elements; otherwise only ASCII is written.
        true_colour: whether it has colours of 24 bits; otherwise the 256 of xterm are used.
        colours: whether to write any escape sequences.
    """

    width: int
    unicode: bool = True
    true_colour: bool = True
    colours: bool = True

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str]) -> "Terminal":
        """Return what a stream can show.

        It has no colours if it is not a terminal, if ``NO_COLOR`` is set, and if ``TERM`` is ``dumb`` or missing.
        """
        return cls(
            size(stream, environment).columns,
            unicode=_is_utf8(stream, environment),
            true_colour=environment.get("COLORTERM") in {"truecolor", "24bit"},
            colours=can_move_cursor(stream, environment) and not environment.get("NO_COLOR"),
        )


def size(stream: TextIO, environment: Mapping[str, str]) -> os.terminal_size:
    """Return the size of the terminal behind a stream; 80 columns and 24 lines if it is none or does not know its size."""
    columns = lines = 0
    with suppress(OSError, ValueError):
        columns, lines = os.get_terminal_size(stream.fileno())
    if (chosen := environment.get("COLUMNS", "")).isdecimal():
        columns = int(chosen)
    return os.terminal_size((columns or 80, lines or 24))


def can_move_cursor(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether a stream is a terminal that understands escape sequences."""
    return stream.isatty() and environment.get("TERM", "dumb") != "dumb"


def _is_utf8(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether the locale and the stream use UTF-8; without a locale, Python uses UTF-8."""
    names = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next(filter(None, names), "UTF-8")
    return "utf" in locale.lower() and stream.encoding.lower().replace("-", "") == "utf8"


@dataclass(frozen=True)
class Block:
    """Lines of text of one width, without the spaces that would fill them.

    Attributes:
        width: in columns, at least that of each line.
        lines: each with its own width in columns, without colours, and its text.
    """

    width: int
    lines: Sequence[tuple[int, str]]


def join(parts: Iterable[tuple[str, str]], terminal: Terminal, width: int) -> tuple[int, str]:
    """Join texts with their colours to a line of a block, cut at a width.

    Args:
        parts: printable texts, each with its parameters of SGR; empty for the colour of the terminal.
        terminal: whose ``colours`` says whether to use them.
        width: in columns.
    """
    used, line = 0, ""
    for text, colour in parts:
        shown = _fitting(text, width - used)
        used += num_columns(shown)
        line += f"\x1b[{colour}m{shown}{RESET}" if colour and shown and terminal.colours else shown
    return used, line


def text_block(text: str, terminal: Terminal, width: int, colour: str = "") -> Block:
    """Return a line of text as a block, shortened to its width."""
    return Block(width, [join([(shorten(printable(text), width), colour)], terminal, width)])


def stack(*blocks: Block) -> Block:
    """Return blocks one below the other."""
    return Block(max(block.width for block in blocks), [line for block in blocks for line in block.lines])


def flow(blocks: Sequence[Block], width: int) -> Iterator[str]:
    """Yield the lines of blocks side by side, in as many rows as the width needs."""
    row: list[Block] = []
    for block in blocks:
        if row and sum(one.width + len(GAP) for one in row) + block.width > width:
            yield from _side_by_side(row)
            row = []
        row.append(block)
    yield from _side_by_side(row)


def _side_by_side(row: Sequence[Block]) -> Iterator[str]:
    for index in range(max((len(block.lines) for block in row), default=0)):
        text = ""
        for block in row:
            width, line = block.lines[index] if index < len(block.lines) else (0, "")
            text += line + " " * (block.width - width) + GAP
        yield text.rstrip()


def shorten(text: str, width: int) -> str:
    """Return a text with at most ``width`` columns: its middle is replaced by ``..``."""
    if num_columns(text) <= width:
        return text
    if width <= len(".."):
        return ".."[:width]
    head = _fitting(text, (width - len("..")) // 2)
    tail = _fitting(text[::-1], width - len("..") - num_columns(head))[::-1]
    return f"{head}..{tail}"


def _fitting(text: str, width: int) -> str:
    """Return the longest beginning of a text with at most ``width`` columns."""
    used = 0
    for index, character in enumerate(text):
        used += num_columns(character)
        if used > width:
            return text[:index]
    return text


def num_columns(text: str) -> int:
    """Return the width of a printable text on a terminal, in columns."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def printable(text: str) -> str:
    """Return a text without characters that a terminal would interpret or that cannot be encoded."""
    return "".join(character if character.isprintable() else "?" for character in text)
