"""Shapes and costs of the presets' networks, computed without TensorFlow; an integration test compares with Keras."""

from dataclasses import replace

import pytest

from digitserve_training.model.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Residual,
    costs,
    count_multiply_adds,
    count_parameters,
)
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS, Preset


def test_conv2_dense256_layer_by_layer() -> None:
    """The preset conv2-dense256 has the known shapes, parameters and multiply-adds of each layer."""
    table = [
        (cost.output, cost.parameters, cost.multiply_adds) for cost in costs(PRESETS["conv2-dense256"].network(10))
    ]

    assert table == [
        ((26, 26, 32), 320, 194_688),
        ((24, 24, 64), 18_496, 10_616_832),
        ((12, 12, 64), 0, 0),
        ((12, 12, 64), 0, 0),
        ((9216,), 0, 0),
        ((256,), 2_359_552, 2_359_296),
        ((256,), 0, 0),
        ((10,), 2_570, 2_560),
    ]
    assert sum(parameters for _, parameters, _ in table) == 2_380_938


def test_conv2_dense256_dropout() -> None:
    """The dropout rates of conv2-dense256 are 0.25 after pooling and 0.5 after the dense layer."""
    assert [layer.rate for layer in PRESETS["conv2-dense256"].layers if isinstance(layer, Dropout)] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("compact", 350_000, 6_000_000), ("small", 250_000, 2_000_000), ("tiny", 20_000, 1_000_000)],
)
def test_small_presets_are_small(name: str, parameters: int, multiply_adds: int) -> None:
    """Parameters and multiply-adds of the presets that are chosen for their speed stay below the promised numbers."""
    layers = PRESETS[name].network(10)

    assert count_parameters(layers) <= parameters
    assert count_multiply_adds(layers) <= multiply_adds


@pytest.mark.parametrize("name", ["compact", "small", "tiny"])
def test_small_presets_suit_blocked_convolutions(name: str) -> None:
    """Numbers of filters are multiples of 16; otherwise onnxruntime uses a slower convolution."""
    assert all(layer.filters % 16 == 0 for layer in PRESETS[name].layers if isinstance(layer, Conv))


def test_small_has_about_half_the_multiply_adds_of_compact() -> None:
    """``small`` has at most 55 % of the multiply-adds of ``compact``, and its last convolution has one output pixel."""
    small, compact = (PRESETS[name].network(10) for name in ("small", "compact"))

    assert count_multiply_adds(small) <= 0.55 * count_multiply_adds(compact)
    assert [*costs(PRESETS["small"].layers)][-2].output == (1, 1, 128)


def test_small_is_trained_like_compact() -> None:
    """``small`` has the recipe and augmentation of ``compact``, except for more epochs and certain outliers."""
    small, compact = PRESETS["small"], PRESETS["compact"]

    assert replace(small.recipe, epochs=compact.recipe.epochs, certain_outliers=0.0) == compact.recipe
    assert small.augmentation == compact.augmentation


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_preset_outputs_one_logit_per_label(preset: Preset) -> None:
    """The last layer of every preset is linear and has one unit per label."""
    assert preset.network(7)[-1] == Dense(7, activation="linear")
    assert [*costs(preset.network(7))][-1].output == (7,)


@pytest.mark.parametrize(("name", "parameters"), [("lenet5", 61_706), ("vgg-bn", 597_738), ("conv3-dense2", 249_162)])
def test_known_networks_have_their_known_sizes(name: str, parameters: int) -> None:
    """LeNet-5 has the 61,706 parameters of the textbooks, vgg-bn the 598 thousand of its description."""
    assert count_parameters(PRESETS[name].network(10)) == parameters


def test_preset_names() -> None:
    """The keys of ``PRESETS`` are the presets' names, and the default is one of them."""
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert DEFAULT_PRESET in PRESETS


@pytest.mark.parametrize(
    ("layer", "shape", "output", "parameters", "multiply_adds"),
    [
        (Conv(16), (28, 28, 1), (28, 28, 16), 160, 144 * 784),
        (Conv(16, stride=2), (27, 27, 1), (14, 14, 16), 160, 144 * 196),
        (Conv(16, stride=2, padding="valid"), (28, 28, 1), (13, 13, 16), 160, 144 * 169),
        (Conv(16, kernel=5, batch_norm=True), (8, 8, 2), (8, 8, 16), 800 + 64, 800 * 64),
        (AveragePool(2), (7, 7, 3), (3, 3, 3), 0, 0),
        (BatchNorm(), (7, 7, 3), (7, 7, 3), 12, 147),
        (Residual((Conv(4), Conv(4))), (8, 8, 4), (8, 8, 4), 2 * (144 + 4), 2 * 144 * 64),
        (Residual((Conv(8, stride=2),)), (8, 8, 4), (4, 4, 8), 288 + 8 + 32 + 32, 320 * 16),
        (MaxPool(2), (7, 7, 3), (3, 3, 3), 0, 0),
        (GlobalAveragePool(), (7, 7, 3), (3,), 0, 0),
        (Flatten(), (7, 7, 3), (147,), 0, 0),
        (Dropout(0.5), (7, 7, 3), (7, 7, 3), 0, 0),
        (Dense(5), (7,), (5,), 40, 35),
    ],
)
def test_cost_of_each_kind_of_layer(
    layer: Conv, shape: tuple[int, ...], output: tuple[int, ...], parameters: int, multiply_adds: int
) -> None:
    """Output shape, parameters and multiply-adds of each kind of layer equal the values computed by hand."""
    cost = layer.cost(shape)

    assert (cost.output, cost.parameters, cost.multiply_adds) == (output, parameters, multiply_adds)
