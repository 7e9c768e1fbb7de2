"""What the commands of ``digitserve-train`` share when they run: checks, errors and exit codes, threads, pen strokes.

Used by ``commands`` and ``tune``. Needs no TensorFlow.
"""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click

from digitserve_training.data import pen_split, unipen
from digitserve_training.data.pen_split import PenSplit
from digitserve_training.errors import TrainingError
from digitserve_training.fit import pen_images
from digitserve_training.model.presets import Preset

PACKAGES = (
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "matplotlib",
    "sklearn",
    "scipy",
    "jinja2",
    "optuna",
    "tensorboard",
)
EXIT_CANNOT_WRITE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def training_command(function: Callable[..., None]) -> Callable[..., None]:
    """Check for the training extra first, and turn errors of the command into a message and an exit code."""

    @wraps(function)
    def checked(**options: Any) -> None:
        _require_packages()
        try:
            function(**options)
        except TrainingError as error:
            fail(str(error), error.exit_code)
        except OSError as error:
            fail(f"{error.filename or 'a file'}: {error.strerror or error}", EXIT_CANNOT_WRITE)
        except KeyboardInterrupt:
            # Commands write files atomically, so there is nothing to clean up.
            interrupted("")

    return checked


def use_threads(threads: int | None) -> None:
    """Limit TensorFlow to a number of threads; None changes nothing."""
    from digitserve_training import _tensorflow  # noqa: PLC0415 - TensorFlow

    if threads is not None:
        _tensorflow.use_threads(threads)


def read_pen(path: Path | None, preset: Preset, dataset: str) -> PenSplit | None:
    """Read the pen strokes if the training uses them; say in one line if they are missing or not used."""
    found = pen_split.find_path(path)
    if not pen_images.used_by(preset, dataset):
        if path is not None:
            click.echo(f"--strokes is not used: the recipe of '{preset.name}' on {dataset} has no pen digits")
        return None
    if found is None:
        click.echo(
            f"training without pen strokes, which the recipe of '{preset.name}' can use: get {unipen.ORIGIN}, and give "
            f"its path with --strokes or {pen_split.ENVIRONMENT}",
        )
        return None
    return pen_split.read(found)


def fail(message: str, code: int) -> NoReturn:
    """End the command with an error message."""
    click.echo(f"digitserve-train: {message}", err=True)
    sys.exit(code)


def interrupted(rest: str) -> NoReturn:
    """End the command after Ctrl-C; ``rest`` states what is kept and how to continue."""
    click.echo(f"\ninterrupted{rest}", err=True)
    sys.exit(EXIT_INTERRUPTED)


def _require_packages() -> None:
    missing = [package for package in PACKAGES if not _installed(package)]
    if missing:
        fail(
            f"needs {', '.join(missing)}; install what is missing with: pip install 'digitserve[training]'",
            EXIT_USAGE,
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
