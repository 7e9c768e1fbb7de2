"""Presets: named networks with the recipe that trains them, as plain data.

A preset, the images, the seed and the number of epochs determine a training. ``networks`` builds the Keras network of
any preset; ``preset_files`` reads and writes presets as JSON, with the field names of the classes below. Needs no
TensorFlow.
"""

from dataclasses import dataclass, replace
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
    """Bounds of the random changes that ``augment`` makes to each training image; each is drawn independently.

    Attributes:
        rotation_deg: largest rotation, in either direction.
        scale: largest relative change of size, in either direction, drawn separately for height and width.
        zoom: largest relative change of size, the same for height and width.
        shear: largest horizontal shift per pixel of height, in either direction.
        shift_px: largest shift along each axis.
        thicken: largest weight of the dilated image (3x3 maximum) in the result.
        thin: largest weight of the eroded image (3x3 minimum) in the result; strokes of MNIST are about three pixels
            wide, so the eroded image alone may be empty.
        blur: largest weight of the blurred image (3x3 binomial) in the result.
        contrast: largest relative loss of ink.
        noise: largest standard deviation of the Gaussian noise, as a fraction of full ink.
        elastic_px: largest displacement along each axis of a point of the coarse grid of the elastic distortion.
        corrupted: share of the images that are not ``clean`` to which one corruption is added, see ``corrupt``.
        clean: share of the images with geometric changes only: rotation, scale, shear, shift and elastic distortion.
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
    """How a network is trained: AdamW with a linear warm-up and a schedule. Without weight decay, AdamW is Adam.

    Attributes:
        epochs: passes over the training images, unless ``--epochs`` overrides it.
        batch_size: images per step.
        learning_rate: the peak, reached at the end of the warm-up.
        warmup_epochs: epochs of linear warm-up, at most half of the run.
        weight_decay: decoupled, on kernels only.
        label_smoothing: share of each target that is spread over all labels.
        ema_momentum: momentum of the exponential moving average of the weights, which is evaluated and exported.
        validation: share of the training set that is held out.
        schedule: "cosine" decays from the peak to zero over the run, "constant" stays at the peak.
        scanned: share of the training images that are replaced by a simulated scan, framed as the service does it.
        outliers: images that are not digits, per training image. If above 0, the network also learns the probability
            that an image is a digit, see ``train``.
        certain_outliers: patterns, tangles of strokes and digits that touch, per training image, in the second half of
            the epochs and only in a recipe with outliers. Their targets come from no teacher: teachers that never saw
            such images take some for a digit.
        pen: images of pen digits per training image, in a run with pen strokes. Half of its outliers are pen characters.
        distillation: weight of the teachers' probabilities in each target, in a run with teachers.
        mixup: share of the images that are blended with another image of their batch, in a run with teachers. The
            targets of such images come from the teachers alone.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_momentum: float = 0.999
    validation: float = 1 / 12
    schedule: Literal["cosine", "constant"] = "cosine"
    scanned: float = 0.0
    outliers: float = 0.0
    certain_outliers: float = 0.0
    pen: float = 0.0
    distillation: float = 0.75
    mixup: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A network and how to train it.

    Attributes:
        name: value of ``--preset``.
        summary: a description in one line.
        layers: all but the last, which ``network`` adds.
        recipe: how it is trained.
        augmentation: random changes of training images.
    """

    name: str
    summary: str
    layers: tuple[Layer, ...]
    recipe: Recipe
    augmentation: Augmentation

    def network(self, num_labels: int) -> tuple[Layer, ...]:
        """Return all layers; the last outputs one logit per label."""
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
    summary="the default: five convolutions, strides instead of pooling, batch norm; augmented for real scans",
    layers=(
        # Strides first, so that most of the work is on 7x7 and less. No padding at the end, so that the last
        # convolution sees the whole image. Multiples of 16 suit onnxruntime's blocked convolutions.
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
        scanned=0.25,
        outliers=0.125,
        pen=0.3,
        distillation=0.9,
        mixup=0.5,
    ),
    augmentation=_REAL_INK,
)

_SMALL = Preset(
    name="small",
    summary="half the time of compact per image: fewer filters, no padding after the first layer; for more epochs",
    layers=(
        # The shape was chosen by measured time. onnxruntime computes up to four blocks of 16 filters at once, so most of
        # the work is in layers with a multiple of 64 filters. The sides are 14, 6, 4, 4, 2, 2 and 1.
        Conv(16, kernel=5, stride=2, batch_norm=True),
        Conv(64, kernel=4, stride=2, padding="valid", batch_norm=True),
        Conv(64, padding="valid", batch_norm=True),
        Conv(64, kernel=1, batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Conv(128, kernel=1, batch_norm=True),
        Conv(128, kernel=2, padding="valid", batch_norm=True),
        Flatten(),
    ),
    # Twice the epochs of compact: a network of this size needs them to reach its accuracy on corrupted images.
    recipe=replace(_COMPACT.recipe, epochs=80, certain_outliers=0.0625),
    augmentation=_REAL_INK,
)

_LARGE = Preset(
    name="large",
    summary="teacher of compact: nearly three times its multiply-adds, more of them before the second stride",
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
    recipe=Recipe(
        epochs=36, learning_rate=4e-3, warmup_epochs=1.0, weight_decay=0.05, scanned=0.25, outliers=0.125, pen=0.3
    ),
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

# -- Networks from tutorials and competitions: Adam with a constant learning rate, no augmentation ---------------------

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
    recipe=Recipe(epochs=20, warmup_epochs=0.0, schedule="constant", ema_momentum=0.0),
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
    recipe=Recipe(epochs=12, warmup_epochs=0.0, schedule="constant", ema_momentum=0.0),
    augmentation=Augmentation(),
)

# Dropout and learning rate (0.25, 0.25 and 0.001 before) were found by: digitserve-train tune --preset convpool2-bn
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
    recipe=Recipe(epochs=12, learning_rate=6.11e-3, warmup_epochs=0.0, schedule="constant", ema_momentum=0.0),
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
    recipe=Recipe(epochs=5, warmup_epochs=0.0, schedule="constant", ema_momentum=0.0),
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
    recipe=Recipe(epochs=10, warmup_epochs=0.0, schedule="constant", ema_momentum=0.0, validation=0.2),
    augmentation=Augmentation(),
)

PRESETS = {
    preset.name: preset
    for preset in (
        _COMPACT,
        _SMALL,
        _LARGE,
        _TINY,
        _RESNET8,
        _LENET5,
        _CONV2_DENSE256,
        _CONVPOOL2_BN,
        _CONV3_DENSE2,
        _VGG_BN,
    )
}
DEFAULT_PRESET = _COMPACT.name
