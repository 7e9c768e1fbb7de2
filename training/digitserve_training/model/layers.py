"""Layers of a network as plain values. Each computes its output shape and its cost.

Needs no TensorFlow, so presets can be listed and counted without it. ``networks`` builds one Keras layer or block from
each value; an integration test checks that both have the same shapes and counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Activation = Literal["relu", "tanh", "linear"]
Shape = tuple[int, ...]
"""Shape of one image's tensor, without the batch axis: (height, width, channels), or (features,) once flattened."""

INPUT_SHAPE: Shape = (28, 28, 1)


@dataclass(frozen=True)
class Cost:
    """Output shape and cost of one layer.

    Attributes:
        output: shape of one image's tensor after the layer.
        parameters: numbers that the layer stores, including moving statistics, as ``keras.Model.count_params`` counts.
        multiply_adds: per image, at inference. Batch normalisation is folded into its convolution and costs nothing;
            padding counts as image, as is usual.
    """

    output: Shape
    parameters: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Conv:
    """A square 2-D convolution and its activation; ``batch_norm`` replaces the bias by a normalisation in between."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: Literal["same", "valid"] = "same"
    batch_norm: bool = False
    activation: Activation = "relu"

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for ``shape`` (height, width, channels)."""
        height, width, channels = shape
        output = (self._length(height), self._length(width), self.filters)
        kernels = self.kernel**2 * channels * self.filters
        # Scale, offset, moving mean and moving variance replace the bias.
        per_filter = 4 if self.batch_norm else 1
        return Cost(output, kernels + per_filter * self.filters, kernels * output[0] * output[1])

    def _length(self, length: int) -> int:
        lost = 0 if self.padding == "same" else self.kernel - 1
        return -(-(length - lost) // self.stride)


@dataclass(frozen=True)
class MaxPool:
    """Largest value of each ``size`` x ``size`` square, without overlap."""

    size: int = 2

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for ``shape`` (height, width, channels)."""
        height, width, channels = shape
        return Cost((height // self.size, width // self.size, channels))


@dataclass(frozen=True)
class AveragePool:
    """Mean of each ``size`` x ``size`` square, without overlap."""

    size: int = 2

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for ``shape`` (height, width, channels)."""
        return MaxPool(self.size).cost(shape)


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation as a separate layer, not between a convolution and its activation."""

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for any ``shape``: one multiply-add per value, because it may not be foldable."""
        return Cost(shape, 4 * shape[-1], prod(shape))


@dataclass(frozen=True)
class Residual:
    """A residual block: ReLU(inner layers of a tensor + the tensor itself) (He et al. 2016).

    If the inner layers change the shape, the shortcut is a 1x1 convolution with batch normalisation.
    """

    inner: tuple["Layer", ...]

    def cost(self, shape: Shape) -> Cost:
        """Return the block's cost for ``shape`` (height, width, channels)."""
        parts = [*costs(self.inner, shape)]
        shortcut = self.shortcut(shape)
        if shortcut is not None:
            parts.append(shortcut.cost(shape))
        return Cost(parts[-1].output, sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts))

    def shortcut(self, shape: Shape) -> Conv | None:
        """Return the convolution of the shortcut, or None if the inner layers keep ``shape``."""
        output = [*costs(self.inner, shape)][-1].output
        if output == shape:
            return None
        return Conv(output[-1], kernel=1, stride=-(-shape[0] // output[0]), batch_norm=True, activation="linear")


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean of each channel over height and width."""

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for ``shape`` (height, width, channels)."""
        return Cost(shape[-1:])


@dataclass(frozen=True)
class Flatten:
    """All values as one vector of features."""

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for any ``shape``."""
        return Cost((prod(shape),))


@dataclass(frozen=True)
class Dropout:
    """Zero a fraction ``rate`` of the values in training; do nothing at inference."""

    rate: float

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for any ``shape``."""
        return Cost(shape)


@dataclass(frozen=True)
class Dense:
    """A fully connected layer. The last one of a network outputs logits and has no activation."""

    units: int
    activation: Activation = "relu"

    def cost(self, shape: Shape) -> Cost:
        """Return the layer's cost for ``shape`` (features,)."""
        (features,) = shape
        return Cost((self.units,), (features + 1) * self.units, features * self.units)


Layer = Conv | MaxPool | AveragePool | BatchNorm | Residual | GlobalAveragePool | Flatten | Dropout | Dense


def costs(layers: Sequence[Layer], shape: Shape = INPUT_SHAPE) -> Iterator[Cost]:
    """Yield the cost of each layer in turn for an image of ``shape``."""
    for layer in layers:
        cost = layer.cost(shape)
        shape = cost.output
        yield cost


def count_parameters(layers: Sequence[Layer]) -> int:
    """Count the numbers that a network stores, including moving statistics."""
    return sum(cost.parameters for cost in costs(layers))


def count_multiply_adds(layers: Sequence[Layer]) -> int:
    """Count the multiply-adds per image; ``Cost.multiply_adds`` defines what is counted."""
    return sum(cost.multiply_adds for cost in costs(layers))
