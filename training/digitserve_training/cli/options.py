"""Options of ``digitserve-train`` that several commands share, and help that lists options in groups.

Used by ``commands``. Needs no TensorFlow.
"""

from functools import partial
from pathlib import Path
from typing import Any

import click

from digitserve_training.data import pen_split, splits, unipen
from digitserve_training.fit.settings import DEFAULT_SEED
from digitserve_training.model import preset_files
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS

EXIT_CODES = (
    "Exit codes: 0 success; 1 a file cannot be read or written; 2 wrong usage, or the training extra is missing; "
    "3 the data cannot be used; 4 the run, bundle or service cannot be used; 5 the loss is not finite; 6 the exported graph gives "
    "other outputs than the network; 7 distributed workers have different settings, or one was lost; 130 stopped by Ctrl-C."
)
"""For help; 3 to 7 are the codes of ``errors``."""


class Option(click.Option):
    """An option with the heading under which help lists it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command whose help lists options in groups, and the exit codes at the end."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their groups, in the order of declaration."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the exit codes."""
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)


class PresetName(click.ParamType[str]):
    """A preset's name or the name of its file; whether the file is valid is checked when it is read."""

    name = "preset"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Reject a value that is neither."""
        if value not in PRESETS and not value.endswith(preset_files.SUFFIX):
            self.fail(
                f"'{value}' is neither a preset ({', '.join(PRESETS)}) nor a file whose name ends with {preset_files.SUFFIX}",
                param,
                ctx,
            )
        return value


option = partial(click.option, cls=Option)
DATA = option(
    "--data",
    "data_path",
    group="Data",
    type=click.Path(path_type=Path),
    help="File or folder of the dataset as published: for MNIST an npz file with the arrays of keras.datasets.mnist, or "
    "a folder of idx files; for 'folder', a folder with one sub-folder of images per class. Default: for MNIST the path "
    f"in the environment variable {splits.ENVIRONMENT}; else Keras's cache, downloaded if missing, for the datasets "
    "that Keras provides.",
)
STROKES = option(
    "--strokes",
    "strokes_path",
    group="Data",
    type=click.Path(path_type=Path),
    help=f"Archive or folder of {unipen.ORIGIN}: pen digits and letters, for presets whose recipe uses them. "
    f"Default: the path in the environment variable {pen_split.ENVIRONMENT}; else no pen strokes.",
)
THREADS = option(
    "--threads",
    group="Machine",
    type=click.IntRange(min=1),
    help="Number of threads for TensorFlow. Default: all processors.",
)
PRESET = option(
    "--preset",
    group="Training",
    type=PresetName(),
    metavar="NAME|FILE.json",
    help=f"Network and recipe: {', '.join(PRESETS)}, or a file written by 'tune'. Default: {DEFAULT_PRESET}.",
)
SEED = option(
    "--seed",
    group="Training",
    type=click.IntRange(0, 2**31 - 1),
    help=f"Seed of all random numbers. Default: {DEFAULT_SEED}.",
)
LIMIT = option(
    "--limit", group="Data", type=click.IntRange(min=1), help="Maximum number of images of the training set to use."
)
RUN = click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
