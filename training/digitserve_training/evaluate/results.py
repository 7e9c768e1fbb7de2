"""The table of all trained networks: one row per run, stored as JSON in the repository and shown in the documentation.

``digitserve-train evaluate --results FILE`` adds rows. ``table`` renders them, with one line for runs that differ only
in their seed. Does not import TensorFlow.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError
from digitserve_training.evaluate.formatting import group_thousands, percent


@dataclass(frozen=True)
class Row:
    """The result of one run; the names of the attributes are the keys in the JSON file.

    Attributes:
        preset: name of the preset.
        seed: seed of the run.
        command: the command that repeats the training.
        parameters: number of parameters of the network.
        multiply_adds: multiply-adds per image.
        epochs: number of epochs trained.
        training_images: number of images used for training.
        validation_images: number of images held out for validation.
        duration_s: duration of all epochs, including validation.
        validation_accuracy: share of right labels.
        test_accuracy: share of right labels.
        test_loss: mean cross-entropy in nats.
        corruption_accuracy: mean accuracy over the corruption suite.
    """

    preset: str
    seed: int
    command: str
    parameters: int
    multiply_adds: int
    epochs: int
    training_images: int
    validation_images: int
    duration_s: float
    validation_accuracy: float
    test_accuracy: float
    test_loss: float
    corruption_accuracy: float

    @property
    def command_without_seed(self) -> str:
        """Equal for runs that differ only in their seed."""
        return self.command.replace(f" --seed {self.seed}", "")


def group_by_seed(rows: Iterable[Row]) -> list[list[Row]]:
    """Group the rows of runs that differ only in their seed; groups are sorted by multiply-adds."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.multiply_adds, row.preset, row.seed)):
        groups.setdefault(row.command_without_seed, []).append(row)
    return [*groups.values()]


def read(path: Path) -> tuple[Row, ...]:
    """Read the rows in the order of the file; no rows if there is no file.

    Raises:
        RunError: the file has another format.
    """
    if not path.exists():
        return ()
    try:
        return tuple(Row(**fields) for fields in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is not a table of results: {error}; give another file with --results") from None


def add(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file, sorted by preset and seed; a row replaces an earlier row with the same command.

    Raises:
        RunError: the file has another format; it is not changed.
        OSError: the file cannot be written; its previous content is intact.
    """
    merged = {row.command: row for row in read(path)} | {row.command: row for row in rows}
    ordered = sorted(merged.values(), key=lambda row: (row.preset, row.seed, row.command))
    with replace_file(path) as file:
        file.write((json.dumps([asdict(row) for row in ordered], indent=1) + "\n").encode())


def table(rows: Iterable[Row]) -> str:
    """Render rows as a Markdown table: one line per group of seeds, with the mean and, for several seeds, the deviation."""
    header = (
        "| preset | parameters | multiply-adds | epochs | training / validation images | seeds | test accuracy | test loss "
        "| corruption suite | seconds | command |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([header, *(_line(group) for group in group_by_seed(rows))])


def _line(rows: list[Row]) -> str:
    first = rows[0]
    cells = (
        f"`{first.preset}`",
        group_thousands(first.parameters),
        group_thousands(first.multiply_adds),
        str(first.epochs),
        f"{group_thousands(first.training_images)} / {group_thousands(first.validation_images)}",
        ", ".join(str(row.seed) for row in rows),
        _mean_percent([row.test_accuracy for row in rows]),
        f"{mean(row.test_loss for row in rows):.4f}",
        _mean_percent([row.corruption_accuracy for row in rows]),
        f"{mean(row.duration_s for row in rows):.0f}",
        f"`{first.command}`",
    )
    return f"| {' | '.join(cells)} |"


def _mean_percent(values: list[float]) -> str:
    if len(values) == 1:
        return percent(values[0], decimals=3)
    return f"{mean(values) * 100:.3f} ± {percent(stdev(values), decimals=3)}"
