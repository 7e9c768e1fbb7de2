"""Lines for standard output and standard error."""

import os
import re
import sys

import click

from digitserve.cli.exit_codes import ExitCode

_STDERR = 2

_ARGUMENTS = re.compile("(?<=longer )timeout_s|(?<=see )max_side")
"""Arguments of the client library in its advice: "set a longer timeout_s", "see max_side"."""


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


def print_error(message: str) -> None:
    """Print an error as one line on standard error; names of arguments in the client library's advice become flags."""
    message = _ARGUMENTS.sub(lambda found: "--" + found[0].replace("_", "-"), message)
    click.echo(f"digitserve: {message}", err=True)


def _discard_output() -> None:
    # What is buffered is flushed again when the interpreter exits, and would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
