"""What a network is made of, as plain values: each layer knows its output shape and what it costs.

Nothing here needs TensorFlow, so a preset can be described, listed and counted anywhere. ``networks`` turns these values
into Keras layers, one to one; an integration test holds the two to the same shapes and counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Activation = Literal["relu", "tanh", "linear"]
Shape = tuple[int, ...]
"""One image's tensor, without the batch axis: (height, width, channels), or (features,) once flattened."""

INPUT_SHAPE: Shape = (28, 28, 1)


@dataclass(frozen=True)
class Cost:
    """What one layer makes of a shape.

    Attributes:
        output: shape of one image's tensor after the layer.
        parameters: numbers that the layer stores, moving statistics included, as ``keras.Model.count_params`` has it.
        multiply_adds: for one image, at inference; batch normalisation is folded into its convolution and costs none,
            and padding counts as if it were image, as is usual.
    """

    output: Shape
    parameters: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Conv:
    """A square 2-D convolution, then its activation; with ``batch_norm``, no bias and a normalisation in between."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: Literal["same", "valid"] = "same"
    batch_norm: bool = False
    activation: Activation = "relu"

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (height, width, channels)."""
        height, width, channels = shape
        output = (self._length(height), self._length(width), self.filters)
        kernels = self.kernel**2 * channels * self.filters
        # Scale, offset, moving mean and moving variance stand in for the bias.
        per_filter = 4 if self.batch_norm else 1
        return Cost(output, kernels + per_filter * self.filters, kernels * output[0] * output[1])

    def _length(self, length: int) -> int:
        reach = 0 if self.padding == "same" else self.kernel - 1
        return -(-(length - reach) // self.stride)


@dataclass(frozen=True)
class MaxPool:
    """Largest value of each ``size`` x ``size`` square, without overlap."""

    size: int = 2

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (height, width, channels)."""
        height, width, channels = shape
        return Cost((height // self.size, width // self.size, channels))


@dataclass(frozen=True)
class AveragePool:
    """Mean of each ``size`` x ``size`` square, without overlap."""

    size: int = 2

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (height, width, channels)."""
        return MaxPool(self.size).cost(shape)


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation on its own, where it does not stand between a convolution and its activation."""

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to any ``shape``; one multiply-add a value, for it may have nothing to fold into."""
        return Cost(shape, 4 * shape[-1], prod(shape))


@dataclass(frozen=True)
class Residual:
    """What the inner layers make of a tensor plus the tensor itself, then ReLU (He et al. 2016).

    Where the inner layers change the shape, a 1x1 convolution with normalisation brings the tensor to it.
    """

    inner: tuple["Layer", ...]

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (height, width, channels)."""
        parts = [*costs(self.inner, shape)]
        shortcut = self.shortcut(shape)
        if shortcut is not None:
            parts.append(shortcut.cost(shape))
        return Cost(parts[-1].output, sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts))

    def shortcut(self, shape: Shape) -> Conv | None:
        """Return what brings a tensor of ``shape`` to the shape that the inner layers give, None if it has it."""
        output = [*costs(self.inner, shape)][-1].output
        if output == shape:
            return None
        return Conv(output[-1], kernel=1, stride=-(-shape[0] // output[0]), batch_norm=True, activation="linear")


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean of each channel over height and width."""

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (height, width, channels)."""
        return Cost(shape[-1:])


@dataclass(frozen=True)
class Flatten:
    """All values in one row."""

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to any ``shape``."""
        return Cost((prod(shape),))


@dataclass(frozen=True)
class Dropout:
    """In training, zero this fraction of the values; at inference, nothing."""

    rate: float

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to any ``shape``."""
        return Cost(shape)


@dataclass(frozen=True)
class Dense:
    """A fully connected layer; the last one of a network gives logits and has no activation."""

    units: int
    activation: Activation = "relu"

    def cost(self, shape: Shape) -> Cost:
        """Count what the layer does to ``shape`` (features,)."""
        (features,) = shape
        return Cost((self.units,), (features + 1) * self.units, features * self.units)


Layer = Conv | MaxPool | AveragePool | BatchNorm | Residual | GlobalAveragePool | Flatten | Dropout | Dense


def costs(layers: Sequence[Layer], shape: Shape = INPUT_SHAPE) -> Iterator[Cost]:
    """Follow one image's tensor of ``shape`` through the layers and give the cost of each in turn."""
    for layer in layers:
        cost = layer.cost(shape)
        shape = cost.output
        yield cost


def count_parameters(layers: Sequence[Layer]) -> int:
    """Count the numbers that a network stores, moving statistics included."""
    return sum(cost.parameters for cost in costs(layers))


def count_multiply_adds(layers: Sequence[Layer]) -> int:
    """Count the multiply-adds of classifying one image; see ``Cost.multiply_adds`` for what is counted."""
    return sum(cost.multiply_adds for cost in costs(layers))
