"""The scripts that produce figures of the documentation."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from compare_bundles import compare_pictures, compare_sets, count
from PIL import Image

from digitserve.inference.bundle import read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.inference.session import Session
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate.corruption_suite import CORRUPTIONS
from digitserve_training.evaluate.evaluation_sets import EvaluationSet, EvaluationSets
from support.digits import MODELS, needs_mnist

ROOT = Path(__file__).parents[3]


def draw(output: Path) -> subprocess.CompletedProcess[str]:
    """Run the script for five scans."""
    command = [sys.executable, "-m", "scripts.draw_page_edges", str(output), "--count", "5"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_mnist
def test_page_edges_are_drawn_as_a_folder_for_evaluate(tmp_path: Path) -> None:
    """Each scan has a label and one kind of artefact; an existing folder is not written into."""
    ended = draw(tmp_path / "scans")

    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "scans" / "labels.csv").open() as table:
        rows = [*csv.DictReader(table)]
    assert {row["set"] for row in rows} == {"dark_outside", "gutter", "bar", "soft_fold", "pages_below"}
    assert {row["label"] for row in rows} <= set("0123456789")
    assert sorted(path.name for path in (tmp_path / "scans").glob("*.png")) == [f"{number}.png" for number in range(5)]
    again = draw(tmp_path / "scans")
    assert again.returncode == 2
    assert "exists; expected a folder that does not" in again.stderr
    assert "Traceback" not in again.stderr


def test_bundles_are_compared_on_sets_and_image_files(tmp_path: Path) -> None:
    """The table counts, per set, the right labels of each bundle and the labels that differ from the first bundle's: with
    two bundles of the same network there are none. Image files that are not a single digit are not counted.
    """
    bundles = [read_bundle(find_bundle(MODELS, "digits"))] * 2
    sessions = [Session(bundle) for bundle in bundles]
    images = bundles[0].golden.images
    right = bundles[0].golden.probabilities.argmax(axis=1)
    labels = right.copy()
    labels[0] = (labels[0] + 1) % 10
    sets = EvaluationSets(
        Labelled(images, labels),
        (
            EvaluationSet("fog", Labelled(images, right), CORRUPTIONS[0]),
            EvaluationSet("blur", Labelled(images, right), CORRUPTIONS[1]),
            EvaluationSet("scans", Labelled(images, right)),
            EvaluationSet("load_digits", Labelled(images, labels)),
        ),
        {"noise": np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)},
        0.0,
    )
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "0.png")
    Image.new("L", (28, 28)).save(tmp_path / "blank.png")
    (tmp_path / "labels.csv").write_text(f"file,label\n0.png,{right[0]}\nblank.png,\n")

    rows = {row[0]: row[1:] for row in compare_sets(bundles, sessions, sets)}
    rows |= {row[0]: row[1:] for row in compare_pictures(bundles, sessions, tmp_path, ())}

    size = len(images)
    assert rows[f"corruption suite, right of {2 * size}"] == (f"100.00 %, {2 * size}", f"100.00 %, {2 * size}, other 0")
    first, second = rows[f"load_digits, both polarities, right of {size}"]
    assert first.endswith(f" %, {size - 1}")
    assert second == f"{first}, other 0"
    assert set(rows) >= {f"scans, right of {size}", "test loss", "noise, AUROC and UNFAMILIAR"}
    assert rows["image files, right of 1"] == ("100.00 %, 1", "100.00 %, 1, other 0")


def test_differing_labels_are_counted() -> None:
    """A label that differs from the first bundle's is counted, whether it is right or wrong."""
    answers = np.array([1, 2, 3, 4]), np.array([1, 5, 3, 0])
    right = [found == np.array([1, 2, 3, 0]) for found in answers]

    assert count(right, answers) == ("75.00 %, 3", "75.00 %, 3, other 2")
