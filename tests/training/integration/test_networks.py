"""Keras networks, compared with the presets that they are built from."""

import numpy as np
import pytest

from digitserve_training._tensorflow import keras
from digitserve_training.model.layers import Dense, Flatten, Layer, costs, count_parameters
from digitserve_training.model.networks import build
from digitserve_training.model.presets import PRESETS, Preset


def keras_layers(network: keras.Model, number: int) -> list[keras.layers.Layer]:
    """Return the Keras layers that were built from one layer of a preset."""
    return [layer for layer in network.layers if layer.name.split("_")[1:2] == [str(number)]]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_keras_agrees_layer_by_layer(preset: Preset) -> None:
    """Each Keras layer has the output shape and the number of parameters that ``costs`` computes."""
    network = build(preset.network(10))

    for number, cost in enumerate(costs(preset.network(10)), start=1):
        built = keras_layers(network, number)
        assert built[-1].output.shape == (None, *cost.output)
        assert sum(layer.count_params() for layer in built) == cost.parameters
    assert network.count_params() == count_parameters(preset.network(10))


def test_conv2_dense256_in_keras() -> None:
    """Keras counts 2,380,938 parameters in conv2-dense256."""
    assert build(PRESETS["conv2-dense256"].network(10)).count_params() == 2_380_938


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_pixels_in_logits_out(preset: Preset) -> None:
    """A network maps uint8 pixels to finite float32 logits, one row per image, independent of the batch."""
    network = build(preset.network(10))
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)

    logits = network(images, training=False).numpy()

    assert (logits.shape, logits.dtype) == ((3, 10), np.float32)
    assert np.all(np.isfinite(logits))
    assert np.allclose(network(images[1:2], training=False).numpy(), logits[1:2], atol=1e-4)


def test_scaling_is_part_of_the_network() -> None:
    """A pixel of 255 is scaled to 1: the sum over a white image is its number of pixels."""
    layers: tuple[Layer, ...] = (Flatten(), Dense(1, activation="linear"))
    network = build(layers)
    network.set_weights([np.ones((784, 1)), np.zeros(1)])

    assert network(np.full((1, 28, 28, 1), 255, np.uint8)).numpy() == pytest.approx(784, rel=1e-5)


def test_weights_come_from_the_seed() -> None:
    """The same seed gives the same initial weights; another seed gives others."""
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append(np.concatenate([w.ravel() for w in build(PRESETS["compact"].network(10)).get_weights()]))

    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
