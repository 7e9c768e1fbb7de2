"""Search for a better recipe: a preset and a budget in, a folder with the study, its table and the best preset out.

Each trial trains the preset with other values for a few epochs, by ``train.Training``, and is judged by the loss on the
validation images; test images are never read. Optuna chooses the values and stops what lags behind. The study is an
SQLite file, in which a trial is either whole or marked as failed, so it goes on after Ctrl-C, a crash or a full disk.

    base preset ▶ vary ▶ Training ▶ validation loss after each epoch ▶ study.db ▶ trials.csv, preset.json
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from digitserve_training._tensorflow import keras
from digitserve_training.data.splits import Split
from digitserve_training.errors import DivergedError, RunError
from digitserve_training.fit.checkpoint import replacing
from digitserve_training.fit.settings import Settings, preset_of
from digitserve_training.fit.train import Training
from digitserve_training.model.layers import Layer, count_multiply_adds, count_parameters
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import Preset
from digitserve_training.tune.space import Range, ranges, vary

STUDY_NAME = "study.db"
TABLE_NAME = "trials.csv"
PRESET_NAME = "preset.json"

STARTUP_TRIALS = 5
"""Trials before any is held against the others: a median of fewer says little."""

_SEARCH = "search"
_LOSS, _ACCURACY, _WHY = "validation_loss", "validation_accuracy", "why"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Search:
    """What is searched; a study is gone on with by an equal search of equal settings.

    Attributes:
        vary: names out of ``space.GROUPS`` of what may differ from the base preset.
        max_multiply_adds: a network beyond it is not trained; None for no bound.
        max_parameters: the same for stored numbers.
    """

    vary: tuple[str, ...]
    max_multiply_adds: int | None = None
    max_parameters: int | None = None


# -- The study ---------------------------------------------------------------------------------------------------------


def tune(chosen: Settings, split: Split, search: Search, folder: Path, num_trials: int) -> list[FrozenTrial]:
    """Search until the study has so many finished trials; a study that is in the folder is gone on with.

    Args:
        chosen: of every trial, but for the preset and the learning rate, which are the base's.
        split: the images; the validation images judge.
        search: what may differ.
        folder: of the study.
        num_trials: finished ones in all, pruned ones and those of earlier sittings among them.

    Returns:
        All trials, failed ones too.

    Raises:
        RunError: the study was started with something else, is under way elsewhere, or cannot be read or written.
        KeyboardInterrupt: as raised; the trial under way is marked as failed, all others are kept.
    """
    base = preset_of(chosen)
    drawn = ranges(base, search.vary)
    with _alone(folder), _study(folder) as study:
        _begin(study, chosen, search, drawn)
        write(folder, base, study.trials)
        while len(done(study.trials)) < num_trials:
            # The sampler follows what is done, so that a study draws the same values in one sitting or in many.
            study.sampler = optuna.samplers.TPESampler(seed=chosen.seed + len(done(study.trials)))
            try:
                study.optimize(lambda trial: _objective(trial, chosen, split, search, drawn), n_trials=1)
            except KeyboardInterrupt:
                _try_again(study)
                raise
            finally:
                write(folder, base, study.trials)
        return study.trials


def done(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that ended by themselves: trained to the end, or pruned."""
    return [trial for trial in trials if trial.state in _DONE]


def best(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the lowest loss of those that were trained to the end, None where there is none."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(complete, key=_loss_of, default=None)


def require_preset(folder: Path) -> Path:
    """Return the file of the best preset.

    Raises:
        RunError: no trial was trained to the end.
    """
    path = folder / PRESET_NAME
    if not path.exists():
        raise RunError(f"no trial was trained to the end, {folder / TABLE_NAME} says why; vary less, or allow more")
    return path


def num_done(folder: Path) -> int:
    """Count the finished trials that a folder has, 0 where there is no study."""
    if not (folder / TABLE_NAME).exists():
        return 0
    with (folder / TABLE_NAME).open(newline="", encoding="utf-8") as file:
        return sum(row["state"] in {state.name.lower() for state in _DONE} for row in csv.DictReader(file))


def _objective(trial: Trial, chosen: Settings, split: Split, search: Search, drawn: Mapping[str, Range]) -> float:
    values = {name: trial.suggest_float(name, of.low, of.high, log=of.log, step=of.step) for name, of in drawn.items()}
    tqdm.write(f"trial {trial.number}  " + "  ".join(f"{name} {value:.3g}" for name, value in values.items()))
    preset = vary(preset_of(chosen), values)
    _require_small(trial, preset.network(len(chosen.labels)), search)
    settings = replace(
        chosen,
        preset=preset.name,
        definition=preset_to_json(preset),
        learning_rate=preset.recipe.learning_rate,
    )
    try:
        return _train(trial, Training(settings, split))
    except DivergedError:
        # Pruned, not failed: it is an answer, and the sampler learns from it.
        raise _pruned(trial, "diverged") from None
    finally:
        keras.backend.clear_session()


def _train(trial: Trial, training: Training) -> float:
    epochs = training.settings.epochs
    for epoch in range(1, epochs + 1):
        metrics = training.run_epoch(epoch)
        trial.report(metrics[_LOSS], epoch)
        trial.set_user_attr(_ACCURACY, metrics[_ACCURACY])
        if epoch < epochs and trial.should_prune():
            raise _pruned(trial, f"behind the others after {epoch} of {epochs} epochs")
    return metrics[_LOSS]


def _require_small(trial: Trial, layers: tuple[Layer, ...], search: Search) -> None:
    counts = {"multiply_adds": count_multiply_adds(layers), "parameters": count_parameters(layers)}
    bounds = {"multiply_adds": search.max_multiply_adds, "parameters": search.max_parameters}
    for name, count in counts.items():
        trial.set_user_attr(name, count)
    for name, bound in bounds.items():
        if bound is not None and counts[name] > bound:
            raise _pruned(trial, f"{counts[name]} {name}, at most {bound} allowed: not trained")


def _pruned(trial: Trial, why: str) -> optuna.TrialPruned:
    trial.set_user_attr(_WHY, why)
    return optuna.TrialPruned(why)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second search, which would take the trial under way for one that was cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another search is under way in {folder}; wait, or choose another --study-dir") from None
        yield
    finally:
        os.close(held)


@contextmanager
def _study(folder: Path) -> Iterator[optuna.Study]:
    """Open the folder's study, or a new one.

    Raises:
        RunError: the file cannot be read or written.
    """
    # Ours are the lines that are worth reading; Optuna would add one for each trial.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / STUDY_NAME
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        try:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
            yield optuna.create_study(storage=storage, study_name="tune", pruner=pruner, load_if_exists=True)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        told = str(error.__cause__ or error).partition("\n")[0]
        raise RunError(f"{path} cannot be used as a study: {told}; make room, or choose another --study-dir") from None


def _begin(study: optuna.Study, chosen: Settings, search: Search, drawn: Mapping[str, Range]) -> None:
    """Note what a new study is about and let it try the base first; clear up and compare where it is gone on with.

    Raises:
        RunError: names what the study was started with and is asked otherwise.
    """
    asked = json.loads(json.dumps(asdict(chosen) | asdict(search)))
    if _SEARCH not in study.user_attrs:
        study.enqueue_trial({name: of.base for name, of in drawn.items()}, skip_if_exists=True)
        study.set_user_attr(_SEARCH, asked)
    _require_same(study.user_attrs[_SEARCH], asked)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # Only a crash leaves such a trial, for the folder is ours alone.
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _try_again(study: optuna.Study) -> None:
    """Let the values of the last trial be tried again, if it was cut off and not only what follows it."""
    last = study.trials[-1]
    if last.state == TrialState.FAIL:
        study.enqueue_trial(last.params)


def _require_same(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    told = [
        # A definition is a page long.
        f"preset '{asked['preset']}' was edited"
        if name == "definition"
        else f"{name} was {stored.get(name)}, now {value}"
        for name, value in asked.items()
        if stored.get(name) != value and not (name == "definition" and stored["preset"] != asked["preset"])
    ]
    if told:
        raise RunError(f"a study is gone on with as it was started, but {'; '.join(told)}; choose another --study-dir")


# -- What it leaves ----------------------------------------------------------------------------------------------------


def write(folder: Path, base: Preset, trials: list[FrozenTrial]) -> None:
    """Write the table of all trials, and the best one as a preset that ``train --preset`` takes."""
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
    """Write a file whole or not at all; an interrupt may come at any time."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; make room, then go on") from None


def preset_of_trial(base: Preset, trial: FrozenTrial) -> Preset:
    """Return the preset that a trial trained; it keeps the base's epochs."""
    summary = f"{base.name} as tuned by trial {trial.number}: validation loss {_loss_of(trial):.4f}"
    return replace(vary(base, trial.params), summary=summary)


def render(trials: list[FrozenTrial]) -> str:
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
