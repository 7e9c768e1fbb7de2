"""Compare bundles of networks for digits, on the images of ``digitserve-train evaluate``: a Markdown table for docs/models.md.

    python -m scripts.compare_bundles models/digits/5 models/digits-int8/3 [--pictures FOLDER] [--set NAME]

"other" counts the images whose label differs from that of the first bundle, whichever is right. MNIST is read from
``DIGITSERVE_MNIST``. ``--pictures`` adds labelled image files, as for ``digitserve-train evaluate``.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digitserve.inference.bundle import Bundle, read_bundle
from digitserve.inference.session import Session
from digitserve.progress import track
from digitserve.vision.image_files import read_image_file
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate import evaluation_sets, scores
from digitserve_training.evaluate.evaluation import Measurement, measure, run
from digitserve_training.evaluate.evaluation_sets import EvaluationSet, EvaluationSets
from digitserve_training.evaluate.formatting import group_thousands, percent
from digitserve_training.evaluate.pictures.classifier import LocalClassifier, Network
from digitserve_training.evaluate.pictures.figures import Figures, Judged
from digitserve_training.evaluate.pictures.listing import list_pictures

TEST, SUITE = "MNIST's test images", "corruption suite"

Row = tuple[str, ...]


def pool(name: str, sets: Sequence[EvaluationSet]) -> EvaluationSet:
    """Join sets to one."""
    images = np.concatenate([one.labelled.images for one in sets])
    return EvaluationSet(name, Labelled(images, np.concatenate([one.labelled.labels for one in sets])))


def labelled_sets(sets: EvaluationSets) -> list[EvaluationSet]:
    """Return the sets of labelled images: the corruptions together, and both polarities of ``load_digits`` together."""
    others = [one for one in sets.labelled if one.corruption is None]
    return [
        EvaluationSet(TEST, sets.test),
        pool(SUITE, [one for one in sets.labelled if one.corruption]),
        *(one for one in others if "load_digits" not in one.name),
        pool("load_digits, both polarities", [one for one in others if "load_digits" in one.name]),
    ]


def count(right: Sequence[NDArray[np.bool_]], answers: Sequence[NDArray[np.generic]]) -> Row:
    """Return the cells of a set of images: how many each bundle has right, and how many labels differ from the first's."""
    return tuple(
        f"{percent(one.mean())}, {group_thousands(int(one.sum()))}"
        + (f", other {group_thousands(int((found != answers[0]).sum()))}" if index else "")
        for index, (one, found) in enumerate(zip(right, answers, strict=True))
    )


def compare_sets(bundles: Sequence[Bundle], sessions: Sequence[Session], sets: EvaluationSets) -> Iterator[Row]:
    """Yield the rows of the images of ``digitserve-train evaluate``."""
    measured: dict[str, list[Measurement]] = {}
    for one in track(labelled_sets(sets), "evaluate set"):
        found = measured[one.name] = [measure(session, one.labelled) for session in sessions]
        right = [measurement.predicted == one.labelled.labels for measurement in found]
        yield (
            f"{one.name}, right of {group_thousands(len(one.labelled))}",
            *count(right, [m.predicted for m in found]),
        )
    yield ("test loss", *(f"{m.loss:.4f}" for m in measured[TEST]))
    for name in (TEST, SUITE):
        yield (f"calibration error, {name}", *(percent(m.reliability.error, 3) for m in measured[name]))
    kinds = {name: [run(session, images).ood_score for session in sessions] for name, images in sets.non_digits.items()}
    together = [np.concatenate(found) for found in zip(*kinds.values(), strict=True)]
    for name, ood_scores in {"all non-digits": together, **kinds}.items():
        cells = (
            f"{scores.auroc(test.ood_score, one):.4f}, {percent(float(np.mean(one > bundle.manifest.ood_threshold)), 1)}"
            for test, one, bundle in zip(measured[TEST], ood_scores, bundles, strict=True)
        )
        yield (f"{name}, AUROC and UNFAMILIAR", *cells)


def compare_pictures(
    bundles: Sequence[Bundle], sessions: Sequence[Session], folder: Path, sets: Sequence[str]
) -> Iterator[Row]:
    """Yield the rows of the image files of a folder; those that are not a single digit are not used."""
    labels = bundles[0].manifest.labels
    classifiers = [
        LocalClassifier(Network(str(bundle.path), labels, session, bundle.manifest.ood_threshold))
        for bundle, session in zip(bundles, sessions, strict=True)
    ]
    pictures = [picture for picture in list_pictures(folder, labels, sets) if picture.label]
    pixels = (read_image_file(folder / picture.file, picture.file) for picture in track(pictures, "image"))
    answers = [[classifier.classify(one) for classifier in classifiers] for one in pixels]
    judged = [[Judged(p, a) for p, a in zip(pictures, found, strict=True)] for found in zip(*answers, strict=True)]
    found = [np.array([one.answer.label for one in mine]) for mine in judged]
    right = [np.array([one.right for one in mine]) for mine in judged]
    figures = [Figures(mine) for mine in judged]
    yield (f"image files, right of {group_thousands(len(pictures))}", *count(right, found))
    yield (
        "image files, wrong and ACCEPTED",
        *(f"{percent(one.wrong_accepted)}, {one.num_wrong_accepted}" for one in figures),
    )
    yield ("image files, right and ACCEPTED", *(percent(one.right_accepted) for one in figures))
    yield (
        "image files, mean confidence minus accuracy",
        *(f"{one.overconfidence * 100:+.2f} points" for one in figures),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="labelled image files")
    parser.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="NAME", help="with --pictures: only it"
    )
    options = parser.parse_args()
    bundles = [read_bundle(path.resolve()) for path in options.bundles]
    sessions = [Session(bundle) for bundle in bundles]
    rows: list[Row] = [
        ("", *(f"{bundle.manifest.name}/{bundle.manifest.version}" for bundle in bundles)),
        ("---", *("---" for _ in bundles)),
        *compare_sets(bundles, sessions, evaluation_sets.build(splits.read_test(), digits=True)),
        ("bytes", *(group_thousands(len(bundle.graph)) for bundle in bundles)),
        ("multiply-adds", *(group_thousands(bundle.manifest.training["multiply_adds"]) for bundle in bundles)),
    ]
    if options.pictures:
        rows += compare_pictures(bundles, sessions, options.pictures, options.sets)
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
