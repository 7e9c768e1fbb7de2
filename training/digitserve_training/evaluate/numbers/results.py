"""The table of what the reader reads, stored as JSON in the repository and shown in the documentation.

``digitserve-train evaluate --simulated N --results FILE`` writes it; ``table`` renders it.
"""

import json
from pathlib import Path
from typing import Any

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError
from digitserve_training.evaluate.formatting import group_thousands, percent
from digitserve_training.evaluate.numbers.figures import NumberEvaluation

Row = dict[str, Any]
"""Keys ``model``, ``group``, and those of ``Figures.as_json``."""


def read(path: Path) -> list[Row]:
    """Read the rows; none if there is no file.

    Raises:
        RunError: the file has another format.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
        if not all({"model", "group", "num_images", "exact"} <= row.keys() for row in rows):
            raise ValueError("rows without model, group, num_images and exact")  # noqa: TRY301 - same message
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is not a table of what was read: {error}; give another file with --results") from None
    return list(rows)


def add(path: Path, evaluation: NumberEvaluation, label: str = "") -> None:
    """Add a row per set or kind; a row replaces an earlier one of the same model and set.

    Args:
        path: of the table.
        evaluation: all results.
        label: name of the images without a set.

    Raises:
        RunError: the file has another format; it is not changed.
        OSError: the file cannot be written; its previous content is intact.
    """
    merged = {(row["model"], row["group"]): row for row in read(path)}
    for group, figures in evaluation.by_group.items():
        key = (evaluation.model, group or label)
        merged[key] = {"model": key[0], "group": key[1], **figures.as_json()}
    with replace_file(path) as file:
        file.write((json.dumps([*merged.values()], indent=1) + "\n").encode())


def table(rows: list[Row]) -> str:
    """Render rows as a Markdown table."""
    header = (
        "| model | images | number | exact images | exact lines | characters right | digits found and right | false digits |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([header, *map(_line, rows)])


def _line(row: Row) -> str:
    cells = (
        row["model"],
        row["group"],
        group_thousands(row["num_images"]),
        *(percent(row[key]) for key in ("exact", "exact_lines", "characters_right")),
        *(percent(row[key]) if key in row else "-" for key in ("digits_right", "digits_false")),
    )
    return f"| {' | '.join(cells)} |"
