"""The command ``digitserve-train tune``.

Added to the others in ``commands``. This module does not import TensorFlow, which is imported when the command runs.
"""

from pathlib import Path
from typing import Any

import click

from digitserve_training.cli.options import DATA, LIMIT, PRESET, SEED, STROKES, THREADS, Command, option
from digitserve_training.cli.running import interrupted, read_pen, training_command, use_threads
from digitserve_training.data import splits
from digitserve_training.fit import pen_images, settings
from digitserve_training.fit.settings import Options
from digitserve_training.model import preset_files
from digitserve_training.tune import space

LIMITS = ("max_multiply_adds", "max_parameters", "max_relative_time")
"""Options that become limits of the search."""


@click.command("tune", cls=Command)
@PRESET
@option(
    "--epochs", group="Training", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs per trial."
)
@SEED
@DATA
@STROKES
@LIMIT
@option(
    "--study-dir",
    group="Search",
    type=click.Path(path_type=Path),
    help="Folder of the study. Default: runs/tune-PRESET.",
)
@option(
    "--trials",
    group="Search",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Total number of finished trials.",
)
@option(
    "--vary",
    group="Search",
    type=click.Choice(list(space.GROUPS)),
    multiple=True,
    help="Group of hyperparameters to vary, if the preset has them; repeat for several groups. Default: all except "
    f"{space.SHAPE}; with the objective time: {space.SHAPE}.",
)
@option(
    "--objectives",
    group="Search",
    type=click.Choice(["loss", "loss,time"]),
    default="loss",
    show_default=True,
    help="What to minimise: the loss on validation images, or that and the time of the network in onnxruntime on one "
    "thread in batches of 64.",
)
@option(
    "--max-multiply-adds",
    group="Search",
    type=click.IntRange(min=1),
    help="Skip networks with more multiply-adds per image.",
)
@option("--max-parameters", group="Search", type=click.IntRange(min=1), help="Skip networks with more parameters.")
@option(
    "--max-relative-time",
    group="Search",
    type=click.FloatRange(0, min_open=True),
    help="Skip networks that take longer, as a multiple of the time of --preset: 0.5 is half of its time.",
)
@THREADS
@training_command
def tune_preset(
    data_path: Path | None,
    strokes_path: Path | None,
    study_dir: Path | None,
    trials: int,
    vary: tuple[str, ...],
    objectives: str,
    threads: int | None,
    **values: Any,
) -> None:
    """Search for better hyperparameters, or for networks that are better or faster.

    The result is the trial with the lowest loss on validation images; with --objectives loss,time it is the Pareto front:
    the networks for which no other one has a lower loss in the same time or less. The search can be stopped at any time;
    the same command continues it.
    """
    use_threads(threads)
    from digitserve_training.tune import results, search  # noqa: PLC0415 - TensorFlow

    limits = {name: values.pop(name) for name in LIMITS}
    minimised = tuple(objectives.split(","))
    wanted = search.Search(vary or space.default_groups(minimised), objectives=minimised, **limits)
    labelled = splits.read_training(data_path)
    pen = read_pen(strokes_path, preset_files.find_preset(values["preset"]), splits.MNIST)
    base = settings.resolve(
        Options(**values), labelled.names, splits.fingerprint(labelled), pen.fingerprint if pen else None
    )
    folder = study_dir or Path("runs") / f"tune-{base.preset.name}"
    split = pen_images.add_pen(splits.split(labelled, base.limit, base.recipe.validation), pen)
    try:
        found = search.tune(base, split, wanted, folder, trials)
    except KeyboardInterrupt:
        done = results.num_finished(folder)
        interrupted(f"; {done} of {trials} trials are finished; continue with the same command")
    click.echo(results.render_table(found))
    for path in found.paths(folder):
        click.echo(f"next: digitserve-train train --preset {path}")
