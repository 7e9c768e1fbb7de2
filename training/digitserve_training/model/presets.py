"""Presets: named networks with the recipe that trains them, as data over the one builder in ``networks``.

A preset is all that decides a training apart from the images, the seed and the number of epochs. Needs no TensorFlow.
"""

from dataclasses import dataclass
from typing import Literal

from digitserve_training.model.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Residual,
)


@dataclass(frozen=True)
class Augmentation:
    """Bounds of the random changes that ``augment`` makes to each training image, each drawn on its own.

    Attributes:
        rotation_deg: largest turn, either way.
        scale: largest change of size as a fraction, either way, for height and width apart.
        zoom: largest change of size as a fraction, for height and width together.
        shear: largest horizontal shift for each pixel of height, either way.
        shift_px: largest move along each axis, in pixels.
        thicken: largest share of the dilated image (3x3 maximum) that is blended in.
        thin: largest share of the eroded image (3x3 minimum) that is blended in; strokes of MNIST are about three
            pixels wide, so the eroded image alone may be empty.
        blur: largest share of the blurred image (3x3 binomial) that is blended in.
        contrast: largest loss of ink as a fraction.
        noise: largest standard deviation of the Gaussian noise, as a fraction of full ink.
        elastic_px: largest displacement of a point of the coarse grid that bends the image, along each axis.
        corrupted: share of the other images that get one corruption on top, see ``corrupt``.
        clean: share of the images that are only bent: turned, scaled, sheared, moved, or stretched.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    shift_px: float = 0.0
    thicken: float = 0.0
    thin: float = 0.0
    blur: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    elastic_px: float = 0.0
    corrupted: float = 0.0
    clean: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, a linear warm-up, then the schedule. Without decay, AdamW is Adam.

    Attributes:
        epochs: passes over the training images, unless told otherwise.
        batch_size: images a step.
        learning_rate: the peak, reached at the end of the warm-up.
        warmup_epochs: epochs of linear warm-up; at most half of the run, however short.
        weight_decay: decoupled, on kernels only.
        label_smoothing: share of each target that is spread over all labels.
        averaging: momentum of the moving average of the weights, which is what is evaluated and exported.
        validation: share of the training set that is held out.
        schedule: "cosine" falls from the peak to zero over the run, "constant" stays there.
        paper: share of the training images that are shown as the service would read them off paper.
        outliers: pictures that are no digit for each training image. With any, the network learns the probability of
            an image being a digit too, see ``train``.
        teaching: share of each target that teachers give, in a run that has any.
        mixed: share of the images that are blended with another of their batch, in a run that has teachers: what such
            an image shows, they alone say.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.999
    validation: float = 1 / 12
    schedule: Literal["cosine", "constant"] = "cosine"
    paper: float = 0.0
    outliers: float = 0.0
    teaching: float = 0.75
    mixed: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A network and how to train it.

    Attributes:
        name: what ``--preset`` takes.
        summary: one line for the help text.
        layers: all but the last, see ``network``.
        recipe: optimisation.
        augmentation: of training images only.
    """

    name: str
    summary: str
    layers: tuple[Layer, ...]
    recipe: Recipe
    augmentation: Augmentation

    def network(self, num_labels: int) -> tuple[Layer, ...]:
        """Return all layers, the last of which gives one logit a label."""
        return (*self.layers, Dense(num_labels, activation="linear"))


# -- Networks of this project ------------------------------------------------------------------------------------------

_REAL_INK = Augmentation(
    rotation_deg=15.0,
    scale=0.18,
    shear=0.25,
    shift_px=2.5,
    thicken=0.7,
    thin=0.6,
    blur=0.7,
    contrast=0.4,
    noise=0.08,
    elastic_px=1.2,
    corrupted=0.45,
    clean=0.55,
)

_COMPACT = Preset(
    name="compact",
    summary="the default: five convolutions, strides in place of pooling, batch norm; for real ink",
    layers=(
        # Strides first, so that most of the work happens on 7x7 and less; no padding in the end, so that the last
        # convolution sees the whole image at once. Multiples of 16 suit onnxruntime's blocked convolutions.
        Conv(32, kernel=5, stride=2, batch_norm=True),
        Conv(64, stride=2, batch_norm=True),
        Conv(96, padding="valid", batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Flatten(),
    ),
    recipe=Recipe(
        epochs=40,
        learning_rate=4e-3,
        warmup_epochs=1.0,
        weight_decay=0.05,
        paper=0.25,
        outliers=0.125,
        teaching=0.9,
        mixed=0.5,
    ),
    augmentation=_REAL_INK,
)

_LARGE = Preset(
    name="large",
    summary="compact's teacher: nearly three times its multiply-adds, more of them before the second stride",
    layers=(
        Conv(32, kernel=5, stride=2, batch_norm=True),
        Conv(48, batch_norm=True),
        Conv(96, stride=2, batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Conv(192, padding="valid", batch_norm=True),
        Flatten(),
        Dropout(0.4),
    ),
    recipe=Recipe(epochs=36, learning_rate=4e-3, warmup_epochs=1.0, weight_decay=0.05, paper=0.25, outliers=0.125),
    augmentation=_REAL_INK,
)

_TINY = Preset(
    name="tiny",
    summary="under 20 000 parameters",
    layers=(
        Conv(16, kernel=5, stride=2, batch_norm=True),
        Conv(16, batch_norm=True),
        MaxPool(2),
        Conv(32, padding="valid", batch_norm=True),
        Conv(32, padding="valid", batch_norm=True),
        Flatten(),
    ),
    recipe=Recipe(epochs=40, learning_rate=8e-3, weight_decay=0.02),
    augmentation=Augmentation(
        rotation_deg=12.0,
        scale=0.15,
        shear=0.2,
        shift_px=2.0,
        thicken=0.4,
        thin=0.4,
        blur=0.4,
        contrast=0.3,
        elastic_px=0.8,
        clean=0.25,
    ),
)

_RESNET8 = Preset(
    name="resnet8",
    summary="three residual blocks of 16, 32 and 64 filters, global average pooling",
    layers=(
        Conv(16, batch_norm=True),
        Residual((Conv(16, batch_norm=True), Conv(16, batch_norm=True, activation="linear"))),
        Residual((Conv(32, stride=2, batch_norm=True), Conv(32, batch_norm=True, activation="linear"))),
        Residual((Conv(64, stride=2, batch_norm=True), Conv(64, batch_norm=True, activation="linear"))),
        GlobalAveragePool(),
    ),
    recipe=Recipe(epochs=10, learning_rate=4e-3, weight_decay=0.05),
    augmentation=Augmentation(rotation_deg=10.0, scale=0.1, shear=0.1, shift_px=2.0),
)

# -- Known networks, as they are found in tutorials and competitions: Adam at a constant rate, no augmentation ---------

_LENET5 = Preset(
    name="lenet5",
    summary="LeCun et al. 1998: two convolutions with mean pooling, dense 120 and 84, tanh",
    layers=(
        Conv(6, kernel=5, activation="tanh"),
        AveragePool(2),
        Conv(16, kernel=5, padding="valid", activation="tanh"),
        AveragePool(2),
        Flatten(),
        Dense(120, activation="tanh"),
        Dense(84, activation="tanh"),
    ),
    recipe=Recipe(epochs=20, warmup_epochs=0.0, schedule="constant", averaging=0.0),
    augmentation=Augmentation(),
)

_CONV2_DENSE256 = Preset(
    name="conv2-dense256",
    summary="the classic tutorial network: two convolutions, max-pool, dense 256, dropout",
    layers=(
        Conv(32, padding="valid"),
        Conv(64, padding="valid"),
        MaxPool(2),
        Dropout(0.25),
        Flatten(),
        Dense(256),
        Dropout(0.5),
    ),
    recipe=Recipe(epochs=12, warmup_epochs=0.0, schedule="constant", averaging=0.0),
    augmentation=Augmentation(),
)

# Dropout and learning rate were found by, and started from 0.25, 0.25 and 0.001 in: digitserve-train tune --preset convpool2-bn
# --trials 12 --epochs 2 --limit 24000 --vary learning-rate --vary width --vary dropout --max-multiply-adds 9000000
_CONVPOOL2_BN = Preset(
    name="convpool2-bn",
    summary="two pairs of convolution and max-pooling with batch norm and dropout, one dense layer",
    layers=(
        Conv(32, batch_norm=True),
        MaxPool(2),
        Dropout(0.575),
        Conv(64, batch_norm=True),
        MaxPool(2),
        Dropout(0.0292),
        Flatten(),
    ),
    recipe=Recipe(epochs=12, learning_rate=6.11e-3, warmup_epochs=0.0, schedule="constant", averaging=0.0),
    augmentation=Augmentation(),
)

_CONV3_DENSE2 = Preset(
    name="conv3-dense2",
    summary="three convolutions with pooling, two dense layers; five epochs",
    layers=(
        Conv(32),
        MaxPool(2),
        Conv(64),
        MaxPool(2),
        Conv(128),
        MaxPool(2),
        Flatten(),
        Dense(128),
        Dense(64),
    ),
    recipe=Recipe(epochs=5, warmup_epochs=0.0, schedule="constant", averaging=0.0),
    augmentation=Augmentation(),
)

_VGG_BN = Preset(
    name="vgg-bn",
    summary="two pairs of convolutions, batch norm after each, dense 512; an 80/20 split",
    layers=(
        Conv(32, padding="valid"),
        BatchNorm(),
        Conv(32, padding="valid"),
        BatchNorm(),
        MaxPool(2),
        Dropout(0.25),
        Conv(64, padding="valid"),
        BatchNorm(),
        Conv(64, padding="valid"),
        BatchNorm(),
        MaxPool(2),
        Dropout(0.25),
        Flatten(),
        Dense(512),
        BatchNorm(),
        Dropout(0.5),
    ),
    recipe=Recipe(epochs=10, warmup_epochs=0.0, schedule="constant", averaging=0.0, validation=0.2),
    augmentation=Augmentation(),
)

PRESETS = {
    preset.name: preset
    for preset in (_COMPACT, _LARGE, _TINY, _RESNET8, _LENET5, _CONV2_DENSE256, _CONVPOOL2_BN, _CONV3_DENSE2, _VGG_BN)
}
DEFAULT_PRESET = _COMPACT.name
