"""The whole training pipeline on a small set of real digits: train, stop, resume, evaluate, export, open.

The digits are MNIST's if DIGITSERVE_MNIST is set, else scikit-learn's ``load_digits``, enlarged. All tests run with
either; no test asserts an accuracy that only MNIST would give.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits

from digitserve.inference import bundle, model_folder
from digitserve.inference.session import Session
from digitserve_training._tensorflow import keras
from digitserve_training.cli import main
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import DataError, ParityError, RunError
from digitserve_training.evaluate import converted_model
from digitserve_training.evaluate.evaluation import measure
from digitserve_training.export import precision
from digitserve_training.export.export import Destination, publish
from digitserve_training.export.quantize import quantize
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.settings import Options, Settings
from digitserve_training.fit.train import Training, train
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.layers import Conv, Flatten
from digitserve_training.model.onnx_graph import ServingFunction, convert
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import PRESETS

NUM_TRAINING = 1_200
NUM_TEST = 200
EPOCHS = 8


def real_digits() -> dict[str, Any]:
    """Return arrays in MNIST's layout: a part of MNIST, or ``load_digits`` enlarged to 20x20 and padded to 28x28."""
    if os.environ.get(splits.ENVIRONMENT):
        training, test = splits.read_training(), splits.read_test()
        images = np.concatenate([training.images[:NUM_TRAINING, ..., 0], test.images[:NUM_TEST, ..., 0]])
        labels = np.concatenate([training.labels[:NUM_TRAINING], test.labels[:NUM_TEST]])
    else:
        small, labels = load_digits(return_X_y=True)
        tiles = (small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(tile).resize((20, 20), Image.Resampling.BICUBIC)) for tile in tiles]
        images = np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4)))
    end = NUM_TRAINING + NUM_TEST
    return {
        "x_train": images[:NUM_TRAINING],
        "y_train": labels[:NUM_TRAINING],
        "x_test": images[NUM_TRAINING:end],
        "y_test": labels[NUM_TRAINING:end],
    }


@pytest.fixture(scope="module")
def digits_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small set of digits as an npz file."""
    path: Path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, allow_pickle=False, **real_digits())
    return path


Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def invoke(digits_path: Path) -> Invoke:
    """Run ``digitserve-train`` in this process, on the small set."""
    return lambda command, *options: CliRunner().invoke(
        main, [command, *map(str, options), "--data", str(digits_path)], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """Train for eight short epochs."""
    folder: Path = tmp_path_factory.mktemp("runs") / "finished"
    ended = invoke("train", "--run-dir", folder, "--epochs", EPOCHS, "--seed", 3)
    assert ended.exit_code == 0, ended.output
    return folder


@pytest.fixture
def test_images(digits_path: Path) -> Labelled:
    """Read the test part of the small set."""
    return splits.read_test(digits_path)


def start(digits_path: Path, *, epochs: int, limit: int, **options: Any) -> tuple[Settings, splits.Split]:
    """Return settings and images of a run on a part of the small set."""
    training = splits.read_training(digits_path)
    resolved = settings.resolve(
        Options(epochs=epochs, limit=limit, **options), training.names, splits.fingerprint(training)
    )
    return resolved, splits.split(training, limit)


def test_training_learns(run_dir: Path) -> None:
    """Eight epochs of 1,100 images reduce the loss and give a validation accuracy above 80 %."""
    metrics = [json.loads(line) for line in (run_dir / checkpoint.METRICS_NAME).read_text().splitlines()]

    assert [record["epoch"] for record in metrics] == list(range(1, EPOCHS + 1))
    assert metrics[-1]["training_loss"] < metrics[0]["training_loss"]
    assert 0.8 < metrics[-1]["validation_accuracy"] <= 1


@pytest.mark.parametrize("preset", ["compact", "conv2-dense256"])
def test_resumed_training_is_the_same_training(digits_path: Path, tmp_path: Path, preset: str) -> None:
    """A run that is stopped and resumed ends with exactly the weights and metrics of a run that was not stopped."""
    resolved, split = start(digits_path, preset=preset, epochs=2, limit=300)
    through = train(resolved, split, tmp_path / "through")

    stopped = Training(resolved, split)
    metrics = stopped.run_epoch(1)
    checkpoint.save(tmp_path / "stopped", checkpoint.Checkpoint(resolved, 1, (metrics,), stopped.arrays()))
    resumed = train(resolved, split, tmp_path / "stopped", resume=True)

    assert resumed.arrays.keys() == through.arrays.keys()
    assert all(np.array_equal(resumed.arrays[name], through.arrays[name]) for name in through.arrays)
    assert [{**record, "duration_s": 0, "images_per_s": 0} for record in resumed.history] == [
        {**record, "duration_s": 0, "images_per_s": 0} for record in through.history
    ]


def test_resuming_a_finished_run_changes_nothing(run_dir: Path, invoke: Invoke) -> None:
    """Resuming a finished run succeeds and does not change the checkpoint."""
    before = (run_dir / checkpoint.FILE_NAME).read_bytes()

    ended = invoke("train", "--run-dir", run_dir, "--resume")

    assert ended.exit_code == 0
    assert (run_dir / checkpoint.FILE_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--preset", "conv2-dense256"], "preset was compact, now conv2-dense256"),
        (["--resume", "--seed", "4"], "seed was 3, now 4"),
        (["--resume", "--limit", "600"], "limit was None, now 600"),
        ([], "already holds a run; continue it with --resume"),
    ],
)
def test_a_run_is_not_overwritten(run_dir: Path, invoke: Invoke, options: list[str], message: str) -> None:
    """Training in a folder with another run is rejected, and that run is unchanged."""
    before = (run_dir / checkpoint.FILE_NAME).read_bytes()

    ended = invoke("train", "--run-dir", run_dir, *options)

    assert (ended.exit_code, message in ended.stderr) == (RunError.exit_code, True), ended.output
    assert (run_dir / checkpoint.FILE_NAME).read_bytes() == before


def test_divergence_stops_with_the_last_good_checkpoint(tmp_path: Path, invoke: Invoke) -> None:
    """If the loss becomes NaN, training ends with exit code 5 and a hint, and the checkpoint has finite weights."""
    ended = invoke("train", "--run-dir", tmp_path, "--learning-rate", "1e30", "--limit", 600, "--epochs", 3)

    assert ended.exit_code == 5
    assert "the loss became nan in epoch" in ended.stderr
    assert "lower --learning-rate" in ended.stderr
    state = checkpoint.load(tmp_path)
    assert not state.finished
    assert all(np.all(np.isfinite(array)) for array in state.arrays.values())


def test_evaluate_reports(run_dir: Path, invoke: Invoke, test_images: Labelled) -> None:
    """``evaluate`` writes the confusion matrix as text, JSON and image, and an accuracy that agrees with it."""
    ended = invoke("evaluate", run_dir)

    assert ended.exit_code == 0
    assert "compact after 8 of 8 epochs" in ended.output
    report = json.loads((run_dir / "report" / "evaluation.json").read_text())
    confusion = np.array(report["test"]["confusion"])
    assert confusion.sum(axis=1).tolist() == np.bincount(test_images.labels, minlength=10).tolist()
    assert np.trace(confusion) / NUM_TEST == pytest.approx(report["test"]["accuracy"])
    assert f"test: accuracy {report['test']['accuracy']:.2%}" in ended.output
    assert (run_dir / "report" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    html = (run_dir / "report" / "index.html").read_text()
    assert f"{100 * report['test']['accuracy']:.2f} %" in html
    assert "seed 3" in html


def test_pictures_of_a_run(
    run_dir: Path, tmp_path: Path, invoke: Invoke, digits_path: Path, test_images: Labelled
) -> None:
    """A run answers for image files as its graph does. With a report of this graph it needs no dataset, and is calibrated as
    if the dataset were there.
    """
    for number, (image, label) in enumerate(zip(test_images.images[:60, ..., 0], test_images.labels, strict=False)):
        path = tmp_path / "pictures" / str(label) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("report"))
    before = invoke("evaluate", copy, "--pictures", tmp_path / "pictures")
    assert before.exit_code == 0, before.output
    written = (copy / "pictures" / "pictures.json").read_bytes()
    assert invoke("evaluate", copy).exit_code == 0

    ended = CliRunner().invoke(
        main, ["evaluate", str(copy), "--pictures", str(tmp_path / "pictures"), "--data", str(tmp_path / "missing.npz")]
    )

    assert ended.exit_code == 0, ended.output
    assert (copy / "pictures" / "pictures.json").read_bytes() == written
    opened = converted_model.convert_run(copy, digits_path)
    measured = measure(
        opened.session, replace(test_images, images=test_images.images[:60], labels=test_images.labels[:60])
    )
    assert json.loads(written)["overall"]["num_right"] == 60 - measured.num_wrong


def test_export_makes_a_bundle_that_the_service_opens(
    run_dir: Path, tmp_path: Path, invoke: Invoke, test_images: Labelled
) -> None:
    """The service's own code reads, verifies and opens the bundle, which gives the same labels as Keras."""
    ended = invoke("export", run_dir, "--models", tmp_path)
    assert ended.exit_code == 0, ended.output

    exported = bundle.read_bundle(tmp_path / "digits" / "1")
    outputs = Session(exported).run(test_images.images)

    logits = restore_network(checkpoint.load(run_dir))(test_images.images, training=False).numpy()
    assert np.array_equal(outputs.probabilities.argmax(axis=1), logits.argmax(axis=1))
    accuracy = np.mean(logits.argmax(axis=1) == test_images.labels)
    assert exported.manifest.quality["test_accuracy"] == pytest.approx(accuracy)
    assert f"accuracy {accuracy:.2%}" in ended.output


def test_report_of_another_graph_is_left_out(run_dir: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A bundle contains the run's report only if that was made from the same graph."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    assert invoke("evaluate", copy).exit_code == 0
    assert invoke("export", copy, "--models", tmp_path / "fresh").exit_code == 0
    path = copy / "report" / "evaluation.json"
    path.write_text(path.read_text().replace('"graph_sha256": "', '"graph_sha256": "0'))
    assert invoke("export", copy, "--models", tmp_path / "stale").exit_code == 0

    assert (tmp_path / "fresh" / "digits" / "1" / "report" / "index.html").is_file()
    assert not (tmp_path / "stale" / "digits" / "1" / "report").exists()


def test_manifest_describes_the_training(
    run_dir: Path, tmp_path: Path, invoke: Invoke, digits_path: Path, test_images: Labelled
) -> None:
    """The manifest has preset, seed, split, fingerprints, versions and the command, and no path of this machine."""
    invoke("export", run_dir, "--models", tmp_path)

    manifest = bundle.read_bundle(tmp_path / "digits" / "1").manifest
    assert manifest.labels == tuple("0123456789")
    assert (manifest.ink, manifest.framing) == ("light_on_dark", "mnist")
    training = manifest.training
    assert (training["preset"], training["seed"], training["epochs"]) == ("compact", 3, EPOCHS)
    assert (training["split"]["training_images"], training["split"]["validation_images"]) == (1_100, 100)
    assert training["data_sha256"] == {
        "training": splits.fingerprint(splits.read_training(digits_path)),
        "test": splits.fingerprint(test_images),
    }
    assert training["command"].startswith("digitserve-train train --preset compact --epochs 8 --seed 3")
    assert {"tensorflow", "keras", "tf2onnx", "onnx"} == training["versions"].keys()
    text = (tmp_path / "digits" / "1" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert str(digits_path.parent) not in text


def test_a_preset_from_a_file_is_exported_with_its_definition(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's definition, saved as the file that its command names, trains the same network again."""
    mine = replace(PRESETS["lenet5"], name="mine", layers=(Conv(4, stride=4), Flatten()))
    (tmp_path / "any.json").write_text(preset_to_json(mine))
    options = ("--preset", tmp_path / "any.json", "--limit", 240, "--epochs", 1, "--run-dir", tmp_path / "first")
    assert invoke("train", *options).exit_code == 0
    (tmp_path / "any.json").unlink()
    assert invoke("export", tmp_path / "first", "--models", tmp_path / "models").exit_code == 0

    training = bundle.read_bundle(tmp_path / "models" / "digits" / "1").manifest.training
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(json.dumps(training["definition"]))
    program, *command = training["command"].split()
    again = invoke(*command, "--run-dir", "again")

    assert (program, again.exit_code) == ("digitserve-train", 0)
    assert "--preset mine.json " in training["command"]
    first, second = checkpoint.load(Path("first")), checkpoint.load(Path("again"))
    assert first.settings == second.settings
    assert first.history[-1]["validation_loss"] == second.history[-1]["validation_loss"]


def test_ood_threshold_accepts_validation_images(
    run_dir: Path, tmp_path: Path, invoke: Invoke, digits_path: Path
) -> None:
    """At least 99.5 % of validation images score no higher than the threshold, measured with the bundle's graph."""
    invoke("export", run_dir, "--models", tmp_path)

    exported = bundle.read_bundle(tmp_path / "digits" / "1")
    validation = splits.split(splits.read_training(digits_path)).validation
    scores = Session(exported).run(validation.images).ood_score
    assert np.mean(scores <= exported.manifest.ood_threshold) >= 0.995


def test_exports_are_reproducible_and_numbered(run_dir: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Exporting again gives the next version with equal bytes; an existing version is never overwritten."""
    for _ in range(2):
        assert invoke("export", run_dir, "--models", tmp_path, "--name", "again").exit_code == 0
    rejected = invoke("export", run_dir, "--models", tmp_path, "--name", "again", "--version", 2)

    first, second = (tmp_path / "again" / version for version in ("1", "2"))
    for name in ("model.onnx", "golden.npz"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (rejected.exit_code, "never overwritten" in rejected.stderr) == (RunError.exit_code, True)
    assert model_folder.list_versions(tmp_path, "again") == [1, 2]


def test_no_bundle_of_an_unfinished_run(digits_path: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Exporting an unfinished run is rejected with the command that continues it."""
    resolved, split = start(digits_path, epochs=2, limit=120)
    checkpoint.save(tmp_path / "run", checkpoint.Checkpoint(resolved, 0, (), Training(resolved, split).arrays()))

    ended = invoke("export", tmp_path / "run", "--models", tmp_path / "models")

    assert ended.exit_code == RunError.exit_code
    assert "0 of 2 epochs; continue it with digitserve-train train --resume" in ended.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["../digits", "", ".hidden", "a/b"])
def test_a_models_name_is_a_plain_name(run_dir: Path, tmp_path: Path, invoke: Invoke, name: str) -> None:
    """A model name that is a path, empty or hidden is rejected."""
    ended = invoke("export", run_dir, "--models", tmp_path / "models", "--name", name)

    assert (ended.exit_code, "not a valid model name" in ended.stderr) == (RunError.exit_code, True)


def test_other_images_are_rejected(run_dir: Path, digits_path: Path, tmp_path: Path) -> None:
    """A run can only be evaluated with the images that it was trained on."""
    with np.load(digits_path) as stored:
        arrays = dict(stored)
    arrays["y_train"] = (arrays["y_train"] + 1) % 10
    np.savez(tmp_path / "other.npz", allow_pickle=False, **arrays)

    with pytest.raises(DataError, match="the run was trained on"):
        converted_model.convert_run(run_dir, tmp_path / "other.npz")


def test_report_that_cannot_be_written(run_dir: Path, tmp_path: Path, invoke: Invoke) -> None:
    """If the report cannot be written, the command ends with a message and no traceback."""
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / checkpoint.FILE_NAME).write_bytes((run_dir / checkpoint.FILE_NAME).read_bytes())
    (copy / "report").write_text("a file where the folder should be")

    ended = invoke("evaluate", copy)

    assert (ended.exit_code, "File exists" in ended.stderr) == (RunError.exit_code, True)


def perturbed(network: keras.Model, amount: float) -> keras.Model:
    """Add up to ``amount`` to the last biases of a network."""
    network.weights[-1].assign_add(np.linspace(0, amount, 10))
    return network


def test_failed_parity_writes_nothing(run_dir: Path, digits_path: Path, tmp_path: Path, test_images: Labelled) -> None:
    """If the outputs of Keras and the graph differ on test images, because of other weights, no bundle is written."""
    opened = converted_model.convert_run(run_dir, digits_path)
    other = replace(opened, keras_function=ServingFunction(perturbed(restore_network(opened.state), 0.5), 1.0))

    with pytest.raises(ParityError, match=r"largest difference of a probability 0\.\d+.* of 200 labels differ"):
        publish(other, test_images, Destination(tmp_path / "models"))

    assert not (tmp_path / "models").exists()


def test_failed_export_reports_differences(
    run_dir: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the graph has wrong weights, the command ends with exit code 6 and the differences, and writes nothing."""
    wrong = ServingFunction(perturbed(restore_network(checkpoint.load(run_dir)), 5.0), 1.0)
    monkeypatch.setattr(converted_model, "convert", lambda _: convert(wrong))

    ended = invoke("export", run_dir, "--models", tmp_path / "models")

    assert ended.exit_code == ParityError.exit_code
    assert "probabilities differ by 0." in ended.stderr
    assert not (tmp_path / "models").exists()


def test_measured_accuracy_and_loss(run_dir: Path, digits_path: Path, test_images: Labelled) -> None:
    """Accuracy and loss equal those that Keras computes for the same network with the fitted temperature."""
    opened = converted_model.convert_run(run_dir, digits_path)

    measured = measure(opened.session, test_images)

    logits = restore_network(opened.state)(test_images.images, training=False) / opened.temperature
    losses = keras.losses.sparse_categorical_crossentropy(test_images.labels, logits, from_logits=True)
    assert measured.loss == pytest.approx(float(np.mean(losses)), rel=1e-4)
    assert measured.accuracy == pytest.approx(np.mean(np.argmax(logits, axis=1) == test_images.labels))


@pytest.fixture
def wide_int8_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow two labels to differ: of 100 images one is 1 %, and rounding differs between processors."""
    monkeypatch.setattr(precision, "MAX_ACCURACY_LOSS", 0.02)
    monkeypatch.setattr(precision, "MAX_OTHER_LABELS", 0.02)


def test_int8_bundle_is_the_same_network(
    run_dir: Path, tmp_path: Path, invoke: Invoke, digits_path: Path, test_images: Labelled, wide_int8_limits: None
) -> None:
    """An int8 bundle opens in the service, computes in int8, and gives at least 99 % of images the label of float32.
    Its golden outputs, quality and threshold are measured with the int8 graph; the manifest has the differences to
    float32.
    """
    ended = invoke("export", run_dir, "--models", tmp_path, "--precision", "int8")
    assert ended.exit_code == 0, ended.output

    exported = bundle.read_bundle(tmp_path / "digits" / "1")
    opened, session = converted_model.convert_run(run_dir, digits_path), Session(exported)
    images = np.concatenate([opened.split.training.images, test_images.images])
    got, expected = session.run(images), opened.session.run(images)
    assert b"QuantizeLinear" in exported.graph
    assert np.mean(got.probabilities.argmax(axis=1) == expected.probabilities.argmax(axis=1)) >= 0.99
    assert np.array_equal(exported.golden.probabilities, session.run(exported.golden.images).probabilities)
    assert not np.array_equal(exported.golden.probabilities, opened.golden.probabilities)
    manifest, scores = exported.manifest, session.run(opened.split.validation.images).ood_score
    assert manifest.ood_threshold == np.quantile(scores, 0.995, method="inverted_cdf")
    assert (manifest.golden_tolerance, manifest.training["precision"]) == (2e-3, "int8")
    assert manifest.training["quantization"]["calibration_images"] == 500
    measured = precision.compare(opened.session, session, test_images)
    quality = manifest.quality
    assert quality["test_accuracy"] == measured.int8_accuracy
    assert quality["float32_test_accuracy"] == measured.float32_accuracy
    assert quality["int8_test_mean_difference"] == measured.mean_difference > 0
    assert quality["int8_test_largest_difference"] == measured.largest_difference
    assert quality["int8_test_other_labels"] == measured.num_other_labels


def test_int8_that_costs_accuracy_writes_nothing(
    run_dir: Path, digits_path: Path, tmp_path: Path, test_images: Labelled
) -> None:
    """An int8 graph calibrated on blank images is rejected with all differences, and no bundle is written."""
    opened = converted_model.convert_run(run_dir, digits_path)
    training = opened.split.training
    blank = replace(opened.split, training=replace(training, images=np.zeros_like(training.images)))

    with pytest.raises(ParityError, match=r"int8 graph differs too much .* of 100 labels differ"):
        publish(replace(opened, split=blank), test_images, Destination(tmp_path / "models"), precision="int8")

    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "change",
    [{"int8_accuracy": 0.9894}, {"mean_difference": np.nan}, {"largest_difference": 0.6}, {"num_other_labels": 6}],
)
def test_each_int8_difference_is_limited(change: dict[str, float]) -> None:
    """Differences at their limits are accepted; one difference beyond its limit is rejected."""
    allowed = precision.Difference(0.99, 0.9895, 0.5, 5e-3, 5, 1_000)
    precision.require(allowed)

    with pytest.raises(ParityError, match="nothing was written: export with --precision float32"):
        precision.require(replace(allowed, **change))


def test_quantisation_is_reproducible_and_leaves_no_files(run_dir: Path, digits_path: Path, tmp_path: Path) -> None:
    """In another process, quantisation gives the same bytes, prints nothing, and leaves no files and no telemetry."""
    opened = converted_model.convert_run(run_dir, digits_path)
    calibration, home = opened.split.training.images[:20], tmp_path / "home"
    home.mkdir()
    (tmp_path / "graph").write_bytes(opened.graph)
    np.save(tmp_path / "images.npy", calibration)
    program = (
        "import pathlib, sys, numpy; from digitserve_training.export.quantize import quantize; "
        "folder = pathlib.Path(sys.argv[1]); images = numpy.load(folder / 'images.npy'); "
        "(folder / 'int8').write_bytes(quantize((folder / 'graph').read_bytes(), images))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "HOME"))}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-B", "-c", program, str(tmp_path)],
        env=kept | {"HOME": str(home), "TMPDIR": str(home)}, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "int8").read_bytes() == quantize(opened.graph, calibration)
    assert not list(home.rglob("*"))


def test_keras_fetches_mnist_when_no_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --data and DIGITSERVE_MNIST, MNIST comes from Keras, and is checked in the same way."""
    arrays = real_digits()
    monkeypatch.delenv(splits.ENVIRONMENT, raising=False)
    parts = ((arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"]))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: parts)

    assert (len(splits.read_training()), len(splits.read_test())) == (NUM_TRAINING, NUM_TEST)


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Keras cannot download MNIST, the error names the two ways to provide a file."""

    def unreachable() -> None:
        raise OSError("no route to host")

    monkeypatch.delenv(splits.ENVIRONMENT, raising=False)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", unreachable)

    with pytest.raises(
        DataError, match=r"no route to host\..* give its path with --data PATH or DIGITSERVE_MNIST: an npz"
    ):
        splits.read_training()
