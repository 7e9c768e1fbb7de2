"""Markdown for generated pages: text that is shown as it is, and tables. Used by the modules of the references."""

import re
from collections.abc import Iterable, Sequence


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line; text between pairs of two backticks is code."""
    parts = re.split("``(.+?)``", " ".join(text.split()))
    parts[::2] = [re.sub(r"([\\`*_<|\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [code(part) for part in parts[1::2]]
    return "".join(parts)


def code(text: str) -> str:
    """Return text as code, for a cell of a table."""
    # GitHub ends a cell at a "|" also within backticks.
    return f"`{text}`" if "|" not in text else f"<code>{text.replace('|', '&#124;').replace('<', '&lt;')}</code>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" if cells[0] != "---" else f"|{'|'.join(cells)}|" for cells in lines)
