"""``digitserve classify``: image files to predictions, through ``client.Client``."""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import (
    Command,
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
    from collections.abc import Sequence

    from digitserve.client import Box, Client, Prediction, Preparation
    from digitserve.vision.image_files import Pixels


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=str))
@size_option
@ink_option
@max_side_option(2048)
@top_k_option("Also list the K most probable labels.")
@click.option("--json", "as_json", cls=Option, section="Output", is_flag=True, help="Print one JSON object per image.")
@click.option(
    "--explain",
    cls=Option,
    section="Output",
    is_flag=True,
    help="Also print how each image was prepared. With --json: as 'preparation', with the pixels that the network saw as 28 "
    "rows of 28 numbers, and boxes in pixels of the image in the file.",
)
@target_options
@timeout_option(5.0, "Maximum time to classify a file, in seconds.")
@click.pass_context
def classify(  # noqa: PLR0913 - one per option
    context: click.Context, /, *, files: tuple[str, ...], size: tuple[int, int] | None, ink: str | None, max_side: int,
    top_k: int, as_json: bool, explain: bool, target: Target, timeout_s: float,
) -> None:  # fmt: skip
    """Classify the images in FILES; - is standard input.

    On a terminal the images are drawn, with bars of the probabilities: a few large, many on a sheet. Output that is not a
    terminal, NO_COLOR=1 and TERM=dumb give one line of text per image.

    Formats: PNG, JPEG, BMP, GIF, WEBP, TIFF; .npy with an array uint8[H,W], [N,H,W] or [N,H,W,C]; raw pixels with --size.

    \b
    Exit codes: 0 all images were classified; 1 a file or image was rejected;
    2 wrong usage; 3 no service answers; 4 no answer in time; 5 access denied: TLS
    handshake failed, or token not accepted; 130 stopped by Ctrl-C.
    """
    from digitserve.client import Ink, RequestRejected, Unauthenticated
    from digitserve.errors import ImageFileError
    from digitserve.vision.image_files import read_images

    code = ExitCode.OK
    with target.open_client(num_connections=1, timeout_s=timeout_s, max_side=max_side or None) as client:
        printer = _printer(client, files, top_k, as_json=as_json, explain=explain)
        for name in files:
            try:
                images = read_images(*image_source(name), size)
                predictions = client.classify(
                    images, top_k=printer.top_k, ink=Ink(ink) if ink else None, explain=explain
                )
            except ImageFileError as error:
                printer.print_error(str(error))
                code = ExitCode.NEGATIVE
            except Unauthenticated:
                raise
            except RequestRejected as error:
                printer.print_error(f"{name}: {error}")
                code = ExitCode.NEGATIVE
            else:
                printer.print_file(name, images, predictions)
        printer.finish()
    context.exit(code)


class _Printer:
    """Prints the answers as plain text.

    Attributes:
        top_k: classes to request for each image.
    """

    def __init__(self, top_k: int) -> None:
        self._num_listed = self.top_k = top_k

    def print_file(self, name: str, images: "Pixels", predictions: "Sequence[Prediction]") -> None:
        """Print the answers for the images of a file: uint8[N,H,W,C]."""
        for index, prediction in enumerate(predictions):
            self._print_image(_position(name, index, len(predictions)), images[index], prediction)

    def _print_image(self, name: str, _pixels: "Pixels", prediction: "Prediction") -> None:
        print_line(f"{name}: {_describe(prediction, self._num_listed)}")
        if prediction.preparation is not None:
            print_line(f"  {_describe_preparation(prediction.preparation)}")

    def print_error(self, message: str) -> None:
        """Print why a file has no answer, after the answers before it."""
        self.finish()
        print_error(message)

    def finish(self) -> None:
        """Print what is left."""


class _JsonPrinter(_Printer):
    """Prints one JSON object per image."""

    def __init__(self, top_k: int, model: str) -> None:
        super().__init__(top_k)
        self._model = model

    def print_file(self, name: str, _images: "Pixels", predictions: "Sequence[Prediction]") -> None:
        """Print the answers for the images of a file."""
        for index, prediction in enumerate(predictions):
            print_line(json.dumps({"file": name, "image": index, **_to_json(prediction), "model": self._model}))


class _DrawingPrinter(_Printer):
    """Draws the images and their probabilities on a terminal: a few large, many on a sheet."""

    def __init__(self, top_k: int, files: tuple[str, ...], terminal: Terminal, *, explain: bool) -> None:
        from digitserve.cli.drawing import NUM_BARS, Drawing

        super().__init__(top_k)
        self.top_k = max(top_k, NUM_BARS)
        self._files = files
        self._drawing = Drawing(terminal)
        self._detailed = explain or top_k > 0

    def print_file(self, name: str, images: "Pixels", predictions: "Sequence[Prediction]") -> None:
        """Draw the images of a file: uint8[N,H,W,C]."""
        from digitserve.cli.drawing import is_sheet

        name = printable(name)
        if is_sheet(self._files, len(images), detailed=self._detailed):
            for index, prediction in enumerate(predictions):
                position = _position(name, index, len(predictions))
                print_lines(self._drawing.add_to_sheet(position, images[index], prediction))
        else:
            self.finish()
            super().print_file(name, images, predictions)

    def _print_image(self, name: str, pixels: "Pixels", prediction: "Prediction") -> None:
        super()._print_image(name, pixels, prediction)
        print_lines(self._drawing.large(pixels, prediction))

    def finish(self) -> None:
        """Draw the last row of the sheet."""
        print_lines(self._drawing.finish_row())


def _printer(client: "Client", files: tuple[str, ...], top_k: int, *, as_json: bool, explain: bool) -> _Printer:
    """Return the printer for the output that was requested and for what standard output can show."""
    if as_json:
        return _JsonPrinter(top_k, _model_name(client))
    terminal = Terminal.of(sys.stdout, os.environ)
    return _DrawingPrinter(top_k, files, terminal, explain=explain) if terminal.colours else _Printer(top_k)


def _position(name: str, index: int, num_images: int) -> str:
    return name if num_images == 1 else f"{name}[{index}]"


def _model_name(client: "Client") -> str:
    model = client.model()
    return f"{model.name}/{model.version}"


def _to_json(prediction: "Prediction") -> dict[str, Any]:
    """Return the fields of the message ``Prediction``, by their names in the protocol; ``preparation`` if there is one."""
    fields = {
        "label": prediction.label,
        "class_index": prediction.class_index,
        "confidence": shortest(prediction.confidence),
        "verdict": f"VERDICT_{prediction.verdict.name}",
        "ood_score": shortest(prediction.ood_score),
        "top": top_to_json(prediction.top),
    }
    if prediction.preparation is not None:
        fields["preparation"] = _preparation_to_json(prediction.preparation)
    return fields


def _preparation_to_json(preparation: "Preparation") -> dict[str, Any]:
    framing, ink = preparation.framing, preparation.ink
    return {
        "pixels": preparation.pixels.tolist(),
        "framing": f"FRAMING_{framing.name if framing else 'UNSPECIFIED'}",
        "ink": f"INK_{ink.name if ink else 'UNSPECIFIED'}",
        "box": box_to_json(preparation.box),
        "removed": [
            {"artefact": f"ARTEFACT_{one.artefact.name}", "box": box_to_json(one.box)} for one in preparation.removed
        ],
    }


def _describe(prediction: "Prediction", num_listed: int) -> str:
    from digitserve.client import Verdict

    if prediction.verdict is Verdict.BLANK:
        return "blank: no ink"
    remarks = {
        Verdict.UNFAMILIAR: "  (unfamiliar: does not look like a digit)",
        Verdict.SEVERAL: "  (several separate shapes: send one digit per image)",
    }
    others = ", ".join(f"{score.label} {score.confidence:.1%}" for score in prediction.top[1:num_listed])
    also = f"  (then {others})" if others else ""
    return f"{prediction.label}  {prediction.confidence:.1%}{also}{remarks.get(prediction.verdict, '')}"


def _describe_preparation(preparation: "Preparation") -> str:
    from digitserve.client import Artefact, Framing, Ink

    inks = {Ink.LIGHT_ON_DARK: "light ink on dark", Ink.DARK_ON_LIGHT: "dark ink on light", None: "no ink found"}
    names = {
        Artefact.PAGE_EDGE: "page edge",
        Artefact.RECTANGLE: "rectangle",
        Artefact.BORDER: "lines or shapes at the border",
    }
    facts = [inks.get(preparation.ink, "")]
    if preparation.framing is Framing.AS_IS:
        facts.append("pixels used as they are" + (", inverted" if preparation.ink is Ink.DARK_ON_LIGHT else ""))
    if preparation.box is not None:
        facts.append(f"box {_describe_box(preparation.box)}")
    for one in preparation.removed:
        where = f" ({_describe_box(one.box)})" if one.box is not None else ""
        facts.append(f"removed: {names.get(one.artefact, 'something else')}{where}")
    return ", ".join(facts)


def _describe_box(box: "Box") -> str:
    return f"rows {box.top}-{box.bottom - 1}, columns {box.left}-{box.right - 1}"
