"""Keras networks from a preset's layers: one builder for all presets.

A network takes uint8 pixels, scales them itself and outputs logits. ``onnx_graph`` adds probabilities, temperature and
OOD score. Called by ``fit``. Importing this module imports TensorFlow.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from digitserve_training._tensorflow import keras
from digitserve_training.model.layers import (
    INPUT_SHAPE,
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

LARGEST_PIXEL = 255

_ONE_ELEMENT = (1, 1, 1, 1)
"""As many axes as images have, for graphs in which ``graph_rewrites.fold_scale`` does not remove the scale. onnxruntime 1.31
combines [N,28,28,1] with a scalar of fewer axes element by element, because the last axis has one element: 5 us per image,
otherwise 0.1 us."""


def build(layers: Sequence[Layer]) -> keras.Model:
    """Build a network with new weights, drawn from Keras's global seed.

    Args:
        layers: all layers of a preset; the last outputs one logit per label.

    Returns:
        A model from uint8[N,28,28,1] to float32[N,labels] logits.
    """
    images = keras.Input(INPUT_SHAPE, dtype="uint8", name="images")
    scale, offset = np.full(_ONE_ELEMENT, 1 / LARGEST_PIXEL).tolist(), np.zeros(_ONE_ELEMENT).tolist()
    tensor = keras.layers.Rescaling(scale, offset, name="scale")(images)
    for number, layer in enumerate(layers, start=1):
        tensor = _apply(layer, tensor, f"{type(layer).__name__.lower()}_{number}")
    return keras.Model(images, tensor, name="digits")


def _apply(layer: Layer, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    if isinstance(layer, Residual):
        return _residual(layer, tensor, name)
    for keras_layer in _keras_layers(layer, name):
        tensor = keras_layer(tensor)
    return tensor


def _residual(layer: Residual, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    shortcut = layer.shortcut(tuple(tensor.shape[1:]))
    bypass = tensor if shortcut is None else _apply(shortcut, tensor, f"{name}_shortcut")
    for number, inner in enumerate(layer.inner, start=1):
        tensor = _apply(inner, tensor, f"{name}_{number}")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([bypass, tensor]))


def _keras_layers(layer: Layer, name: str) -> Iterator[keras.layers.Layer]:
    match layer:
        case Conv():
            yield from _convolution(layer, name)
        case MaxPool(size):
            yield keras.layers.MaxPooling2D(size, name=name)
        case AveragePool(size):
            yield keras.layers.AveragePooling2D(size, name=name)
        case BatchNorm():
            yield keras.layers.BatchNormalization(name=name)
        case GlobalAveragePool():
            yield keras.layers.GlobalAveragePooling2D(name=name)
        case Flatten():
            yield _Flatten(name=name)
        case Dropout(rate):
            yield keras.layers.Dropout(rate, name=name)
        case Dense(units, activation):
            # Logits stay float32 under mixed precision, because softmax and loss need the precision.
            dtype = "float32" if activation == "linear" else None
            yield keras.layers.Dense(units, activation=activation, name=name, dtype=dtype)


class _Flatten(keras.layers.Layer):  # type: ignore[misc] # Keras has no types
    """Flatten with a constant shape, so that equal weights export to equal graphs.

    Keras's own layer reads the size of each batch. Whether tf2onnx removes that operation depends on the hashes of its
    names, which differ between processes.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))


def _convolution(layer: Conv, name: str) -> Iterator[keras.layers.Layer]:
    yield keras.layers.Conv2D(
        layer.filters,
        layer.kernel,
        strides=layer.stride,
        padding=layer.padding,
        use_bias=not layer.batch_norm,
        # He initialisation, for ReLU: He et al. 2015, "Delving Deep into Rectifiers".
        kernel_initializer="he_normal",
        name=name,
    )
    if layer.batch_norm:
        yield keras.layers.BatchNormalization(name=f"{name}_norm")
    yield keras.layers.Activation(layer.activation, name=f"{name}_{layer.activation}")
