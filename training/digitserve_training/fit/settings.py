"""What decides a training, completed from what was asked for, from a run's checkpoint and from the preset.

Used by ``cli`` and ``train``; kept in each checkpoint, so that a run is resumed as it was started. Needs no TensorFlow.
"""

from dataclasses import dataclass, replace

from digitserve_training.data import datasets
from digitserve_training.data.splits import MNIST
from digitserve_training.errors import RunError
from digitserve_training.model.preset_files import SUFFIX, find, preset_from_json, preset_to_json
from digitserve_training.model.presets import PRESETS, Preset

DEFAULT_SEED = 1

PRECISIONS = ("float32", "bfloat16", "float16")
"""What layers compute with while training; the first is the default. Weights are float32 always."""


@dataclass(frozen=True)
class Teacher:
    """A run whose network others learn from.

    Attributes:
        run_dir: its folder.
        sha256: fingerprint of its network's weights.
    """

    run_dir: str
    sha256: str


@dataclass(frozen=True)
class Asked:
    """What someone asked for; None where nothing was said. The preset is a name or a file, as ``find`` takes it."""

    preset: str | None = None
    seed: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    limit: int | None = None
    dataset: str | None = None
    precision: str | None = None
    teachers: tuple[Teacher, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """What decides a training: on one machine, with as many threads, equal settings end in equal weights.

    Attributes:
        preset: its name.
        definition: the whole preset as JSON, so that a run needs neither the file it came from nor a list of presets.
        seed: of weights, order of images, augmentation and dropout.
        epochs: to be trained in all; the learning rate follows it.
        learning_rate: the peak.
        limit: images used of the training set, None for all.
        dataset: what is learned.
        labels: names of what is told apart, in the order of the logits.
        data_sha256: fingerprint of the whole training set.
        precision: what layers compute with, one of ``PRECISIONS``; runs from before there was a choice have the first.
        teachers: whose answers are learned beside the labels.
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
    teachers: tuple[Teacher, ...] = ()

    @property
    def digits(self) -> bool:
        """Whether digits are learned: then paper, print and strangers make sense."""
        return datasets.find(self.dataset).digits

    @property
    def command(self) -> str:
        """What trains the same again; a preset that is not built in stands in ``definition``, to be saved as that file."""
        preset = _stored(self)
        name = preset.name if PRESETS.get(preset.name) == preset else preset.name + SUFFIX
        limit = f" --limit {self.limit}" if self.limit is not None else ""
        dataset = f" --dataset {self.dataset}" if self.dataset != MNIST else ""
        precision = f" --precision {self.precision}" if self.precision != PRECISIONS[0] else ""
        teachers = "".join(f" --teacher {teacher.run_dir}" for teacher in self.teachers)
        return (
            f"digitserve-train train --preset {name} --epochs {self.epochs} --seed {self.seed} "
            f"--learning-rate {self.learning_rate!r}{limit}{dataset}{precision}{teachers}"
        )


def start(asked: Asked, labels: tuple[str, ...], data_sha256: str) -> Settings:
    """Complete what was asked for a new run by the preset's values.

    Args:
        asked: what was said.
        labels: of the training set.
        data_sha256: its fingerprint.

    Raises:
        RunError: there is no such preset.
    """
    preset = find(asked.preset)
    return Settings(
        preset=preset.name,
        definition=preset_to_json(preset),
        seed=DEFAULT_SEED if asked.seed is None else asked.seed,
        epochs=preset.recipe.epochs if asked.epochs is None else asked.epochs,
        learning_rate=preset.recipe.learning_rate if asked.learning_rate is None else asked.learning_rate,
        limit=asked.limit,
        dataset=MNIST if asked.dataset is None else asked.dataset,
        labels=labels,
        data_sha256=data_sha256,
        precision=PRECISIONS[0] if asked.precision is None else asked.precision,
        teachers=() if asked.teachers is None else asked.teachers,
    )


def resume(asked: Asked, stored: Settings, data_sha256: str) -> Settings:
    """Take a run's settings again, if nothing else was asked for.

    Raises:
        RunError: names each setting that differs, with both values; a preset that was edited since counts if it is
            asked for.
    """
    now = {name: value for name, value in vars(asked).items() if value is not None} | {"data_sha256": data_sha256}
    edited = []
    if asked.preset is not None:
        preset = find(asked.preset)
        now["preset"] = preset.name
        edited = _differences(_stored(stored), preset) if preset.name == stored.preset else []
    told = [
        f"{name} was {getattr(stored, name)}, now {value}"
        for name, value in now.items()
        if getattr(stored, name) != value
    ]
    if told or edited:
        raise RunError(
            f"a run is resumed as it was started, but {'; '.join(told + edited)}; start again in another folder"
        )
    return stored


def preset_of(settings: Settings) -> Preset:
    """Return the preset that a run was started with, whatever became of its name since; its recipe suits the dataset.

    What is no digit may be what another set is about, and only digits are read off paper: so other sets are learned
    without either, and without the outcome that outliers bring.

    Raises:
        DataError: the dataset is unknown.
        RunError: the checkpoint holds no preset.
    """
    preset = _stored(settings)
    if settings.digits:
        return preset
    return replace(preset, recipe=replace(preset.recipe, paper=0.0, outliers=0.0))


def _stored(settings: Settings) -> Preset:
    return preset_from_json(settings.definition, "what the checkpoint keeps")


def _differences(stored: Preset, now: Preset) -> list[str]:
    """Name what shapes a training and was edited."""
    parts = {"recipe": (stored.recipe, now.recipe), "augmentation": (stored.augmentation, now.augmentation)}
    told = [
        f"{part}.{name} of preset '{now.name}' was {value}, now {getattr(new, name)}"
        for part, (old, new) in parts.items()
        for name, value in vars(old).items()
        if getattr(new, name) != value
    ]
    if stored.layers != now.layers:
        told.append(f"the layers of preset '{now.name}' were others")
    return told
