"""The command ``digitserve-train evaluate --pictures``: classifies image files, prints the figures and writes a report.

``cli`` calls ``report``. Files are read one after the other and kept only as long as they are classified, so memory does
not grow with their size. Does not import TensorFlow, unless the model is a run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from digitserve.errors import ImageFileError
from digitserve.progress import track
from digitserve.vision.image_files import read_image_file
from digitserve_training.errors import DataError, RunError
from digitserve_training.evaluate.page import PAGE_NAME, replace_files
from digitserve_training.evaluate.pictures import gallery, sheet, table, thumbnails
from digitserve_training.evaluate.pictures.classifier import Classifier, connect, open_model
from digitserve_training.evaluate.pictures.figures import Failure, Judged, PictureEvaluation, as_json
from digitserve_training.evaluate.pictures.listing import FIGURES_NAME, Picture, list_pictures
from digitserve_training.fit import checkpoint

FOLDER = "pictures"
"""Default folder of the report: within the folder of a run, or else in the working directory."""

SHEET_NAME = "mistakes-{:02}.png"
SHEETS = "mistakes-[0-9][0-9].png"

MAX_SHOWN = 400
"""Most mistakes with images, so that the page stays small if nearly every answer is wrong; pictures.json has all."""


def report(
    model: Path | str,
    folder: Path,
    sets: Sequence[str],
    data_path: Path | None,
    output: Path | None,
) -> Iterator[str]:
    """Evaluate a model on the image files of a folder, and write a report.

    Args:
        model: folder of a run or of a bundle, or the address of a running service.
        folder: image files with labels, see ``listing``.
        sets: names of the sets to evaluate on; all if there are none.
        data_path: path of the dataset, see ``classifier.open_model``.
        output: folder of the report; None for the default.

    Yields:
        Text for the terminal.

    Raises:
        TrainingError: the model or the images cannot be used, or the report cannot be written.
    """
    with _open(model, data_path) as classifier:
        pictures = list_pictures(folder, classifier.labels, sets)
        evaluation = evaluate(classifier, folder, pictures)
    yield table.render(evaluation)
    yield f"report: {_write(output or default_output(model, FOLDER), folder, evaluation)}"


def evaluate(classifier: Classifier, folder: Path, pictures: Sequence[Picture]) -> PictureEvaluation:
    """Classify image files.

    Raises:
        DataError: no file gets an answer.
        RunError: the model answers no more.
    """
    judged: list[Judged] = []
    failures: list[Failure] = []
    for picture in track(pictures, "image"):
        try:
            pixels = read_image_file(folder / picture.file, picture.file)
            judged.append(Judged(picture, classifier.classify(pixels)))
        except ImageFileError as error:
            failures.append(Failure(picture, str(error).removeprefix(f"{picture.file}: ")))
    if not judged:
        raise DataError(
            f"none of the {len(failures)} files in {folder} got an answer, the first because: "
            f"{failures[0].picture.file}: {failures[0].reason}"
        )
    return PictureEvaluation(classifier.name, classifier.labels, str(folder), tuple(judged), tuple(failures))


def _open(model: Path | str, data_path: Path | None) -> AbstractContextManager[Classifier]:
    return connect(model) if isinstance(model, str) else nullcontext(open_model(model, data_path))


def default_output(model: Path | str, name: str) -> Path:
    """Return the folder ``name`` of the report: a bundle is never changed, and a service has no folder here."""
    return model / name if isinstance(model, Path) and checkpoint.exists(model) else Path(name)


def _write(output: Path, folder: Path, evaluation: PictureEvaluation) -> Path:
    """Write page, figures and contact sheets, and return the path of the page."""
    mistakes = [*thumbnails.read_mistakes(folder, evaluation.mistakes[:MAX_SHOWN], evaluation.labels)]
    files = {
        PAGE_NAME: gallery.render(evaluation, mistakes).encode(),
        FIGURES_NAME: (json.dumps(as_json(evaluation), indent=2) + "\n").encode(),
    }
    files |= {SHEET_NAME.format(number): png for number, png in enumerate(sheet.draw_pages(mistakes), start=1)}
    return write_files(output, files, SHEETS)


def write_files(output: Path, files: Mapping[str, bytes], replaced: str) -> Path:
    """Write the files of a report and return the path of its page.

    Args:
        output: folder of the report.
        files: contents by name; one of them is ``PAGE_NAME``.
        replaced: pattern of the names of files of an earlier report that are removed.

    Raises:
        RunError: they cannot be written.
    """
    try:
        replace_files(output, files, replaced)
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {output}: {error.strerror or error}; an earlier report is unchanged: "
            "give another folder with --output, or free some space"
        ) from None
    return output / PAGE_NAME
