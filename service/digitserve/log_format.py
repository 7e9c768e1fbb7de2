"""Formats of log lines: the fields of one event to one line of text or JSON.

Called by ``log`` on any thread. Values may come from callers and from libraries, so they cannot start a new line, forge a
field, or control a terminal: a line contains only printable ASCII characters.
"""

import json
import math
import re
from collections.abc import Callable
from typing import TypeAlias

MAX_LINE_BYTES = 4_096
"""Maximum size of a line with its line break. The processes of a service share one pipe, and only writes of up to this size
(PIPE_BUF) are not mixed with those of others. The middle of longer values is left out."""

EXCEPTION, OUTPUT = "exception", "output"
"""Names of the fields with a traceback, and with the output of a process. In text, their lines follow the event, each with an
indent."""

Fields: TypeAlias = dict[str, object]
"""Fields of an event in their order: ``time``, ``level``, ``logger`` and ``message``, then those of the event."""

_OMISSION = " ... "
_MIN_CUT = 32
"""Minimum length of a value that is cut."""

_BARE_VALUE = re.compile(r"[!#-<>-~]+")
_BARE_MESSAGE = re.compile(r"[!#-<>-~]+( [!#-<>-~]+)*")
"""Text is written as it is if it has only visible ASCII characters except ``"`` and ``=``; a message may have spaces."""


def json_line(fields: Fields) -> str:
    """Return one line without its line break: a JSON object.

    Raises:
        ValueError: the fields do not fit into a line, or a value has no representation.
    """
    return _fit(_plain(fields), _dump)


def text_line(fields: Fields) -> str:
    """Return ``time level logger message name=value ...`` without a line break at its end.

    A value with other than visible ASCII characters is quoted as in JSON. A traceback or output follows on lines of its own,
    which start with four spaces.

    Raises:
        ValueError: the fields do not fit into a line, or a value has no representation.
    """
    return _fit(_plain(fields), _text)


def _plain(fields: Fields) -> Fields:
    return {name: _plain_value(value) for name, value in fields.items() if value is not None}


def _plain_value(value: object) -> object:
    """Return a value that both formats can represent. Bytes are replaced by their number: they may be pixels of a caller."""
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        return f"{memoryview(value).nbytes} bytes"  # type: ignore[arg-type] # raises for other than buffers
    except TypeError:
        return repr(value)


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _text(fields: Fields) -> str:
    fields = dict(fields)
    blocks = [str(fields.pop(name)) for name in (OUTPUT, EXCEPTION) if name in fields]
    parts = [str(fields.pop(name)) for name in ("time", "level", "logger")]
    parts.append(_quoted(fields.pop("message"), _BARE_MESSAGE))
    parts += [f"{name}={_quoted(value, _BARE_VALUE)}" for name, value in fields.items()]
    lines = [" ".join(parts)]
    for block in blocks:
        lines += ["    " + line.encode("unicode_escape").decode() for line in block.rstrip().split("\n")]
    return "\n".join(lines)


def _quoted(value: object, bare: re.Pattern[str]) -> str:
    return value if isinstance(value, str) and bare.fullmatch(value) else _dump(value)


def _fit(fields: Fields, dump: Callable[[Fields], str]) -> str:
    """Return a line of at most ``MAX_LINE_BYTES``; cut the longest text as often as necessary."""
    while len(line := dump(fields)) >= MAX_LINE_BYTES:
        longest = max(
            (name for name, value in fields.items() if isinstance(value, str)), key=lambda n: len(str(fields[n]))
        )
        value = str(fields[longest])
        if len(value) < _MIN_CUT:
            raise ValueError("the event has too many fields for one line")
        # An escaped character takes several bytes, so what has to be removed may be more than there is.
        length = len(value) - (len(line) - MAX_LINE_BYTES + 1) - len(_OMISSION)
        if length < _MIN_CUT // 2:
            length = len(value) // 2 - len(_OMISSION)
        fields[longest] = value[: length // 2] + _OMISSION + value[len(value) - (length - length // 2) :]
    return line
