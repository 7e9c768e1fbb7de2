"""Results of a search: the table of all trials, and a preset file for each trial on the Pareto front.

Called by ``search`` after each trial, and by ``cli`` at the end. With one objective, the Pareto front is the best trial.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError
from digitserve_training.model.layers import Conv, Layer
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import Preset
from digitserve_training.tune.space import of_shape, with_values

TABLE_NAME = "trials.csv"
PRESET_NAME = "preset.json"
FRONT_PATTERN = "preset-[0-9]*.json"

LOSS, ACCURACY, TIME = "validation_loss", "validation_accuracy", "relative_time"
PARAMETERS, MULTIPLY_ADDS = "parameters", "multiply_adds"
CONVOLUTIONS, WHY = "convolutions", "why"
"""Attributes of trials and columns of the table."""

_STATE, _FRONT = "state", "front"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Results:
    """The trials of a study.

    Attributes:
        trials: all of them, including failed ones.
        front: names of the preset files of the trials on the Pareto front, by number of the trial, lowest loss first.
    """

    trials: list[FrozenTrial]
    front: Mapping[int, str]

    @classmethod
    def of(cls, study: optuna.Study) -> "Results":
        """Read the results of a study."""
        front = [trial.number for trial in sorted(study.best_trials, key=_loss_of)]
        if len(study.directions) == 1:
            return cls(study.trials, dict.fromkeys(front[:1], PRESET_NAME))
        return cls(study.trials, {number: f"preset-{number}.json" for number in front})

    def paths(self, folder: Path) -> list[Path]:
        """Return the preset files, lowest loss first.

        Raises:
            RunError: no trial is complete.
        """
        if not self.front:
            raise RunError(
                f"no trial is complete; {folder / TABLE_NAME} has the reasons: vary less, or raise the limits"
            )
        return [folder / name for name in self.front.values()]


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that are complete or pruned, and so not failed or running."""
    return [trial for trial in trials if trial.state in _FINISHED]


def num_finished(folder: Path) -> int:
    """Count the finished trials of the study in a folder, 0 if there is none."""
    if not (folder / TABLE_NAME).exists():
        return 0
    with (folder / TABLE_NAME).open(newline="", encoding="utf-8") as file:
        return sum(row[_STATE] in {state.name.lower() for state in _FINISHED} for row in csv.DictReader(file))


def write_results(folder: Path, base: Preset, results: Results) -> None:
    """Write the table, and the presets of the front for ``train --preset``; remove presets that left the front."""
    table = io.StringIO()
    rows = _rows(results)
    writer = csv.DictWriter(table, rows[0] if rows else ["number", _STATE], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(folder / TABLE_NAME, table.getvalue())
    for number, name in results.front.items():
        _replace(folder / name, preset_to_json(_preset(base, results.trials[number])))
    for path in folder.glob(FRONT_PATTERN):
        if path.name not in results.front.values():
            path.unlink()


def _replace(path: Path, text: str) -> None:
    try:
        with replace_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; free some space, then run the same command"
        ) from None


def _preset(base: Preset, trial: FrozenTrial) -> Preset:
    """Return the preset that a trial trained, with the base's number of epochs."""
    tuned = with_values(base, trial.params)
    summary = f"{base.name} as tuned by trial {trial.number}: validation loss {_loss_of(trial):.4f}"
    if len(trial.values) == 1:
        return replace(tuned, summary=summary)
    time = f"{trial.user_attrs[TIME]:.2f} times the time of {base.name}"
    # Another name for each, because the default folder of a run has the name of its preset.
    return replace(tuned, name=f"{tuned.name}-{trial.number}", summary=f"{summary}, {time}")


def describe_convolutions(layers: tuple[Layer, ...]) -> str:
    """Return filters, kernel and stride of the convolutions, and "v" (valid) for those without padding."""
    return ", ".join(
        f"{layer.filters} {layer.kernel}x{layer.kernel}"
        + (f"/{layer.stride}" if layer.stride > 1 else "")
        + (" v" if layer.padding == "valid" and layer.kernel > 1 else "")
        for layer in layers
        if isinstance(layer, Conv)
    )


def render_table(results: Results) -> str:
    """Return the trials as a table for the terminal: the Pareto front first, then the others, each by their loss.

    Shapes are one column of convolutions.
    """
    order = sorted(results.trials, key=lambda trial: (trial.number not in results.front, *_rank(trial)))
    rows = [
        {name: _short(value) for name, value in row.items() if not of_shape(name)}
        for row in _rows(replace(results, trials=order))
    ]
    if not rows:
        return "no trials"
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    header = dict(zip(widths, widths, strict=True))
    return "\n".join(
        "  ".join(row[name].rjust(width) for name, width in widths.items()).rstrip() for row in (header, *rows)
    )


def _rows(results: Results) -> list[dict[str, Any]]:
    params = dict.fromkeys(name for trial in results.trials for name in trial.params)
    attributes = {name for trial in results.trials for name in trial.user_attrs}
    return [
        {"number": trial.number, _STATE: trial.state.name.lower(), _FRONT: "*" if trial.number in results.front else ""}
        | {name: trial.user_attrs.get(name) for name in (LOSS, ACCURACY)}
        | {name: trial.params.get(name) for name in params}
        | {
            name: trial.user_attrs.get(name)
            for name in (TIME, PARAMETERS, MULTIPLY_ADDS, CONVOLUTIONS, WHY)
            if name in attributes or name not in {TIME, CONVOLUTIONS}
        }
        for trial in results.trials
    ]


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    return trial.state != TrialState.COMPLETE, _loss_of(trial), trial.number


def _loss_of(trial: FrozenTrial) -> float:
    return trial.values[0] if trial.values else float("inf")
