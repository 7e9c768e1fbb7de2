"""What presets promise about their networks, counted without TensorFlow; an integration test holds Keras to the same."""

import pytest

from digitserve_training.layers import (
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    costs,
    count_multiply_adds,
    count_parameters,
)
from digitserve_training.presets import DEFAULT_PRESET, LABELS, PRESETS, Preset

MEBIBYTE = 1 << 20


def test_conv2_dense256_layer_by_layer() -> None:
    """The preset conv2-dense256 is the network of the issue: shapes, parameters and multiply-adds of each layer."""
    table = [(cost.output, cost.parameters, cost.multiply_adds) for cost in costs(PRESETS["conv2-dense256"].layers)]

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
    """The preset conv2-dense256 drops a quarter of the pooled values and half of the dense ones."""
    assert [layer.rate for layer in PRESETS["conv2-dense256"].layers if isinstance(layer, Dropout)] == [0.25, 0.5]


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("strided-")])
def test_strided_presets_are_small(name: str) -> None:
    """A strided preset has at most 250 000 parameters, 4 million multiply-adds, and fits 1 MB as float32."""
    layers = PRESETS[name].layers

    assert count_parameters(layers) <= 250_000
    assert count_multiply_adds(layers) <= 4_000_000
    assert 4 * count_parameters(layers) < MEBIBYTE


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("strided-")])
def test_strided_presets_suit_blocked_convolutions(name: str) -> None:
    """Filters come in multiples of 16, without which onnxruntime falls back to its slower convolution."""
    assert all(layer.filters % 16 == 0 for layer in PRESETS[name].layers if isinstance(layer, Conv))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_preset_gives_one_logit_a_label(preset: Preset) -> None:
    """Whatever the preset, its last layer is linear and as wide as there are labels."""
    assert preset.layers[-1] == Dense(len(LABELS), activation="linear")
    assert [*costs(preset.layers)][-1].output == (10,)


def test_preset_names() -> None:
    """Presets are found by their own names, and the default is one of them."""
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert DEFAULT_PRESET in PRESETS


@pytest.mark.parametrize(
    ("layer", "shape", "output", "parameters", "multiply_adds"),
    [
        (Conv(16), (28, 28, 1), (28, 28, 16), 160, 144 * 784),
        (Conv(16, stride=2), (27, 27, 1), (14, 14, 16), 160, 144 * 196),
        (Conv(16, stride=2, padding="valid"), (28, 28, 1), (13, 13, 16), 160, 144 * 169),
        (Conv(16, kernel=5, batch_norm=True), (8, 8, 2), (8, 8, 16), 800 + 64, 800 * 64),
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
    """Shapes, parameters and multiply-adds are what pencil and paper give."""
    cost = layer.cost(shape)

    assert (cost.output, cost.parameters, cost.multiply_adds) == (output, parameters, multiply_adds)
