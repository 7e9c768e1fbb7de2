"""Hyperparameter search: a preset and a budget in; a folder with the study, its table and the best preset out.

Called by ``cli``. Each trial trains the preset with other hyperparameters for a few epochs with ``train.Training``.
The objective is the loss on the validation images; test images are never read. Optuna draws the values and prunes
trials that are worse than the median. The study is an SQLite file in which each trial is complete or marked as
failed, so a search can continue after Ctrl-C, a crash or a full disk.

    base preset ▶ with_values ▶ Training ▶ validation loss after each epoch ▶ study.db ▶ trials.csv, preset.json
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import NullPool
from sqlalchemy.exc import SQLAlchemyError

from digitserve.progress import Progress
from digitserve_training._tensorflow import keras
from digitserve_training.atomic import replace_file
from digitserve_training.data.splits import Split
from digitserve_training.errors import DivergedError, RunError
from digitserve_training.fit.settings import Settings
from digitserve_training.fit.train import Training, describe_metrics
from digitserve_training.model.layers import Layer, count_multiply_adds, count_parameters
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import Preset
from digitserve_training.tune.space import Range, search_ranges, with_values

STUDY_NAME = "study.db"
TABLE_NAME = "trials.csv"
PRESET_NAME = "preset.json"

STARTUP_TRIALS = 5
"""Complete trials before the first one can be pruned: the median of fewer is unreliable."""

_SEARCH = "search"
_LOSS, _ACCURACY, _WHY = "validation_loss", "validation_accuracy", "why"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Search:
    """Search space and limits; a study can only be continued with an equal search and equal settings.

    Attributes:
        vary: names of the groups in ``space.GROUPS`` that may differ from the base preset.
        max_multiply_adds: a larger network is not trained; None for no limit.
        max_parameters: a network with more stored numbers is not trained; None for no limit.
    """

    vary: tuple[str, ...]
    max_multiply_adds: int | None = None
    max_parameters: int | None = None


# -- The study ---------------------------------------------------------------------------------------------------------


def tune(base: Settings, split: Split, search: Search, folder: Path, num_trials: int) -> list[FrozenTrial]:
    """Search until the study has ``num_trials`` finished trials; a study in the folder is continued.

    Args:
        base: settings of every trial, except for the hyperparameters that are drawn.
        split: the images; the loss on the validation images is the objective.
        search: search space and limits.
        folder: of the study.
        num_trials: number of finished trials in total, including pruned ones and those of earlier calls.

    Returns:
        All trials, including failed ones.

    Raises:
        RunError: the study was started with another search or other settings, is in use by another process, or cannot
        be
            read or written.
        KeyboardInterrupt: passed on; the current trial is marked as failed, all others are kept.
    """
    ranges = search_ranges(base.preset, search.vary)
    with _exclusive(folder), _open_study(folder) as study, Progress() as progress:
        _prepare(study, base, search, ranges)
        write_results(folder, base.preset, study.trials)
        while len(finished(study.trials)) < num_trials:
            # The seed depends on the finished trials, so a study draws the same values in one call or in many.
            study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(finished(study.trials)))
            report = _Report(progress, len(finished(study.trials)), num_trials)
            try:
                study.optimize(lambda trial: _objective(trial, base, split, search, ranges, report), n_trials=1)  # noqa: B023 - runs one trial now
            except KeyboardInterrupt:
                _retry_last(study)
                raise
            finally:
                write_results(folder, base.preset, study.trials)
        return study.trials


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that are complete or pruned, and so not failed or running."""
    return [trial for trial in trials if trial.state in _FINISHED]


def best(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the complete trial with the lowest loss, None if no trial is complete."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(complete, key=_loss_of, default=None)


def require_preset(folder: Path) -> Path:
    """Return the file of the best preset.

    Raises:
        RunError: no trial is complete.
    """
    path = folder / PRESET_NAME
    if not path.exists():
        raise RunError(f"no trial is complete; {folder / TABLE_NAME} has the reasons: vary less, or raise the limits")
    return path


def num_finished(folder: Path) -> int:
    """Count the finished trials of the study in a folder, 0 if there is none."""
    if not (folder / TABLE_NAME).exists():
        return 0
    with (folder / TABLE_NAME).open(newline="", encoding="utf-8") as file:
        return sum(row["state"] in {state.name.lower() for state in _FINISHED} for row in csv.DictReader(file))


@dataclass(frozen=True)
class _Report:
    """Where a trial reports its progress.

    Attributes:
        progress: of the search.
        num_finished: trials before this one.
        num_trials: of the search.
    """

    progress: Progress
    num_finished: int
    num_trials: int

    def epoch(self, training: Training, epoch: int) -> dict[str, float]:
        """Run an epoch of the trial, and print its metrics."""

        def on_step(share: float, describe: Callable[[], str]) -> None:
            done = self.num_finished + (epoch - 1 + share) / training.settings.epochs
            trial = f"trial {self.num_finished + 1}/{self.num_trials}"
            self.progress.update(done, self.num_trials, lambda: f"{trial}, {describe()}")

        metrics = training.run_epoch(epoch, on_step)
        self.progress.print(describe_metrics(metrics))
        return metrics


def _objective(
    trial: Trial, base: Settings, split: Split, search: Search, ranges: Mapping[str, Range], report: _Report
) -> float:
    values = {name: trial.suggest_float(name, of.low, of.high, log=of.log, step=of.step) for name, of in ranges.items()}
    report.progress.print(
        f"trial {trial.number}  " + "  ".join(f"{name} {value:.3g}" for name, value in values.items())
    )
    preset = with_values(base.preset, values)
    settings = replace(base, preset=preset, learning_rate=preset.recipe.learning_rate)
    _prune_large(trial, settings.layers, search)
    try:
        return _train(trial, Training(settings, split), report)
    except DivergedError:
        # Pruned, not failed, so that the sampler learns to avoid such values.
        raise _pruned(trial, "diverged") from None
    finally:
        keras.backend.clear_session()


def _train(trial: Trial, training: Training, report: _Report) -> float:
    epochs = training.settings.epochs
    for epoch in range(1, epochs + 1):
        metrics = report.epoch(training, epoch)
        trial.report(metrics[_LOSS], epoch)
        trial.set_user_attr(_ACCURACY, metrics[_ACCURACY])
        if epoch < epochs and trial.should_prune():
            raise _pruned(trial, f"worse than the median after {epoch} of {epochs} epochs")
    return metrics[_LOSS]


def _prune_large(trial: Trial, layers: tuple[Layer, ...], search: Search) -> None:
    """Record the size of a network, and prune the trial if it exceeds a limit of the search."""
    counts = {"multiply_adds": count_multiply_adds(layers), "parameters": count_parameters(layers)}
    limits = {"multiply_adds": search.max_multiply_adds, "parameters": search.max_parameters}
    for name, count in counts.items():
        trial.set_user_attr(name, count)
    for name, limit in limits.items():
        if limit is not None and counts[name] > limit:
            raise _pruned(trial, f"{counts[name]} {name}, at most {limit} allowed: not trained")


def _pruned(trial: Trial, why: str) -> optuna.TrialPruned:
    trial.set_user_attr(_WHY, why)
    return optuna.TrialPruned(why)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder, because a second search would treat the running trial as one that crashed."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another search is running in {folder}; wait, or choose another --study-dir") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _open_study(folder: Path) -> Iterator[optuna.Study]:
    """Open the folder's study, or create one.

    Raises:
        RunError: the file cannot be read or written.
    """
    # Optuna would log a line per trial, beside the one that _objective prints.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / STUDY_NAME
    try:
        # Without a pool no connection stays open if the file is not a database: then there is no storage to dispose.
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool})
        try:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
            yield optuna.create_study(storage=storage, study_name="tune", pruner=pruner, load_if_exists=True)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise RunError(
            f"{path} cannot be used as a study: {reason}; free some space, or choose another --study-dir"
        ) from None


def _prepare(study: optuna.Study, base: Settings, search: Search, ranges: Mapping[str, Range]) -> None:
    """Enqueue the base preset as the first trial of a new study; check and clean up a study that is continued.

    Raises:
        RunError: names each value that differs from what the study was started with.
    """
    wanted = json.loads(json.dumps(base.to_dict() | asdict(search)))
    if _SEARCH not in study.user_attrs:
        study.enqueue_trial({name: of.base for name, of in ranges.items()}, skip_if_exists=True)
        study.set_user_attr(_SEARCH, wanted)
    _require_same(study.user_attrs[_SEARCH], wanted)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # The folder is locked, so the process that ran this trial has crashed.
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _retry_last(study: optuna.Study) -> None:
    """Enqueue the values of the last trial again if it failed; an interrupt may also come after it finished."""
    last = study.trials[-1]
    if last.state == TrialState.FAIL:
        study.enqueue_trial(last.params)


def _require_same(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changes = [
        # A definition is a page long.
        f"preset '{wanted['preset']}' was edited"
        if name == "definition"
        else f"{name} was {stored.get(name)}, now {value}"
        for name, value in wanted.items()
        if stored.get(name) != value and not (name == "definition" and stored["preset"] != wanted["preset"])
    ]
    if changes:
        raise RunError(
            f"a study can only be continued with its own settings, but {'; '.join(changes)}; choose another --study-dir"
        )


# -- Results -----------------------------------------------------------------------------------------------------------


def write_results(folder: Path, base: Preset, trials: list[FrozenTrial]) -> None:
    """Write the table of all trials, and the best one as a preset file for ``train --preset``."""
    table = io.StringIO()
    rows = _rows(trials)
    writer = csv.DictWriter(table, rows[0] if rows else ["number", "state"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(folder / TABLE_NAME, table.getvalue())
    chosen = best(trials)
    if chosen is not None:
        _replace(folder / PRESET_NAME, preset_to_json(preset_of_trial(base, chosen)))


def _replace(path: Path, text: str) -> None:
    try:
        with replace_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; free some space, then run the same command"
        ) from None


def preset_of_trial(base: Preset, trial: FrozenTrial) -> Preset:
    """Return the preset that a trial trained, with the base's number of epochs."""
    summary = f"{base.name} as tuned by trial {trial.number}: validation loss {_loss_of(trial):.4f}"
    return replace(with_values(base, trial.params), summary=summary)


def render_table(trials: list[FrozenTrial]) -> str:
    """Return the trials as a table for the terminal, best first."""
    rows = [{name: _short(value) for name, value in row.items()} for row in _rows(sorted(trials, key=_rank))]
    if not rows:
        return "no trials"
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    lines += ["  ".join(row[name].rjust(width) for name, width in widths.items()) for row in rows]
    return "\n".join(lines)


def _rows(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            _LOSS: trial.intermediate_values.get(max(trial.intermediate_values, default=0)),
            _ACCURACY: trial.user_attrs.get(_ACCURACY),
            **{name: trial.params.get(name) for name in names},
            "parameters": trial.user_attrs.get("parameters"),
            "multiply_adds": trial.user_attrs.get("multiply_adds"),
            _WHY: trial.user_attrs.get(_WHY),
        }
        for trial in trials
    ]


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    return trial.state != TrialState.COMPLETE, _loss_of(trial), trial.number


def _loss_of(trial: FrozenTrial) -> float:
    return float("inf") if trial.value is None else trial.value
