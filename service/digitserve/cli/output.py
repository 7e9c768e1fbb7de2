"""Lines for standard output and standard error, and parts of JSON objects."""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.errors import DigitserveError, NoModelError

if TYPE_CHECKING:
    from digitserve.client import Box, ClassScore

_STDERR = 2

CREDENTIALS = {
    "ca": "ca", "certificate": "client-certificate", "key": "client-key", "token_file": "token-file",
    "clear_text_token": "clear-text-token",
}  # fmt: skip
"""By argument of the client library: the flag of the commands. Commands have no ``token``: others could read it in ``ps``."""

_ADVICE = {
    "longer timeout_s": "longer --timeout-s",
    "see max_side": "see --max-side",
    "pass ca": "pass --ca",
    "pass certificate and key": "pass --client-certificate and --client-key",
    "pass token_file or token": "pass --token-file",
    "pass clear_text_token": "pass --clear-text-token",
}
"""Arguments in the advice of the client library, and the flags of the commands for them."""


HOW_TO_GET_A_MODEL = """\
The package contains no model. To get one:
  - use the folder 'models' of digitserve's source code, or '/models' of its container image:
      digitserve serve --models FOLDER        (or DIGITSERVE_MODELS=FOLDER)
  - or train one, on MNIST, in the folder 'models' here:
      pip install 'digitserve[training]'
      digitserve-train train --run-dir runs/first
      digitserve-train export runs/first
'digitserve models list --models FOLDER' shows what a folder contains."""
"""Printed after a ``NoModelError``."""


def open_standard_streams() -> None:
    """Open ``/dev/null`` in place of standard streams that are closed.

    Otherwise the next file or socket would get the number of a standard stream, and child processes would write to it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[fd]
        os.set_inheritable(fd, True)  # noqa: FBT003 - positional only
        setattr(sys, name, os.fdopen(fd, mode, closefd=False))
    os.close(fd)


def print_line(text: str) -> None:
    """Print a line on standard output.

    Raises:
        click.exceptions.Exit: the reader of standard output has ended, or it cannot be written.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        _discard_output()
        raise click.exceptions.Exit(ExitCode.BROKEN_PIPE) from None
    except OSError as error:
        _discard_output()
        print_error(f"cannot write standard output: {error.strerror}")
        raise click.exceptions.Exit(ExitCode.NEGATIVE) from None


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, as ``print_line`` prints one."""
    for line in lines:
        print_line(line)


def print_error(message: str) -> None:
    """Print an error as one line on standard error; names of arguments in the client library's advice become flags."""
    click.echo(f"digitserve: {with_flags(message)}", err=True)


def report(error: DigitserveError, prefix: str = "") -> None:
    """Print an error as ``print_error`` does; if there is no model, also how to get one."""
    print_error(f"{prefix}{error}")
    if isinstance(error, NoModelError):
        click.echo(HOW_TO_GET_A_MODEL, err=True)


def with_flags(message: str) -> str:
    """Return a message of the client library with flags in place of the arguments in its advice."""
    for pattern, flags in _ADVICE.items():
        message = message.replace(pattern, flags)
    return message


def top_to_json(scores: "Iterable[ClassScore]") -> list[dict[str, Any]]:
    """Return the fields of messages ``ClassScore``."""
    return [
        {"label": score.label, "class_index": score.class_index, "confidence": shortest(score.confidence)}
        for score in scores
    ]


def box_to_json(box: "Box | None") -> dict[str, int] | None:
    """Return the fields of the message ``Box``; None if there is no box."""
    return None if box is None else box._asdict()


def shortest(number: float) -> float:
    """Return the number with the fewest digits that is the same as float32, the type in the protocol."""
    import numpy as np

    return float(str(np.float32(number)))


def _discard_output() -> None:
    # What is buffered is flushed again when the interpreter exits, and would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
