"""The commands of ``digitserve-train``: train, keep, evaluate, export; ``tune`` has a module of its own.

This module does not import TensorFlow, so help is fast and a missing extra can be explained; each command imports
what it needs when it runs. ``training_command`` turns errors into a message and an exit code.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from digitserve_training.cli.options import (
    DATA,
    EXIT_CODES,
    LIMIT,
    PRESET,
    RUN,
    SEED,
    STROKES,
    THREADS,
    Command,
    option,
)
from digitserve_training.cli.running import interrupted, read_pen, training_command, use_threads
from digitserve_training.cli.tune import tune_preset
from digitserve_training.data import splits
from digitserve_training.data.datasets import DATASETS
from digitserve_training.fit import checkpoint, pen_images, settings
from digitserve_training.fit.settings import PRECISIONS, Options
from digitserve_training.model import preset_files


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="digitserve", prog_name="digitserve-train")
def main() -> None:
    """Train a network on MNIST or other images, evaluate it, and export it as a model bundle for digitserve."""


@main.command("train", cls=Command)
@PRESET
@option("--epochs", group="Training", type=click.IntRange(min=1), help="Number of epochs. Default: the preset's.")
@SEED
@option(
    "--learning-rate",
    group="Training",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate. Default: the preset's.",
)
@option(
    "--precision",
    group="Training",
    type=click.Choice(PRECISIONS),
    help=f"Number format in which layers compute during training. Default: {PRECISIONS[0]}.",
)
@option(
    "--teacher",
    "teacher_dirs",
    group="Training",
    multiple=True,
    type=click.Path(),
    metavar="RUN",
    help="Folder of a finished run whose network is a teacher (knowledge distillation); repeat to average several teachers.",
)
@option("--dataset", group="Data", type=click.Choice(list(DATASETS)), help=f"Dataset. Default: {splits.MNIST}.")
@DATA
@STROKES
@LIMIT
@option("--run-dir", group="Run", type=click.Path(path_type=Path), help="Folder of this run. Default: runs/PRESET.")
@option(
    "--resume",
    group="Run",
    is_flag=True,
    help="Continue the run in --run-dir with the settings that it was started with.",
)
@THREADS
@training_command
def train_run(
    data_path: Path | None,
    strokes_path: Path | None,
    run_dir: Path | None,
    threads: int | None,
    teacher_dirs: tuple[str, ...],
    *,
    resume: bool,
    **values: Any,
) -> None:
    """Train a network, with a checkpoint after each epoch. It can be stopped and resumed at any time.

    Uses one device, all GPUs of this machine if there are several, or the cluster in the environment variable
    TF_CONFIG. For a cluster, start the same command on every worker, with a run folder that all of them can read.
    """
    folder = run_dir or Path("runs") / preset_files.find_preset(values["preset"]).name
    use_threads(threads)
    from digitserve_training.fit import distribute, teachers  # noqa: PLC0415 - TensorFlow
    from digitserve_training.fit.train import train  # noqa: PLC0415 - TensorFlow

    strategy = distribute.choose_strategy()
    options = Options(**values, teachers=teachers.identify(teacher_dirs) or None)
    stored = checkpoint.load(folder).settings if resume else None
    dataset = options.dataset or (stored.dataset if stored else splits.MNIST)
    labelled = splits.read_training(data_path, dataset)
    sha256 = splits.fingerprint(labelled)
    pen = read_pen(strokes_path, stored.preset if stored else preset_files.find_preset(options.preset), dataset)
    strokes_sha256 = pen.fingerprint if pen else None
    if stored is None:
        resolved = settings.resolve(options, labelled.names, sha256, strokes_sha256)
    else:
        resolved = settings.resolve_resumed(options, stored, sha256, strokes_sha256)
    split = pen_images.add_pen(splits.split(labelled, resolved.limit, resolved.recipe.validation), pen)
    try:
        with strategy.scope():
            state = train(resolved, split, folder, resume=resume)
    except KeyboardInterrupt:
        interrupted(_how_to_resume(folder))
    click.echo(f"{state.epoch} epochs finished, in {folder}; next: digitserve-train evaluate {folder}")


@main.command("keep", cls=Command)
@RUN
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@training_command
def keep_teacher(run_dir: Path, folder: Path) -> None:
    """Write a small copy of a finished run, RUN, into FOLDER. It can only be used with --teacher."""
    use_threads(None)
    from digitserve_training.fit import teachers  # noqa: PLC0415 - TensorFlow

    teachers.save_teacher(run_dir, folder)
    click.echo(f"teacher written to {folder}; next: digitserve-train train --teacher {folder}")


@main.command("evaluate", cls=Command)
@click.argument("run_dirs", metavar="[RUN...]", nargs=-1, type=click.Path(path_type=Path))
@option(
    "--pictures",
    group="Own images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Evaluate on these image files and on nothing else; RUN is one run or one bundle, such as models/digits/5. FOLDER "
    "contains labels.csv with the columns file, label and optionally set (no label: not a single digit), or one "
    "sub-folder of images per label (any other name: not a single digit).",
)
@option(
    "--numbers",
    group="Numbers",
    type=click.Path(path_type=Path),
    metavar="FOLDER|FILE.csv",
    help="Read these image files of numbers and nothing else; RUN is one run or one bundle. FOLDER contains numbers.csv with "
    "the columns file, text and optionally set; slashes in a text separate lines.",
)
@option(
    "--simulated",
    group="Numbers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Read N synthetic images of each kind, made from test images of MNIST: fields, pages and ruled cells; RUN is one "
    "run or one bundle.",
)
@option(
    "--set",
    "sets",
    group="Own images",
    multiple=True,
    metavar="NAME",
    help="With --pictures or --numbers: evaluate only on this set of the table; repeat for several.",
)
@option(
    "--address",
    group="Own images",
    metavar="HOST:PORT",
    help="With --pictures: evaluate the service that runs at this address, in place of a RUN.",
)
@option(
    "--results",
    group="Output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file of results: a row per run is added to it, and the report compares the run with its other rows. With "
    "--numbers or --simulated: a row per set or kind is added to a file of its own.",
)
@option(
    "--output",
    group="Output",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --pictures, --numbers or --simulated: folder of the report. Default: RUN/pictures or RUN/numbers for a run, "
    "else ./pictures or ./numbers.",
)
@DATA
@THREADS
@training_command
def evaluate_runs(
    run_dirs: tuple[Path, ...],
    results: Path | None,
    data_path: Path | None,
    threads: int | None,
    pictures: Path | None,
    numbers: Path | None,
    simulated: int | None,
    **own_images: Any,
) -> None:
    """Evaluate networks on validation, test, corrupted and out-of-distribution images; write a report into each RUN/report.

    With --pictures, measure one run, bundle or running service on your own image files instead. With --numbers or
    --simulated, measure how well it reads whole numbers.
    """
    if sum(chosen is not None for chosen in (pictures, numbers, simulated)) > 1:
        raise click.UsageError("--pictures, --numbers and --simulated exclude each other")
    if numbers is not None or simulated is not None:
        texts = _read_numbers(run_dirs, numbers or simulated, data_path, results, threads, **own_images)
    elif pictures is not None:
        if results is not None:
            raise click.UsageError(
                "--results and --pictures exclude each other: the file is for results on test images"
            )
        texts = _evaluate_own_images(run_dirs, pictures, data_path, threads, **own_images)
    else:
        for option_name, name in (("--set", "sets"), ("--address", "address"), ("--output", "output")):
            if own_images[name]:
                raise click.UsageError(f"{option_name} needs --pictures{'' if name == 'address' else ' or --numbers'}")
        if not run_dirs:
            raise click.UsageError("Missing argument 'RUN...'.")
        use_threads(threads)
        from digitserve_training.evaluate import report  # noqa: PLC0415 - TensorFlow

        texts = report.report(run_dirs, data_path, results)
    for text in texts:
        click.echo(text)


def _evaluate_own_images(
    run_dirs: tuple[Path, ...],
    pictures: Path,
    data_path: Path | None,
    threads: int | None,
    *,
    sets: tuple[str, ...],
    address: str | None,
    output: Path | None,
) -> Iterator[str]:
    """Evaluate one run, bundle or running service on image files."""
    if len(run_dirs) + (address is not None) != 1:
        raise click.UsageError("--pictures needs exactly one RUN, bundle or --address")
    if run_dirs and checkpoint.exists(run_dirs[0]):
        use_threads(threads)
    from digitserve_training.evaluate.pictures import report  # noqa: PLC0415 - loads gRPC

    return report.report(address or run_dirs[0], pictures, sets, data_path, output)


def _read_numbers(
    run_dirs: tuple[Path, ...],
    source: Path | int | None,
    data_path: Path | None,
    results: Path | None,
    threads: int | None,
    *,
    sets: tuple[str, ...],
    address: str | None,
    output: Path | None,
) -> Iterator[str]:
    """Let one run or bundle read numbers: image files or, if ``source`` is a number, synthetic images."""
    if len(run_dirs) != 1 or address:
        raise click.UsageError("--numbers and --simulated need exactly one RUN or bundle, and no --address")
    if checkpoint.exists(run_dirs[0]):
        use_threads(threads)
    from digitserve_training.evaluate.numbers import report  # noqa: PLC0415 - loads gRPC

    if isinstance(source, Path):
        return report.report_files(run_dirs[0], source, sets, data_path, output, results)
    if sets:
        raise click.UsageError("--set needs --pictures or --numbers")
    assert source is not None
    return report.report_simulated(run_dirs[0], source, data_path, output, results)


@main.command("export", cls=Command)
@RUN
@DATA
@option(
    "--models",
    group="Output",
    type=click.Path(path_type=Path),
    default=Path("models"),
    show_default=True,
    help="Folder of all models.",
)
@option(
    "--name",
    group="Output",
    help="Name of the model. Default: 'digits' for datasets of digits, otherwise the name of the dataset.",
)
@option(
    "--version", group="Output", type=click.IntRange(min=1), help="Version of the bundle. Default: the highest plus 1."
)
@option(
    "--precision",
    group="Output",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="Number format in which the graph computes; int8 is rejected if it costs more than 0.05 percentage points of "
    "validation accuracy.",
)
@THREADS
@training_command
def export_run(
    run_dir: Path,
    data_path: Path | None,
    threads: int | None,
    precision: Any,
    **destination: Any,
) -> None:
    """Convert a finished run, RUN, to ONNX, and write a model bundle.

    The bundle is written only if the ONNX graph gives the same outputs as Keras.
    """
    use_threads(threads)
    from digitserve_training.export.export import Destination, export  # noqa: PLC0415 - TensorFlow

    exported = export(run_dir, data_path, Destination(**destination), precision)
    for title, text in exported.summary().items():
        click.echo(f"{title:>12}  {text}")


main.add_command(tune_preset)


def _how_to_resume(folder: Path) -> str:
    if not checkpoint.exists(folder):
        return "; nothing was trained"
    state = checkpoint.load(folder)
    return (
        f"; {state.epoch} of {state.settings.epochs} epochs are saved; "
        f"continue with: digitserve-train train --resume --run-dir {folder}"
    )
