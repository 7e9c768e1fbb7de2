"""Settings of a training: what determines its result, resolved from options, a preset and defaults.

``cli`` and ``tune`` resolve them, ``train`` follows them, and each checkpoint stores them, so that a run is resumed
with the settings that it was started with. Needs no TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from digitserve_training.data import datasets, pen_split
from digitserve_training.data.splits import MNIST
from digitserve_training.errors import RunError
from digitserve_training.model.layers import Layer
from digitserve_training.model.preset_files import SUFFIX, find_preset, preset_from_json, preset_to_json
from digitserve_training.model.presets import PRESETS, Preset, Recipe

DEFAULT_SEED = 1

PRECISIONS = ("float32", "bfloat16", "float16")
"""What layers compute in while training; the first is the default. Weights are always float32."""


@dataclass(frozen=True)
class TeacherRun:
    """A finished run whose network is a teacher in knowledge distillation.

    Attributes:
        run_dir: its folder.
        sha256: fingerprint of its network's weights.
    """

    run_dir: str
    sha256: str


@dataclass(frozen=True)
class Options:
    """Options of the user; None means the default. ``preset`` is a name or a file, as ``find_preset`` takes it."""

    preset: str | None = None
    seed: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    limit: int | None = None
    dataset: str | None = None
    precision: str | None = None
    teachers: tuple[TeacherRun, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """What determines a training: equal settings give equal weights, on one machine with the same number of threads.

    Attributes:
        preset: network and recipe as the user chose them; see ``recipe`` for the recipe that is applied.
        seed: of weights, order of images, augmentation and dropout.
        epochs: of the whole run; the learning rate schedule depends on it.
        learning_rate: the peak.
        limit: number of images of the training set to use, None for all.
        dataset: name of the dataset.
        labels: names of the labels, in the order of the logits.
        data_sha256: fingerprint of the whole training set.
        precision: what layers compute in, one of ``PRECISIONS``.
        teachers: runs whose networks add to the targets.
        strokes_sha256: fingerprint of the pen strokes, see ``pen_split``; None for a training without pen strokes.
    """

    preset: Preset
    seed: int
    epochs: int
    learning_rate: float
    limit: int | None
    dataset: str
    labels: tuple[str, ...]
    data_sha256: str
    precision: str = PRECISIONS[0]
    teachers: tuple[TeacherRun, ...] = ()
    strokes_sha256: str | None = None

    @property
    def digits(self) -> bool:
        """Whether the dataset holds digits, for which scans, pen strokes, other handwriting and non-digits are available."""
        return datasets.find(self.dataset).digits

    @property
    def recipe(self) -> Recipe:
        """The preset's recipe, without the images that this training does not have.

        If the dataset does not hold digits, these are scans, pen digits and outliers: outliers are letters and other
        drawings, which such a dataset may be about. Without pen strokes, these are the pen digits.

        Raises:
            DataError: the dataset is unknown.
        """
        recipe = _used_preset(self).recipe
        return recipe if self.digits else replace(recipe, scanned=0.0, outliers=0.0, certain_outliers=0.0, pen=0.0)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers of the network; the last outputs one logit per label."""
        return self.preset.network(len(self.labels))

    @property
    def command(self) -> str:
        """Command line that trains the same network.

        A preset that is not built in is named as a file ``NAME.json``. The archive of pen strokes is named by its
        environment variable, because its path differs between machines.
        """
        preset = self.preset
        built_in = PRESETS.get(preset.name)
        name = (
            preset.name
            if built_in and not _edits(_used_preset(replace(self, preset=built_in)), _used_preset(self))
            else preset.name + SUFFIX
        )
        limit = f" --limit {self.limit}" if self.limit is not None else ""
        dataset = f" --dataset {self.dataset}" if self.dataset != MNIST else ""
        strokes = f" --strokes ${pen_split.ENVIRONMENT}" if self.strokes_sha256 is not None else ""
        precision = f" --precision {self.precision}" if self.precision != PRECISIONS[0] else ""
        teachers = "".join(f" --teacher {teacher.run_dir}" for teacher in self.teachers)
        return (
            f"digitserve-train train --preset {name} --epochs {self.epochs} --seed {self.seed} "
            f"--learning-rate {self.learning_rate!r}{limit}{dataset}{strokes}{precision}{teachers}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values: ``preset`` is the name, ``definition`` the whole preset as JSON text."""
        return asdict(self) | {"preset": self.preset.name, "definition": preset_to_json(self.preset)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], source: str) -> "Settings":
        """Restore settings from ``to_dict``; those of older versions may lack the fields that have defaults.

        Args:
            stored: JSON values.
            source: where they come from, for error messages.

        Raises:
            RunError: the preset is invalid.
            KeyError, TypeError: a field is missing, unknown or of another type.
        """
        values = dict(stored)
        values["preset"] = preset_from_json(values.pop("definition"), f"the preset in {source}")
        values["labels"] = tuple(values["labels"])
        values["teachers"] = tuple(TeacherRun(**teacher) for teacher in values.get("teachers", ()))
        return cls(**values)


def resolve(options: Options, labels: tuple[str, ...], data_sha256: str, strokes_sha256: str | None = None) -> Settings:
    """Resolve the settings of a new run from options, the preset and defaults.

    Args:
        options: of the user.
        labels: names of the training set's labels.
        data_sha256: fingerprint of the training set.
        strokes_sha256: fingerprint of the pen strokes; None for a training without.

    Raises:
        RunError: there is no such preset.
    """
    preset = find_preset(options.preset)
    return Settings(
        preset=preset,
        seed=DEFAULT_SEED if options.seed is None else options.seed,
        epochs=preset.recipe.epochs if options.epochs is None else options.epochs,
        learning_rate=preset.recipe.learning_rate if options.learning_rate is None else options.learning_rate,
        limit=options.limit,
        dataset=MNIST if options.dataset is None else options.dataset,
        labels=labels,
        data_sha256=data_sha256,
        precision=PRECISIONS[0] if options.precision is None else options.precision,
        teachers=() if options.teachers is None else options.teachers,
        strokes_sha256=strokes_sha256,
    )


def resolve_resumed(
    options: Options, stored: Settings, data_sha256: str, strokes_sha256: str | None = None
) -> Settings:
    """Return the settings of a stored run after checking that options, images and pen strokes agree with them.

    Raises:
        RunError: names each setting that differs, with both values. A preset that was edited since the run started is a
            difference only if the options name it.
    """
    if (stored.strokes_sha256 is None) != (strokes_sha256 is None):
        raise RunError(
            f"the run was started without pen strokes: resume it without --strokes and {pen_split.ENVIRONMENT}"
            if stored.strokes_sha256 is None
            else f"the run was started with pen strokes (sha256 {stored.strokes_sha256}): resume it with --strokes or "
            f"{pen_split.ENVIRONMENT}"
        )
    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.preset is not None:
        given["preset"] = find_preset(options.preset)
    changes = differences(stored, replace(stored, **given, data_sha256=data_sha256, strokes_sha256=strokes_sha256))
    if changes:
        raise RunError(
            f"a run can only be resumed with its own settings, but {'; '.join(changes)}; start again in another folder"
        )
    return stored


def differences(old: Settings, new: Settings) -> list[str]:
    """Describe each setting that differs, with both values; an edited preset by the fields that were edited."""
    names = [field.name for field in fields(Settings) if field.name != "preset"]
    others = [
        f"{name} was {getattr(old, name)}, now {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    if old.preset.name != new.preset.name:
        return [f"preset was {old.preset.name}, now {new.preset.name}", *others]
    return others + _edits(_used_preset(old), _used_preset(new))


def _used_preset(settings: Settings) -> Preset:
    """Return the preset with the share of pen digits that applies: 0 without pen strokes.

    So a run that was started before presets had pen digits equals one without pen strokes.
    """
    preset = settings.preset
    if settings.strokes_sha256 is not None:
        return preset
    return replace(preset, recipe=replace(preset.recipe, pen=0.0))


def _edits(old: Preset, new: Preset) -> list[str]:
    """Describe the differences between two presets that change a training; a summary does not."""
    parts = {"recipe": (old.recipe, new.recipe), "augmentation": (old.augmentation, new.augmentation)}
    edits = [
        f"{part}.{name} of preset '{new.name}' was {value}, now {getattr(after, name)}"
        for part, (before, after) in parts.items()
        for name, value in vars(before).items()
        if getattr(after, name) != value
    ]
    if old.layers != new.layers:
        edits.append(f"the layers of preset '{new.name}' have changed")
    return edits
