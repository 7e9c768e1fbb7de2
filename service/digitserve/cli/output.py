"""Lines for standard output and standard error."""

import os
import sys

import click

from digitserve.cli.exit_codes import ExitCode


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
    """Print an error as one line on standard error."""
    click.echo(f"digitserve: {message}", err=True)


def _discard_output() -> None:
    # What is buffered is flushed again when the interpreter exits, and would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
