"""``digitserve-train evaluate --pictures`` on generated images: a bundle, a running service and ``digitserve classify`` agree."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from digitserve.inference.model_folder import list_versions
from digitserve_training.cli import main
from support.digits import MODELS, scanned_digits
from support.serving import RunningWorker, command, run_worker

VERSION = max(list_versions(MODELS, "digits"))
BUNDLE = MODELS / "digits" / str(VERSION)


def write_images(folder: Path) -> None:
    """Write digits in many forms, and images that are blank, noise or show two digits, with labels.csv."""
    small, labels = scanned_digits()
    rows: list[tuple[str, str, str]] = []

    def add(image: Image.Image, name: str, label: str, of_set: str) -> None:
        image.save(folder / name)
        rows.append((name, label, of_set))

    for number in range(40):
        digit, label = Image.fromarray(small[number]), str(labels[number])
        large = digit.resize((40, 40), Image.Resampling.BICUBIC)
        dark = Image.eval(large, lambda level: 255 - level)
        add(digit, f"{number:02}-small.png", label, "small")
        add(digit.resize((28, 28), Image.Resampling.BICUBIC), f"{number:02}-28.png", label, "28")
        add(Image.eval(digit.resize((28, 28)), lambda level: 255 - level), f"{number:02}-28-dark.png", label, "28-dark")
        add(dark.convert("RGB"), f"{number:02}.jpg", label, "colour")
        clear = Image.merge("RGBA", [Image.new("L", large.size)] * 3 + [large])
        add(clear, f"{number:02}-clear.png", label, "clear")
    # The client reduces it, so the evaluation of a bundle must do so too.
    add(dark.resize((2600, 2600), Image.Resampling.BICUBIC), "photo.png", label, "photo")
    two = np.concatenate([small[0], np.zeros((8, 6), np.uint8), small[1]], axis=1)
    add(Image.fromarray(two).resize((220, 80)), "two.png", "", "others")
    add(Image.new("L", (50, 50), 255), "blank.png", "", "others")
    add(Image.new("L", (50, 50), 255), "labelled blank.png", "7", "others")
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    add(Image.fromarray(noise), "noise.png", "", "others")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "set"), *rows])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the images once."""
    folder: Path = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def worker() -> Iterator[RunningWorker]:
    """Run a worker that serves the shipped bundle."""
    with run_worker(MODELS, model="digits") as running:
        yield running


def evaluate(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def figures(output: Path) -> dict[str, Any]:
    """Read pictures.json, without the name of the model."""
    found: dict[str, Any] = json.loads((output / "pictures.json").read_text())
    del found["model"]
    return found


@pytest.fixture(scope="module")
def of_bundle(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluate the shipped bundle once, and return the folder of the report."""
    output: Path = tmp_path_factory.mktemp("report") / "of bundle"
    ended = evaluate(BUNDLE, "--pictures", images, "--output", output)
    assert ended.exit_code == 0, ended.output
    assert f"report: {output / 'index.html'}" in ended.stdout
    return output


def test_bundle_has_the_figures_of_classify(images: Path, of_bundle: Path, worker: RunningWorker) -> None:
    """Accuracy, verdicts, confidence and mistakes equal those computed from the output of ``digitserve classify``."""
    with (images / "labels.csv").open() as file:
        rows = [*csv.DictReader(file)]
    files = [str(images / row["file"]) for row in rows]
    ended = subprocess.run(
        command("classify", "--json", "--address", worker.address, *files), capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]

    digits = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row["label"]]
    right = [(row, answer) for row, answer in digits if answer["label"] == row["label"]]
    wrong = [(row, answer) for row, answer in digits if answer["label"] != row["label"]]
    others = [answer for row, answer in zip(rows, answers, strict=True) if not row["label"]]
    found = figures(of_bundle)
    overall = found["overall"]

    def accepted(pairs: list[Any]) -> int:
        return sum(answer["verdict"] == "VERDICT_ACCEPTED" for _, answer in pairs)

    assert (overall["num_images"], overall["num_right"]) == (202, len(right))
    assert overall["right_and_accepted"] == accepted(right) / 202
    assert overall["wrong_and_accepted"] == accepted(wrong) / 202
    confidence = np.mean([answer["confidence"] for _, answer in digits])
    assert overall["confidence_minus_accuracy"] == pytest.approx(confidence - len(right) / 202, abs=1e-6)
    for name, count in overall["verdicts"].items():
        assert count == sum(answer["verdict"] == f"VERDICT_{name}" for _, answer in digits)
    for name, count in found["not_a_single_digit"]["overall"]["verdicts"].items():
        assert count == sum(answer["verdict"] == f"VERDICT_{name}" for answer in others)
    mistakes = {one["file"]: one for one in found["mistakes"]}
    for row, answer in wrong:
        one = mistakes[row["file"]]
        assert (one["answer"], f"VERDICT_{one['verdict']}") == (answer["label"], answer["verdict"])
        assert one["confidence"] == pytest.approx(answer["confidence"], abs=1e-5)
    # The images are worth the comparison: there are mistakes, and every verdict occurs.
    assert len(wrong) > 5
    assert all(overall["verdicts"][name] for name in ("ACCEPTED", "UNFAMILIAR", "BLANK"))
    assert {answer["verdict"] for answer in others} >= {"VERDICT_SEVERAL", "VERDICT_BLANK", "VERDICT_UNFAMILIAR"}


def test_service_has_the_figures_of_its_bundle(
    images: Path, of_bundle: Path, worker: RunningWorker, tmp_path: Path
) -> None:
    """A running service gives the figures of the bundle that it serves, and the same contact sheets."""
    ended = evaluate("--address", worker.address, "--pictures", images, "--output", tmp_path)

    assert ended.exit_code == 0, ended.output
    ours, theirs = figures(tmp_path), figures(of_bundle)
    for found in (ours, theirs):
        for mistake in found["mistakes"]:
            mistake["confidence"], mistake["ood_score"] = (
                round(mistake["confidence"], 4),
                round(mistake["ood_score"], 3),
            )
        for part in (found["overall"], *found["sets"].values(), *found["by_label"].values()):
            part["confidence_minus_accuracy"] = round(part["confidence_minus_accuracy"], 4)
    assert ours == theirs
    assert f"digits/{VERSION} at {worker.address}" in (tmp_path / "index.html").read_text()


def test_report_is_reproducible(images: Path, of_bundle: Path, tmp_path: Path) -> None:
    """A second evaluation writes the same bytes."""
    evaluate(BUNDLE, "--pictures", images, "--output", tmp_path)

    written = {path.name: path.read_bytes() for path in of_bundle.iterdir()}
    assert written == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"index.html", "pictures.json", "mistakes-01.png"} <= written.keys()


def test_selected_sets(images: Path, of_bundle: Path, tmp_path: Path) -> None:
    """With --set, only these sets are evaluated; their figures stay the same."""
    ended = evaluate(BUNDLE, "--pictures", images, "--set", "28", "--set", "small", "--output", tmp_path)

    assert ended.exit_code == 0, ended.output
    selected = figures(tmp_path)
    assert selected["overall"]["num_images"] == 80
    assert selected["sets"] == {name: figures(of_bundle)["sets"][name] for name in ("28", "small")}


def test_bundle_needs_no_tensorflow(images: Path, tmp_path: Path) -> None:
    """A bundle is evaluated without importing TensorFlow, and by default the report is in the working directory."""
    program = (
        "import sys; from digitserve_training.cli import main; "
        f"main(['evaluate', {str(BUNDLE)!r}, '--pictures', {str(images)!r}], standalone_mode=False); "
        "assert not {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "pictures" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--pictures", "IMAGES"], 2, "--pictures needs exactly one RUN, bundle or --address"),
        (["a", "b", "--pictures", "IMAGES"], 2, "--pictures needs exactly one RUN"),
        (["a", "--address", "localhost", "--pictures", "IMAGES"], 2, "--pictures needs exactly one RUN"),
        (["a", "--results", "r.json", "--pictures", "IMAGES"], 2, "--results and --pictures exclude each other"),
        (["a", "--set", "x"], 2, "--set needs --pictures"),
        (["--address", "localhost"], 2, "--address needs --pictures"),
        ([], 2, "Missing argument 'RUN...'"),
        (
            ["nix", "--pictures", "IMAGES"],
            4,
            "nix contains neither a run (checkpoint.npz) nor a bundle (manifest.json)",
        ),
        (["--address", "localhost:1", "--pictures", "IMAGES"], 4, "localhost:1: no service answers"),
        (["--address", "::bad::", "--pictures", "IMAGES"], 4, "::bad::"),
        ([str(BUNDLE), "--pictures", "nix"], 3, "nix is not a folder"),
        ([str(BUNDLE), "--pictures", "IMAGES", "--set", "nix"], 3, "has no set nix; its sets are: 28, 28-dark, clear"),
    ],
)
def test_errors(images: Path, arguments: list[str], code: int, message: str) -> None:
    """Wrong usage, and models and folders that cannot be used, end with the documented exit code and say why."""
    ended = evaluate(*(str(images) if argument == "IMAGES" else argument for argument in arguments))

    assert ended.exit_code == code, ended.output
    assert message in " ".join(ended.stderr.split())


def test_damaged_bundle(images: Path, tmp_path: Path) -> None:
    """A bundle that fails a check is rejected with the name of the check."""
    copy = tmp_path / "digits" / str(VERSION)
    copy.mkdir(parents=True)
    for path in BUNDLE.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.onnx").write_bytes(b"damaged")

    ended = evaluate(copy, "--pictures", images)

    assert ended.exit_code == 4
    assert "check 'sha256' failed" in ended.stderr
