"""The command ``digitserve-train``: train, evaluate, export.

Importing this module needs no TensorFlow, so that help is instant and a missing extra is explained; each command imports
what it needs when it runs. Exit status: 0 done; 1 a file cannot be written; 2 wrong usage, or the training extra is
missing; 3 to 7 as ``errors`` has them; 130 interrupted.
"""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from digitserve_training import checkpoint, data, settings
from digitserve_training.errors import TrainingError
from digitserve_training.presets import DEFAULT_PRESET, PRESETS
from digitserve_training.settings import DEFAULT_SEED, PRECISIONS, Asked

PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx", "matplotlib", "tensorboard", "tqdm")
INTERRUPTED = 130

_DATA = click.option(
    "--data",
    "data_path",
    type=click.Path(path_type=Path),
    help="MNIST as an npz file laid out like keras.datasets.mnist; if not given, the file that the environment variable "
    f"{data.ENVIRONMENT} names, else Keras's cache, which is filled by a download.",
)
_THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that TensorFlow computes with; all processors if not given."
)
_RUN = click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn what goes wrong into a message and an exit status; check for the training extra first."""

    @wraps(function)
    def checked(**options: Any) -> None:
        _require_packages()
        try:
            function(**options)
        except TrainingError as error:
            click.echo(f"digitserve-train: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            click.echo(f"digitserve-train: {error.filename or 'a file'}: {error.strerror or error}", err=True)
            sys.exit(1)

    return checked


@click.group()
@click.version_option(package_name="digitserve", prog_name="digitserve-train")
def main() -> None:
    """Train a network on MNIST, evaluate it, and export it as a bundle that digitserve serves."""


@main.command("train")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"Network and recipe; {DEFAULT_PRESET} if not given.")
@_DATA
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of this run; runs/PRESET if not given.")
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Passes over the training images; the preset's if not given."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help=f"Of everything random; {DEFAULT_SEED} if not given.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Peak; the preset's if not given.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only so many images of the training set.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help=f"What layers compute with while training; {PRECISIONS[0]} if not given.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir; its settings need not be repeated.")
@_THREADS
@_command
def train_run(data_path: Path | None, run_dir: Path | None, threads: int | None, *, resume: bool, **asked: Any) -> None:
    """Train a network; a checkpoint after each epoch, so that it can be stopped and resumed at any time.

    One device by default, all GPUs of the machine where there are several, or the cluster that TF_CONFIG describes:
    then start the same command on every worker, with a run folder that all of them see.
    """
    folder = run_dir or Path("runs") / (asked["preset"] or DEFAULT_PRESET)
    _use_threads(threads)
    from digitserve_training import distribute  # noqa: PLC0415 - TensorFlow
    from digitserve_training.train import train  # noqa: PLC0415 - TensorFlow

    strategy = distribute.strategy()
    labelled = data.read_training(data_path)
    sha256, wanted = data.fingerprint(labelled), Asked(**asked)
    chosen = (
        settings.resume(wanted, checkpoint.load(folder).settings, sha256)
        if resume
        else settings.start(wanted, labelled.names, sha256)
    )
    held_out = settings.preset_of(chosen).recipe.validation
    try:
        with strategy.scope():
            state = train(chosen, data.split(labelled, chosen.limit, held_out), folder, resume=resume)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; {_how_to_resume(folder)}", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{state.epoch} epochs done, in {folder}; next: digitserve-train evaluate {folder}")


@main.command("evaluate")
@_RUN
@_DATA
@_THREADS
@_command
def evaluate_run(run_dir: Path, data_path: Path | None, threads: int | None) -> None:
    """Measure a run's network on validation and test images, and write the report into RUN/report."""
    _use_threads(threads)
    from digitserve_training import candidate, evaluate, report  # noqa: PLC0415 - TensorFlow

    opened = candidate.open_candidate(run_dir, data_path)
    click.echo(f"{opened.state.settings.preset} after {opened.state.epoch} of {opened.state.settings.epochs} epochs\n")
    measurements = evaluate.evaluate(opened, data_path)
    for name, measurement in measurements.items():
        click.echo(report.render(name, measurement) + "\n")
    click.echo(f"report: {report.write(run_dir, measurements)}")


@main.command("export")
@_RUN
@_DATA
@click.option(
    "--models", type=click.Path(path_type=Path), default=Path("models"), show_default=True, help="Folder of all models."
)
@click.option("--name", default="digits", show_default=True, help="The model's name.")
@click.option("--version", type=click.IntRange(min=1), help="The bundle's version; the next free one if not given.")
@_THREADS
@_command
def export_run(run_dir: Path, data_path: Path | None, threads: int | None, **destination: Any) -> None:
    """Convert a finished run to ONNX, check it against Keras, and write a bundle; or write nothing and say why."""
    _use_threads(threads)
    from digitserve_training.export import Destination, export  # noqa: PLC0415 - TensorFlow

    exported = export(run_dir, data_path, Destination(**destination))
    for label, text in exported.figures().items():
        click.echo(f"{label:>12}  {text}")


def _require_packages() -> None:
    missing = [package for package in PACKAGES if not _installed(package)]
    if missing:
        click.echo(
            f"digitserve-train needs {', '.join(missing)}, which serving does without; "
            "install them with: pip install 'digitserve[training]'",
            err=True,
        )
        sys.exit(2)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _use_threads(threads: int | None) -> None:
    from digitserve_training._tensorflow import use_threads  # noqa: PLC0415 - TensorFlow

    if threads is not None:
        use_threads(threads)


def _how_to_resume(folder: Path) -> str:
    if not checkpoint.exists(folder):
        return "nothing was begun"
    state = checkpoint.load(folder)
    return (
        f"{state.epoch} of {state.settings.epochs} epochs are kept; "
        f"go on with: digitserve-train train --resume --run-dir {folder}"
    )


if __name__ == "__main__":
    main()
