"""``digitserve read``: image files to the numbers in them, through ``client.Client``."""

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import (
    Command,
    FiniteRange,
    Option,
    Target,
    image_source,
    ink_option,
    max_side_option,
    size_option,
    target_options,
    timeout_option,
    top_k_option,
)
from digitserve.cli.output import box_to_json, print_error, print_line, print_lines, shortest, top_to_json
from digitserve.terminal import Terminal, printable

if TYPE_CHECKING:
    from digitserve.client import Line, Mark, Reading
    from digitserve.vision.image_files import Pixels


def _placeholder(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if len(text) != 1:
        raise click.BadParameter(f"got '{text}'; expected one character")
    return text


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "--layout",
    cls=Option,
    section="Numbers",
    default="page",
    show_default=True,
    type=click.Choice(("page", "line", "cells")),
    help="Any number of lines; one line; or rows of boxes with at most one digit each.",
)
@click.option(
    "--digits",
    "num_digits",
    cls=Option,
    section="Numbers",
    type=click.IntRange(1),
    metavar="N",
    help="Digits of each line; with --layout cells, cells.  [default: any number]",
)
@click.option(
    "--pattern",
    cls=Option,
    section="Numbers",
    default="",
    metavar="PATTERN",
    help=r"What each line must look like, such as '\d{5}' or '[0-3]\d/[01]\d'.  [default: anything]",
)
@click.option(
    "--min-confidence",
    cls=Option,
    section="Numbers",
    default=0.0,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Do not read digits with a lower confidence.",
)
@click.option(
    "--placeholder",
    cls=Option,
    section="Numbers",
    default="?",
    show_default=True,
    callback=_placeholder,
    metavar="CHARACTER",
    help="Printed for what was not read.",
)
@size_option
@ink_option
@max_side_option(4096)
@top_k_option("With --json: list the K most probable labels of each digit.")
@click.option("--json", "as_json", cls=Option, section="Output", is_flag=True, help="Print one JSON object per image.")
@target_options
@timeout_option(5.0, "Maximum time to read an image, in seconds.")
@click.pass_context
def read(
    context: click.Context, /, *, files: tuple[str, ...], size: tuple[int, int] | None, ink: str | None, max_side: int,
    as_json: bool, target: Target, timeout_s: float, **options: Any,
) -> None:  # fmt: skip
    """Read the numbers in the images in FILES; - is standard input.

    Prints a line of text for each line in an image; with several images, the name of the file before it. On a terminal the image
    is drawn first, and colours show how sure each digit is. NO_COLOR=1 and TERM=dumb give plain text.

    Notes on standard error name images without numbers, and lines that do not have the pattern or the number of digits.

    Formats: as for 'digitserve classify'.

    \b
    Exit codes: 0 all images were read, also if digits in them were not; 1 a file or
    image was rejected; 2 wrong usage; 3 no service answers; 4 no answer in time;
    5 access denied: TLS handshake failed, or token not accepted; 130 stopped by Ctrl-C.
    """
    from digitserve.client import Ink, RequestRejected, Unauthenticated
    from digitserve.errors import ImageFileError
    from digitserve.vision.image_files import read_images

    code = ExitCode.OK
    printer = _printer(as_json=as_json)
    options |= {"ink": Ink(ink) if ink else None, "max_side": max_side or None}
    with target.open_client(num_connections=1, timeout_s=timeout_s) as client:
        for name in files:
            try:
                images = read_images(*image_source(name), size)
                for index, pixels in enumerate(images):
                    shown = name if len(images) == 1 else f"{name}[{index}]"
                    is_only = len(files) == len(images) == 1
                    printer.print_image(_Source(name, index, shown, is_only), pixels, client.read(pixels, **options))
            except ImageFileError as error:
                print_error(str(error))
                code = ExitCode.NEGATIVE
            except Unauthenticated:
                raise
            except RequestRejected as error:
                print_error(f"{name}: {error}")
                code = ExitCode.NEGATIVE
    context.exit(code)


class _Source:
    """Where an image is from.

    Attributes:
        file: name of the file.
        index: of the image in it.
        name: of the image, for people.
        prefix: before each line of its text.
    """

    def __init__(self, file: str, index: int, name: str, is_only: bool) -> None:  # noqa: FBT001 - private
        self.file = file
        self.index = index
        self.name = name
        self.prefix = "" if is_only else f"{name}: "


class _Printer:
    """Prints readings as plain text."""

    def print_image(self, source: _Source, _pixels: "Pixels", reading: "Reading") -> None:
        """Print the reading of an image: uint8[H,W,C]."""
        for line in reading.lines:
            print_line(f"{source.prefix}{self._text(line)}")
        for note in _notes(reading):
            print_error(f"{source.name}: {note}")

    def _text(self, line: "Line") -> str:
        return line.text


class _DrawingPrinter(_Printer):
    """Draws the images on a terminal, and prints their text in colours."""

    def __init__(self, terminal: Terminal) -> None:
        from digitserve.cli.drawing import Drawing

        self._drawing = Drawing(terminal)

    def print_image(self, source: _Source, pixels: "Pixels", reading: "Reading") -> None:
        """Draw an image and print its reading."""
        print_lines(self._drawing.page(pixels))
        source.prefix = printable(source.prefix)
        super().print_image(source, pixels, reading)

    def _text(self, line: "Line") -> str:
        return self._drawing.reading(line)


class _JsonPrinter(_Printer):
    """Prints one JSON object per image."""

    def print_image(self, source: _Source, _pixels: "Pixels", reading: "Reading") -> None:
        """Print the reading of an image."""
        print_line(json.dumps({"file": source.file, "image": source.index, **_to_json(reading)}))


def _printer(*, as_json: bool) -> _Printer:
    """Return the printer for the output that was requested and for what standard output can show."""
    if as_json:
        return _JsonPrinter()
    terminal = Terminal.of(sys.stdout, os.environ)
    return _DrawingPrinter(terminal) if terminal.colours else _Printer()


def _notes(reading: "Reading") -> Iterator[str]:
    """Yield what the text does not show."""
    if not reading.lines:
        yield "no numbers found"
    for number, line in enumerate(reading.lines, 1):
        if not line.matches:
            yield f"line {number} does not have the pattern or the number of digits"


def _to_json(reading: "Reading") -> dict[str, Any]:
    """Return the fields of the message ``ReadResponse``, by their names in the protocol, and the text as a whole."""
    timing = reading.timing
    return {
        "text": reading.text,
        "lines": [_line_to_json(line) for line in reading.lines],
        "ignored": [{"kind": f"IGNORED_KIND_{one.kind.name}", "box": box_to_json(one.box)} for one in reading.ignored],
        "timing": {
            "queue_s": shortest(timing.queue_s),
            "preprocess_s": shortest(timing.preprocess_s),
            "inference_s": shortest(timing.inference_s),
            "batch_size": timing.batch_size,
        },
        "model": f"{reading.model}/{reading.version}",
    }


def _line_to_json(line: "Line") -> dict[str, Any]:
    return {
        "text": line.text,
        "confidence": shortest(line.confidence),
        "box": box_to_json(line.box),
        "marks": [_mark_to_json(mark) for mark in line.marks],
        "matches": line.matches,
    }


def _mark_to_json(mark: "Mark") -> dict[str, Any]:
    return {
        "text": mark.text,
        "kind": f"MARK_KIND_{mark.kind.name}",
        "box": box_to_json(mark.box),
        "label": mark.label,
        "class_index": mark.class_index,
        "confidence": shortest(mark.confidence),
        "verdict": f"VERDICT_{mark.verdict.name}",
        "ood_score": shortest(mark.ood_score),
        "top": top_to_json(mark.top),
    }
