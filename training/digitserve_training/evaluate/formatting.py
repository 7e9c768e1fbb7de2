"""Numbers as text for the report, its charts, the table of results and the terminal."""

import unicodedata
from collections.abc import Sequence


def percent(share: float, decimals: int = 2) -> str:
    """Format a share as a percentage: 0.9965 becomes "99.65 %"."""
    return f"{share * 100:.{decimals}f} %"


def group_thousands(number: int, separator: str = ",") -> str:
    """Format an integer with a separator between groups of three digits: 10000 becomes "10,000"."""
    return f"{number:,}".replace(",", separator)


def align_right(text: str, width: int) -> str:
    """Pad a text on the left to a width in terminal columns."""
    return " " * (width - num_columns(text)) + text


def num_columns(text: str) -> int:
    """Return the width of a text in terminal columns: wide East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def align_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns: the first one to the left, the others to the right; an empty row becomes an empty line."""
    widths = [max(map(num_columns, column)) for column in zip(*filter(None, rows), strict=True)]
    return "\n".join(
        "  ".join(
            align_right(cell, width) if column else cell + " " * (width - num_columns(cell))
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )
