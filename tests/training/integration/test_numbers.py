"""``digitserve-train evaluate --numbers`` and ``--simulated`` with the shipped bundle."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from digitserve.inference.model_folder import list_versions
from digitserve.reading.confidence import FITTED
from digitserve_training.cli import main
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate.numbers import fit
from digitserve_training.evaluate.numbers.local_reader import open_reader
from digitserve_training.synth import numbers
from digitserve_training.synth.numbers import FieldStyle
from support.digits import MODELS, scanned_digits

VERSION = max(list_versions(MODELS, "digits"))
BUNDLE = MODELS / "digits" / str(VERSION)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write clean fields of separate digits, with numbers.csv."""
    folder: Path = tmp_path_factory.mktemp("numbers")
    digits, labels = scanned_digits()
    rows = [("file", "text", "set")]
    for index in range(8):
        generator = np.random.default_rng(index)
        drawn = numbers.field(generator, digits, np.asarray(labels), style=FieldStyle(clean_share=1.0))
        Image.fromarray(drawn.pixels).save(folder / f"{index}.png")
        rows.append((f"{index}.png", drawn.text, "odd" if index % 2 else "even"))
    with (folder / "numbers.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def evaluate(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_files_are_read(images: Path, tmp_path: Path) -> None:
    """Most digits of clean fields are read right; report, figures per set and the table of results are written."""
    ended = evaluate(BUNDLE, "--numbers", images, "--output", tmp_path / "out", "--results", tmp_path / "rows.json")

    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert found["model"] == f"digits/{VERSION}"
    assert found["overall"]["num_images"] == 8
    assert found["overall"]["characters_right"] > 0.8
    assert {name: one["num_images"] for name, one in found["groups"].items()} == {"even": 4, "odd": 4}
    assert [row["group"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["even", "odd"]
    assert (tmp_path / "out" / "index.html").read_text().count("<img") == len(found["mistakes"])


def test_simulated_images_need_no_tensorflow(tmp_path: Path) -> None:
    """Synthetic images of all kinds are read without TensorFlow; by default the report is in the working directory."""
    digits, labels = scanned_digits()
    large = np.zeros((len(digits), 28, 28), np.uint8)
    large[:, 4:-4, 4:-4] = [np.asarray(Image.fromarray(one).resize((20, 20))) for one in digits]
    parts = {"x_train": large, "y_train": labels, "x_test": large, "y_test": labels}
    np.savez(tmp_path / "mnist.npz", **parts)
    program = (
        "import sys; from digitserve_training.cli import main; "
        f"main(['evaluate', {str(BUNDLE)!r}, '--simulated', '1', '--data', 'mnist.npz'], standalone_mode=False); "
        "assert not {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "numbers" / "numbers.json").read_text())
    assert {"1 digit", "5 digits, 20% touching", "pages", "ruled cells"} < {*found["groups"]}


def test_constants_of_the_reader_are_fitted() -> None:
    """The search finds constants under which the true texts of touching digits are more likely than under wrong ones."""
    digits, labels = scanned_digits()
    pieces = fit.collect(open_reader(BUNDLE, None), Labelled(digits[..., np.newaxis], np.asarray(labels)), 12)
    assert len(pieces) >= 5
    wrong = FITTED._replace(unknown_cost=-6.0)
    fitted = fit.search(pieces, wrong, 40, seed=1)
    assert fit.measure(fitted, pieces).log_likelihood > fit.measure(wrong, pieces).log_likelihood + 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--numbers", "x"], 2, "--numbers and --simulated need exactly one RUN or bundle"),
        (["a", "b", "--simulated", "1"], 2, "need exactly one RUN or bundle"),
        (["a", "--address", "localhost", "--numbers", "x"], 2, "and no --address"),
        (["a", "--numbers", "x", "--pictures", "x"], 2, "--pictures, --numbers and --simulated exclude each other"),
        (["a", "--simulated", "1", "--set", "x"], 2, "--set needs --pictures or --numbers"),
        (["nix", "--numbers", "x"], 4, "nix contains neither a run"),
        ([str(BUNDLE), "--numbers", "nix"], 3, "nix does not exist; expected a folder with numbers.csv"),
    ],
)
def test_errors(arguments: list[str], code: int, message: str) -> None:
    """Wrong usage, and models and tables that cannot be used, end with the documented exit code and say why."""
    ended = evaluate(*arguments)

    assert ended.exit_code == code, ended.output
    assert message in " ".join(ended.stderr.split())
