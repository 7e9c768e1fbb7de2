"""Hyperparameter search: a preset and a budget in; a folder with the study, its table and the best presets out.

Called by ``cli``. Each trial trains the preset with other hyperparameters for a few epochs with ``train.Training``.
The objective is the loss on the validation images, or that and the time of the network relative to the base preset's;
test images are never read. Optuna draws the values and, if the loss is the only objective, prunes trials that are worse
than the median. The study is an SQLite file in which each trial is complete or marked as failed, so a search can continue
after Ctrl-C, a crash or a full disk.

    base preset ▶ with_values ▶ size, relative time ▶ Training ▶ validation loss ▶ study.db ▶ trials.csv, preset files
                                  └▶ above a limit: pruned before training
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState
from sqlalchemy import NullPool
from sqlalchemy.exc import SQLAlchemyError

from digitserve.progress import Progress
from digitserve_training._tensorflow import keras
from digitserve_training.data.splits import Split
from digitserve_training.errors import DivergedError, ParityError, RunError
from digitserve_training.fit.settings import Settings
from digitserve_training.fit.train import Training, describe_metrics
from digitserve_training.model.layers import Layer, count_multiply_adds, count_parameters
from digitserve_training.model.presets import Preset
from digitserve_training.tune.results import (
    ACCURACY,
    CONVOLUTIONS,
    LOSS,
    MULTIPLY_ADDS,
    PARAMETERS,
    TIME,
    WHY,
    Results,
    describe_convolutions,
    finished,
    write_results,
)
from digitserve_training.tune.space import Range, of_shape, search_ranges, with_values
from digitserve_training.tune.timing import Reference

STUDY_NAME = "study.db"

STARTUP_TRIALS = 5
"""Complete trials before the first one can be pruned: the median of fewer is unreliable."""

_SEARCH = "search"


@dataclass(frozen=True)
class Search:
    """Search space and limits; a study can only be continued with an equal search and equal settings.

    Attributes:
        vary: names of the groups in ``space.GROUPS`` that may differ from the base preset.
        max_multiply_adds: a larger network is not trained; None for no limit.
        max_parameters: a network with more stored numbers is not trained; None for no limit.
        objectives: what is minimised: the loss, or the loss and the relative time.
        max_relative_time: a network with a longer time, as a multiple of the base preset's, is not trained; None for no
            limit.
    """

    vary: tuple[str, ...]
    max_multiply_adds: int | None = None
    max_parameters: int | None = None
    objectives: tuple[str, ...] = ("loss",)
    max_relative_time: float | None = None

    @property
    def needs_time(self) -> bool:
        """Whether the time of each network is measured."""
        return "time" in self.objectives or self.max_relative_time is not None


# -- The study ---------------------------------------------------------------------------------------------------------


def tune(base: Settings, split: Split, search: Search, folder: Path, num_trials: int) -> Results:
    """Search until the study has ``num_trials`` finished trials; a study in the folder is continued.

    Args:
        base: settings of every trial, except for the hyperparameters that are drawn.
        split: the images; the loss on the validation images is an objective.
        search: search space, objectives and limits.
        folder: of the study.
        num_trials: number of finished trials in total, including pruned ones and those of earlier calls.

    Returns:
        All trials, and those on the Pareto front.

    Raises:
        RunError: the study was started with another search or other settings, is in use by another process, or cannot
            be read or written.
        KeyboardInterrupt: passed on; the current trial is marked as failed, all others are kept.
    """
    ranges = search_ranges(base.preset, search.vary)
    with _exclusive(folder), _open_study(folder, len(search.objectives)) as study, Progress() as progress:
        _prepare(study, base, search, ranges)
        write_results(folder, base.preset, Results.of(study))
        objective = _Objective(base, split, search, ranges, Reference(base.layers) if search.needs_time else None)
        while len(finished(study.trials)) < num_trials:
            # The seed depends on the finished trials, so a study draws the same values in one call or in many.
            study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(finished(study.trials)))
            report = _Report(progress, len(finished(study.trials)), num_trials)
            try:
                study.optimize(lambda trial: objective(trial, report), n_trials=1)  # noqa: B023 - runs one trial now
            except KeyboardInterrupt:
                _retry_last(study)
                raise
            finally:
                write_results(folder, base.preset, Results.of(study))
        return Results.of(study)


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

    def trial(self, trial: Trial, values: Mapping[str, float]) -> None:
        """Print the values of a trial; those of a shape as its convolutions."""
        parts = [f"{name} {value:.3g}" for name, value in values.items() if not of_shape(name)]
        shape = trial.user_attrs.get(CONVOLUTIONS)
        self.progress.print("  ".join([f"trial {trial.number}", *parts, *([shape] if shape else [])]))

    def epoch(self, training: Training, epoch: int) -> dict[str, float]:
        """Run an epoch of the trial, and print its metrics."""

        def on_step(share: float, describe: Callable[[], str]) -> None:
            done = self.num_finished + (epoch - 1 + share) / training.settings.epochs
            trial = f"trial {self.num_finished + 1}/{self.num_trials}"
            self.progress.update(done, self.num_trials, lambda: f"{trial}, {describe()}")

        metrics = training.run_epoch(epoch, on_step)
        self.progress.print(describe_metrics(metrics))
        return metrics


@dataclass(frozen=True)
class _Objective:
    """Runs trials; lives for one call of ``tune``.

    Attributes:
        base: settings of every trial.
        split: the images.
        search: objectives and limits.
        ranges: of the hyperparameters.
        reference: network of the base preset, for relative times; None if no time is needed.
    """

    base: Settings
    split: Split
    search: Search
    ranges: Mapping[str, Range]
    reference: Reference | None

    def __call__(self, trial: Trial, report: _Report) -> tuple[float, ...]:
        """Run a trial, and return its loss and, if that is an objective, its relative time."""
        values = self._draw(trial)
        preset = with_values(self.base.preset, values)
        settings = replace(self.base, preset=preset, learning_rate=preset.recipe.learning_rate)
        if any(map(of_shape, values)):
            trial.set_user_attr(CONVOLUTIONS, describe_convolutions(settings.layers))
        report.trial(trial, values)
        self._prune_repeated(trial, preset)
        try:
            self._measure(trial, settings.layers)
            loss = self._train(trial, Training(settings, self.split), report)
        # Pruned, not failed, so that the sampler learns to avoid such values and the study can continue.
        except DivergedError:
            raise _pruned(trial, "diverged") from None
        except ParityError as error:
            raise _pruned(trial, str(error).partition("\n")[0]) from None
        finally:
            keras.backend.clear_session()
        return (loss, trial.user_attrs[TIME]) if "time" in self.search.objectives else (loss,)

    def _draw(self, trial: Trial) -> dict[str, float]:
        return {
            name: trial.suggest_float(name, of.low, of.high, log=of.log, step=of.step)
            for name, of in self.ranges.items()
        }

    def _prune_repeated(self, trial: Trial, preset: Preset) -> None:
        """Prune a trial that would train what an earlier one trained: several shapes give the same network."""
        for earlier in finished(trial.study.trials):
            if with_values(self.base.preset, earlier.params) == preset:
                raise _pruned(trial, f"equal to trial {earlier.number}: not trained")

    def _measure(self, trial: Trial, layers: tuple[Layer, ...]) -> None:
        """Record the size and time of a network, and prune the trial if one of them exceeds its limit."""
        trial.set_user_attr(MULTIPLY_ADDS, count_multiply_adds(layers))
        trial.set_user_attr(PARAMETERS, count_parameters(layers))
        _require_at_most(trial, MULTIPLY_ADDS, self.search.max_multiply_adds)
        _require_at_most(trial, PARAMETERS, self.search.max_parameters)
        if self.reference is not None:
            trial.set_user_attr(TIME, self.reference.relative_time(layers))
            _require_at_most(trial, TIME, self.search.max_relative_time)

    def _train(self, trial: Trial, training: Training, report: _Report) -> float:
        epochs = training.settings.epochs
        for epoch in range(1, epochs + 1):
            metrics = report.epoch(training, epoch)
            for name in (LOSS, ACCURACY):
                trial.set_user_attr(name, metrics[name])
            # Optuna prunes by one objective only: the median of fast and slow networks means nothing.
            if len(self.search.objectives) == 1:
                trial.report(metrics[LOSS], epoch)
                if epoch < epochs and trial.should_prune():
                    raise _pruned(trial, f"worse than the median after {epoch} of {epochs} epochs")
        return metrics[LOSS]


def _require_at_most(trial: Trial, name: str, limit: float | None) -> None:
    """Prune a trial whose attribute exceeds a limit of the search."""
    value = trial.user_attrs[name]
    if limit is not None and value > limit:
        raise _pruned(trial, f"{value} {name}, at most {limit} allowed: not trained")


def _pruned(trial: Trial, why: str) -> optuna.TrialPruned:
    trial.set_user_attr(WHY, why)
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
def _open_study(folder: Path, num_objectives: int) -> Iterator[optuna.Study]:
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
            directions = [optuna.study.StudyDirection.MINIMIZE] * num_objectives
            yield optuna.create_study(
                storage=storage, study_name="tune", pruner=pruner, directions=directions, load_if_exists=True
            )
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
