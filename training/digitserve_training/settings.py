"""What decides a training, completed from what was asked for, from a run's checkpoint and from the preset.

Used by ``cli`` and ``train``; kept in each checkpoint, so that a run is resumed as it was started. Needs no TensorFlow.
"""

from dataclasses import dataclass

from digitserve_training.data import MNIST
from digitserve_training.errors import RunError
from digitserve_training.presets import DEFAULT_PRESET, PRESETS, Preset

DEFAULT_SEED = 1

PRECISIONS = ("float32", "bfloat16", "float16")
"""What layers compute with while training; the first is the default. Weights are float32 always."""


@dataclass(frozen=True)
class Asked:
    """What someone asked for; None where nothing was said."""

    preset: str | None = None
    seed: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    limit: int | None = None
    dataset: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Settings:
    """What decides a training: on one machine, with as many threads, equal settings end in equal weights.

    Attributes:
        preset: its name.
        definition: its layers, recipe and augmentation as text, so that a preset that was edited since is noticed.
        seed: of weights, order of images, augmentation and dropout.
        epochs: to be trained in all; the learning rate follows it.
        learning_rate: the peak.
        limit: images used of the training set, None for all.
        dataset: what is learned.
        labels: names of what is told apart, in the order of the logits.
        data_sha256: fingerprint of the whole training set.
        precision: what layers compute with, one of ``PRECISIONS``; runs from before there was a choice have the first.
    """

    preset: str
    definition: str
    seed: int
    epochs: int
    learning_rate: float
    limit: int | None
    dataset: str
    labels: tuple[str, ...]
    data_sha256: str
    precision: str = PRECISIONS[0]


def start(asked: Asked, labels: tuple[str, ...], data_sha256: str) -> Settings:
    """Complete what was asked for a new run by the preset's values.

    Args:
        asked: what was said.
        labels: of the training set.
        data_sha256: its fingerprint.

    Raises:
        RunError: there is no such preset.
    """
    preset = _find(DEFAULT_PRESET if asked.preset is None else asked.preset)
    return Settings(
        preset=preset.name,
        definition=preset.definition,
        seed=DEFAULT_SEED if asked.seed is None else asked.seed,
        epochs=preset.recipe.epochs if asked.epochs is None else asked.epochs,
        learning_rate=preset.recipe.learning_rate if asked.learning_rate is None else asked.learning_rate,
        limit=asked.limit,
        dataset=MNIST if asked.dataset is None else asked.dataset,
        labels=labels,
        data_sha256=data_sha256,
        precision=PRECISIONS[0] if asked.precision is None else asked.precision,
    )


def resume(asked: Asked, stored: Settings, data_sha256: str) -> Settings:
    """Take a run's settings again, if nothing else was asked for.

    Raises:
        RunError: names each setting that differs, with both values; or the preset was edited since.
    """
    now = {name: value for name, value in vars(asked).items() if value is not None} | {"data_sha256": data_sha256}
    told = [
        f"{name} was {getattr(stored, name)}, now {value}"
        for name, value in now.items()
        if getattr(stored, name) != value
    ]
    if told:
        raise RunError(f"a run is resumed as it was started, but {'; '.join(told)}; start again in another folder")
    preset_of(stored)
    return stored


def preset_of(settings: Settings) -> Preset:
    """Find the preset that a run was started with.

    Raises:
        RunError: the preset is unknown, or was edited since.
    """
    preset = _find(settings.preset)
    if preset.definition != settings.definition:
        raise RunError(f"preset '{preset.name}' was edited since this run: it was {settings.definition}; train again")
    return preset


def _find(name: str) -> Preset:
    if name not in PRESETS:
        raise RunError(f"no preset '{name}'; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
