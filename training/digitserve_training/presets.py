"""Presets: named networks with the recipe that trains them, as data over the one builder in ``networks``.

A preset is all that decides a training apart from the images, the seed and the number of epochs. Needs no TensorFlow.
"""

from dataclasses import dataclass

from digitserve_training.layers import Conv, Dense, Dropout, Flatten, Layer, MaxPool

LABELS = tuple("0123456789")
NUM_LABELS = len(LABELS)


@dataclass(frozen=True)
class Augmentation:
    """Bounds of the random changes that ``augment`` makes to each training image, each drawn on its own.

    Attributes:
        rotation_deg: largest turn, either way.
        scale: largest change of size as a fraction, either way, for height and width apart.
        shear: largest horizontal shift for each pixel of height, either way.
        shift_px: largest move along each axis, in pixels.
        thicken: largest share of the dilated image (3x3 maximum) that is blended in.
        thin: largest share of the eroded image (3x3 minimum) that is blended in; strokes of MNIST are about three
            pixels wide, so the eroded image alone may be empty.
        blur: largest share of the blurred image (3x3 binomial) that is blended in.
        contrast: largest loss of ink as a fraction.
        noise: largest standard deviation of the Gaussian noise, as a fraction of full ink.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift_px: float = 0.0
    thicken: float = 0.0
    thin: float = 0.0
    blur: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, a linear warm-up, then half a cosine down to zero.

    Attributes:
        epochs: passes over the training images, unless told otherwise.
        batch_size: images a step.
        learning_rate: the peak, reached at the end of the warm-up.
        warmup_epochs: epochs of linear warm-up; at most half of the run, however short.
        weight_decay: decoupled, on kernels only.
        label_smoothing: share of each target that is spread over all labels.
        averaging: momentum of the moving average of the weights, which is what is evaluated and exported.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.999


@dataclass(frozen=True)
class Preset:
    """A network and how to train it.

    Attributes:
        name: what ``--preset`` takes.
        summary: one line for the help text.
        layers: the last gives one logit a label.
        recipe: optimisation.
        augmentation: of training images only.
    """

    name: str
    summary: str
    layers: tuple[Layer, ...]
    recipe: Recipe
    augmentation: Augmentation

    @property
    def definition(self) -> str:
        """All that shapes a training, as text: equal definitions train alike."""
        return repr((self.layers, self.recipe, self.augmentation))


_AFFINE_AND_STROKE = Augmentation(
    rotation_deg=15.0,
    scale=0.15,
    shear=0.2,
    shift_px=2.0,
    thicken=0.5,
    thin=0.5,
    blur=0.5,
    contrast=0.4,
    noise=0.08,
)

_LONG = Recipe(epochs=80, learning_rate=4e-3, warmup_epochs=2.0, weight_decay=0.05)

_STRIDED_CONV5 = Preset(
    name="strided-conv5",
    summary="five convolutions, strides in place of pooling, batch norm; small and fast",
    layers=(
        # Strides first, so that most of the work happens on 7x7 and less; no padding afterwards, so that the last
        # convolution sees the whole image at once. Multiples of 16 suit onnxruntime's blocked convolutions.
        Conv(32, kernel=5, stride=2, batch_norm=True),
        Conv(32, stride=2, batch_norm=True),
        Conv(64, padding="valid", batch_norm=True),
        Conv(64, padding="valid", batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Flatten(),
        Dense(NUM_LABELS, activation="linear"),
    ),
    recipe=_LONG,
    augmentation=_AFFINE_AND_STROKE,
)

_STRIDED_CONV5_WIDE = Preset(
    name="strided-conv5-wide",
    summary="strided-conv5 with half as many multiply-adds again",
    layers=(
        Conv(32, kernel=5, stride=2, batch_norm=True),
        Conv(48, stride=2, batch_norm=True),
        Conv(64, padding="valid", batch_norm=True),
        Conv(96, padding="valid", batch_norm=True),
        Conv(128, padding="valid", batch_norm=True),
        Flatten(),
        Dense(NUM_LABELS, activation="linear"),
    ),
    recipe=_LONG,
    augmentation=_AFFINE_AND_STROKE,
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
        Dense(NUM_LABELS, activation="linear"),
    ),
    recipe=Recipe(epochs=20),
    augmentation=_AFFINE_AND_STROKE,
)

PRESETS = {preset.name: preset for preset in (_STRIDED_CONV5, _STRIDED_CONV5_WIDE, _CONV2_DENSE256)}
DEFAULT_PRESET = _STRIDED_CONV5.name
