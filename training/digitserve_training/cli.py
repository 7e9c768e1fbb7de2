"""The command ``digitserve-train``: train, evaluate, export, tune.

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

from digitserve_training.data import splits
from digitserve_training.data.datasets import DATASETS
from digitserve_training.errors import TrainingError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.settings import DEFAULT_SEED, PRECISIONS, Asked
from digitserve_training.model import preset_files
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS
from digitserve_training.tune.space import GROUPS

PACKAGES = (
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "matplotlib",
    "tqdm",
    "sklearn",
    "scipy",
    "jinja2",
    "optuna",
    "tensorboard",
)
INTERRUPTED = 130


class _PresetName(click.ParamType[str]):
    """The name of a preset, or of a file with one; whether the file holds one is seen when it is read."""

    name = "preset"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is neither."""
        if value not in PRESETS and not value.endswith(preset_files.SUFFIX):
            self.fail(
                f"'{value}' is neither a preset ({', '.join(PRESETS)}) nor named ...{preset_files.SUFFIX}", param, ctx
            )
        return value


_DATA = click.option(
    "--data",
    "data_path",
    type=click.Path(path_type=Path),
    help="File or folder of the dataset as it is published: for MNIST an npz file laid out like keras.datasets.mnist, or "
    "a folder of idx files; for folder, one sub-folder of pictures a class. If not given, for MNIST what the environment "
    f"variable {splits.ENVIRONMENT} names, else Keras's cache, which is filled by a download, where Keras has the dataset.",
)
_THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that TensorFlow computes with; all processors if not given."
)
_PRESET = click.option(
    "--preset",
    type=_PresetName(),
    metavar="NAME|FILE.json",
    help=f"Network and recipe: {', '.join(PRESETS)}, or a file that tune wrote; {DEFAULT_PRESET} if not given.",
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
        except KeyboardInterrupt:
            # Nothing is lost where a command does not say otherwise itself: all that it writes, it writes whole.
            click.echo("\ninterrupted", err=True)
            sys.exit(INTERRUPTED)

    return checked


@click.group()
@click.version_option(package_name="digitserve", prog_name="digitserve-train")
def main() -> None:
    """Train a network on MNIST or other images, evaluate it, and export it as a bundle that digitserve serves."""


@main.command("train")
@_PRESET
@click.option("--dataset", type=click.Choice(list(DATASETS)), help=f"What is learned; {splits.MNIST} if not given.")
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
@click.option(
    "--teacher",
    "teacher_dirs",
    multiple=True,
    type=click.Path(),
    metavar="RUN",
    help="Learn from the network of this finished run beside the labels; several are asked for their mean.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir; its settings need not be repeated.")
@_THREADS
@_command
def train_run(
    data_path: Path | None,
    run_dir: Path | None,
    threads: int | None,
    teacher_dirs: tuple[str, ...],
    *,
    resume: bool,
    **asked: Any,
) -> None:
    """Train a network; a checkpoint after each epoch, so that it can be stopped and resumed at any time.

    One device by default, all GPUs of the machine where there are several, or the cluster that TF_CONFIG describes:
    then start the same command on every worker, with a run folder that all of them see.
    """
    folder = run_dir or Path("runs") / preset_files.find(asked["preset"]).name
    _use_threads(threads)
    from digitserve_training.fit import distribute, teachers  # noqa: PLC0415 - TensorFlow
    from digitserve_training.fit.train import train  # noqa: PLC0415 - TensorFlow

    strategy = distribute.strategy()
    wanted = Asked(**asked, teachers=teachers.find(teacher_dirs) or None)
    stored = checkpoint.load(folder).settings if resume else None
    labelled = splits.read_training(data_path, wanted.dataset or (stored.dataset if stored else splits.MNIST))
    sha256 = splits.fingerprint(labelled)
    chosen = settings.resume(wanted, stored, sha256) if stored else settings.start(wanted, labelled.names, sha256)
    held_out = settings.preset_of(chosen).recipe.validation
    try:
        with strategy.scope():
            state = train(chosen, splits.split(labelled, chosen.limit, held_out), folder, resume=resume)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; {_how_to_resume(folder)}", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{state.epoch} epochs done, in {folder}; next: digitserve-train evaluate {folder}")


@main.command("keep")
@_RUN
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@_command
def keep_teacher(run_dir: Path, folder: Path) -> None:
    """Write what a finished run can teach into FOLDER: a fraction of its size, good for --teacher and nothing else."""
    from digitserve_training.fit import teachers  # noqa: PLC0415 - TensorFlow

    teachers.keep(run_dir, folder)
    click.echo(f"kept in {folder}; next: digitserve-train train --teacher {folder}")


@main.command("evaluate")
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also keep the figures as rows of this JSON file, and show the networks in it beside this one.",
)
@_DATA
@_THREADS
@_command
def evaluate_runs(
    run_dirs: tuple[Path, ...], results: Path | None, data_path: Path | None, threads: int | None
) -> None:
    """Measure networks on validation and test images and on what is made of them; write reports into RUN/report."""
    _use_threads(threads)
    from digitserve_training.evaluate import report  # noqa: PLC0415 - TensorFlow

    for text in report.report(run_dirs, data_path, results):
        click.echo(text)


@main.command("export")
@_RUN
@_DATA
@click.option(
    "--models", type=click.Path(path_type=Path), default=Path("models"), show_default=True, help="Folder of all models."
)
@click.option("--name", help="The model's name; digits for MNIST and its like, else the dataset's, if not given.")
@click.option("--version", type=click.IntRange(min=1), help="The bundle's version; the next free one if not given.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="What the graph computes in; int8 is refused where it costs more than 0.05 % of accuracy.",
)
@_THREADS
@_command
def export_run(run_dir: Path, data_path: Path | None, threads: int | None, precision: Any, **destination: Any) -> None:
    """Convert a finished run to ONNX, check it against Keras, and write a bundle; or write nothing and say why."""
    _use_threads(threads)
    from digitserve_training.export.export import Destination, export  # noqa: PLC0415 - TensorFlow

    exported = export(run_dir, data_path, Destination(**destination), precision)
    for label, text in exported.figures().items():
        click.echo(f"{label:>12}  {text}")


@main.command("tune")
@_PRESET
@_DATA
@click.option(
    "--study-dir", type=click.Path(path_type=Path), help="Folder of the study; runs/tune-PRESET if not given."
)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Finished trials in all.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs of each trial.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help=f"Of everything random; {DEFAULT_SEED} if not given.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only so many images of the training set.")
@click.option(
    "--vary",
    type=click.Choice(list(GROUPS)),
    multiple=True,
    default=list(GROUPS),
    show_default=True,
    help="What may differ from the preset, where the preset has it; may be given several times.",
)
@click.option("--max-multiply-adds", type=click.IntRange(min=1), help="Train no network that takes more for one image.")
@click.option("--max-parameters", type=click.IntRange(min=1), help="Train no network that stores more.")
@_THREADS
@_command
def tune_preset(
    data_path: Path | None,
    study_dir: Path | None,
    trials: int,
    vary: tuple[str, ...],
    max_multiply_adds: int | None,
    max_parameters: int | None,
    threads: int | None,
    **asked: Any,
) -> None:
    """Search for better values on validation images; stop it at any time, and go on with the same command."""
    _use_threads(threads)
    from digitserve_training.tune import search  # noqa: PLC0415 - TensorFlow

    labelled = splits.read_training(data_path)
    chosen = settings.start(Asked(**asked), labelled.names, splits.fingerprint(labelled))
    folder = study_dir or Path("runs") / f"tune-{chosen.preset}"
    split = splits.split(labelled, chosen.limit, settings.preset_of(chosen).recipe.validation)
    try:
        ended = search.tune(chosen, split, search.Search(vary, max_multiply_adds, max_parameters), folder, trials)
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted; {search.num_done(folder)} of {trials} trials are done; go on with the same command",
            err=True,
        )
        sys.exit(INTERRUPTED)
    click.echo(search.render(ended))
    click.echo(f"next: digitserve-train train --preset {search.require_preset(folder)}")


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
