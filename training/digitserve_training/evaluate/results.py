"""The table of all trained networks: one row a run, kept as JSON in the repository, shown in the documentation.

``digitserve-train evaluate --results FILE`` adds rows; ``table`` renders them, grouped by preset. Needs no TensorFlow.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError


@dataclass(frozen=True)
class Row:
    """What came of one run.

    Attributes:
        preset: its name.
        seed: of the run.
        command: that trains it again.
        parameters: of the network.
        multiply_adds: for one image.
        epochs: trained.
        training_images: that moved the weights.
        validation_images: held out.
        duration_s: of all epochs, validation included.
        validation_accuracy: share.
        test_accuracy: share.
        test_loss: nats.
        corruption_accuracy: mean over the suite.
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
    def recipe(self) -> str:
        """What runs must have in common to be seeds of one thing: the command without its seed."""
        return self.command.replace(f" --seed {self.seed}", "")


def by_recipe(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows that differ in nothing but the seed, cheapest networks first."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.multiply_adds, row.preset, row.seed)):
        groups.setdefault(row.recipe, []).append(row)
    return [*groups.values()]


def read(path: Path) -> tuple[Row, ...]:
    """Read rows, in the order in which they are kept; none if there is no file yet.

    Raises:
        RunError: the file holds something else.
    """
    if not path.exists():
        return ()
    try:
        return tuple(Row(**fields) for fields in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is no table of results: {error}; name another file with --results") from None


def add(path: Path, rows: Iterable[Row]) -> None:
    """Keep rows, each in place of an earlier one of the same command, ordered by preset and seed.

    Raises:
        RunError: the file holds something else, and is left as it is.
        OSError: it cannot be written; what it held is intact.
    """
    kept = {row.command: row for row in read(path)} | {row.command: row for row in rows}
    ordered = sorted(kept.values(), key=lambda row: (row.preset, row.seed, row.command))
    with replace_file(path) as file:
        file.write((json.dumps([asdict(row) for row in ordered], indent=1) + "\n").encode())


def table(rows: Iterable[Row]) -> str:
    """Render rows as a Markdown table, one line a recipe; means over seeds, with their spread where there are several."""
    header = (
        "| preset | parameters | multiply-adds | epochs | training / validation images | seeds | test accuracy | test loss "
        "| corruption suite | seconds | command |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([header, *(_line(group) for group in by_recipe(rows))])


def _line(rows: list[Row]) -> str:
    first = rows[0]
    cells = (
        f"`{first.preset}`",
        f"{first.parameters:,}".replace(",", " "),
        f"{first.multiply_adds:,}".replace(",", " "),
        str(first.epochs),
        f"{first.training_images:,} / {first.validation_images:,}".replace(",", " "),
        ", ".join(str(row.seed) for row in rows),
        _share([row.test_accuracy for row in rows]),
        f"{mean(row.test_loss for row in rows):.4f}",
        _share([row.corruption_accuracy for row in rows]),
        f"{mean(row.duration_s for row in rows):.0f}",
        f"`{first.command}`",
    )
    return f"| {' | '.join(cells)} |"


def _share(values: list[float]) -> str:
    spread = f" ± {stdev(values):.3%}".replace("%", "") if len(values) > 1 else ""
    return f"{mean(values):.3%}{spread}".replace("%", "", 1) + " %"
