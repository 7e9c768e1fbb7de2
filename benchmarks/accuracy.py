"""Accuracy of model bundles, recorded in ``accuracy.json`` for the tables of ``releases``.

    python -m benchmarks.accuracy models/digits/5 benchmarks/models/digits/3 --pictures FOLDER

Needs the package's extra ``training``, but not TensorFlow, and MNIST as ``digitserve-train`` does. The images of the corruption
suite and FOLDER are those of ``digitserve-train evaluate``. A bundle is identified by the hash of its graph, so a record never
belongs to another network of the same name.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from digitserve.inference.bundle import Bundle, read_bundle
from digitserve.inference.session import Session

RECORDS = Path(__file__).with_name("accuracy.json")

NOT_CORE = "cells-ruled"
"""Set of images that is no part of the core; see docs/models.md."""


@dataclass(frozen=True)
class Core:
    """Results on handwriting of other people, each image with one digit.

    Attributes:
        images: number of them.
        right: number with the right label.
        wrong_accepted: number with another label and ACCEPTED.
    """

    images: int
    right: int
    wrong_accepted: int


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a network.

    Attributes:
        network: its name and version, for people.
        test: share of MNIST's test images with the right label.
        corruption_suite: the mean of this share over all corruptions.
        core: on handwriting of other people, if measured.
    """

    network: str
    test: float
    corruption_suite: float
    core: Core | None


def read(path: Path = RECORDS) -> dict[str, Accuracy]:
    """Return all records by the hash of the graph."""
    records = json.loads(path.read_text()) if path.exists() else {}
    return {
        sha256: Accuracy(**(record | {"core": Core(**record["core"]) if record["core"] else None}))
        for sha256, record in records.items()
    }


def write(records: dict[str, Accuracy], path: Path = RECORDS) -> None:
    """Write all records."""
    named = sorted(records.items(), key=lambda item: item[1].network)
    path.write_text(json.dumps({sha256: asdict(record) for sha256, record in named}, indent=2) + "\n")


def measure(folders: Sequence[Path], pictures: Path | None) -> Iterator[tuple[Bundle, Accuracy]]:
    """Measure the bundles in these folders."""
    # Loaded here, because ``compare`` only reads records and runs without the packages of training.
    from digitserve_training.data import splits  # noqa: PLC0415
    from digitserve_training.evaluate.corruption_suite import CORRUPTIONS, corrupt_images  # noqa: PLC0415
    from digitserve_training.evaluate.evaluation import measure as measure_on  # noqa: PLC0415
    from digitserve_training.evaluate.evaluation_sets import SEED  # noqa: PLC0415

    test = splits.read_test()
    corrupted = [splits.Labelled(corrupt_images(test.images, one, SEED), test.labels) for one in CORRUPTIONS]
    for folder in folders:
        bundle = read_bundle(folder)
        session = Session(bundle, num_threads=1)
        on_test, *on_corrupted = (measure_on(session, images).accuracy for images in (test, *corrupted))
        core = _measure_core(folder, pictures) if pictures else None
        yield bundle, Accuracy(f"{bundle.manifest.name}/{bundle.manifest.version}", on_test, fmean(on_corrupted), core)


def _measure_core(folder: Path, pictures: Path) -> Core:
    from digitserve_training.evaluate.pictures.classifier import open_model  # noqa: PLC0415
    from digitserve_training.evaluate.pictures.listing import list_pictures  # noqa: PLC0415
    from digitserve_training.evaluate.pictures.report import evaluate  # noqa: PLC0415

    classifier = open_model(folder, None)
    evaluation = evaluate(classifier, pictures, list_pictures(pictures, classifier.labels))
    core = [figures for name, figures in evaluation.by_set.items() if name != NOT_CORE]
    return Core(
        sum(figures.num_images for figures in core), sum(figures.num_right for figures in core),
        sum(figures.num_wrong_accepted for figures in core),
    )  # fmt: skip


def main() -> None:
    """Measure bundles, and add their records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--pictures", type=Path, help="folder of handwriting of other people; see docs/models.md")
    options = parser.parse_args()
    for bundle, record in measure(options.bundles, options.pictures):
        write(read() | {bundle.manifest.sha256: record})
        sys.stdout.write(f"{record}\n")


if __name__ == "__main__":
    main()
