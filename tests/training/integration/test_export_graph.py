"""The exported graph, for networks with arbitrary weights: zeros would hide errors."""

from collections import Counter

import numpy as np
import onnx
import pytest

from digitserve.inference.bundle import Golden
from digitserve.inference.session import Session
from digitserve_training._tensorflow import keras, tf
from digitserve_training.data.splits import LABELS
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.converted_model import open_session
from digitserve_training.export import parity
from digitserve_training.export.quantize import quantize
from digitserve_training.model.layers import (
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Residual,
)
from digitserve_training.model.networks import build
from digitserve_training.model.onnx_graph import ServingFunction, convert, run_keras
from digitserve_training.model.presets import PRESETS

IMAGES = np.random.default_rng(7).integers(0, 256, (211, 28, 28, 1), dtype=np.uint8)
SMALL: tuple[Layer, ...] = (
    Conv(16, stride=2, batch_norm=True),
    MaxPool(2),
    Conv(16, batch_norm=True),
    GlobalAveragePool(),
    Dense(10, activation="linear"),
)
DENSE: tuple[Layer, ...] = (Flatten(), Dense(10, activation="linear"))


def network(layers: tuple[Layer, ...] = SMALL, seed: int = 1) -> keras.Model:
    """Build a network with arbitrary kernels, biases and moving statistics."""
    keras.utils.set_random_seed(seed)
    built = build(layers)
    generator = np.random.default_rng(seed)
    for variable in built.weights:
        if variable.path.split("/")[-1] != "kernel":
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return built


def opened(function: ServingFunction) -> Session:
    """Convert a network and open the graph, with golden outputs for three images."""
    expected = run_keras(function, IMAGES[:3])
    return open_session(convert(function), Golden(IMAGES[:3], expected.probabilities, expected.ood_score), LABELS)


def operators_of(layers: tuple[Layer, ...]) -> Counter[str]:
    """Count the operators of a network's graph."""
    graph = onnx.load_from_string(convert(ServingFunction(network(layers), 1.0))).graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize(
    "layers",
    [SMALL, PRESETS["compact"].network(10), PRESETS["small"].network(10), DENSE],
    ids=["strides", "compact", "small", "dense"],
)
def test_parity(layers: tuple[Layer, ...]) -> None:
    """Onnxruntime gives Keras's outputs for every image, in all ``BATCH_SIZES``."""
    function = ServingFunction(network(layers), 1.0)

    measured = parity.compare(function, opened(function), IMAGES)

    parity.require(measured)
    assert (measured.num_images, measured.num_other_labels) == (211, 0)


def test_signature_of_the_graph() -> None:
    """Inputs and outputs have the names and shapes of a bundle, and the batch axis is free and called batch."""
    graph = onnx.load_from_string(convert(ServingFunction(network(), 1.0))).graph

    axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)}  # fmt: skip
    assert axes == {"images": ["batch", 28, 28, 1], "probabilities": ["batch", 10], "ood_score": ["batch"]}


def test_graph_has_no_superfluous_operators() -> None:
    """Normalisations and scales are part of weights, no Transpose is between convolutions, and each output has one operator more."""
    operators = operators_of(PRESETS["compact"].network(10))

    assert operators == {
        "Cast": 1, "Reshape": 2, "Conv": 4, "Relu": 5, "Transpose": 1, "Gemm": 1, "MatMul": 1, "Add": 1,
        "Softmax": 1, "ReduceLogSumExp": 1, "Neg": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("kernel", "padding", "num_products"), [(7, "valid", 1), (5, "valid", 0), (7, "same", 0)])
def test_convolution_over_the_whole_image_is_a_product(kernel: int, padding: str, num_products: int) -> None:
    """Only a convolution with one output position becomes a product of matrices; onnxruntime gives Keras's outputs."""
    layers = (
        Conv(8, stride=4, batch_norm=True),
        Conv(12, kernel=kernel, padding=padding, batch_norm=True),
        Flatten(),
        Dense(10, activation="linear"),
    )
    operators, function = operators_of(layers), ServingFunction(network(layers), 1.0)

    assert (operators["Gemm"], operators["Conv"]) == (num_products, 2 - num_products)
    parity.require(parity.compare(function, opened(function), IMAGES))


def test_only_the_last_convolution_of_one_pixel_is_a_product() -> None:
    """A convolution that covers the whole image stays one if another convolution follows; Keras's outputs are the same."""
    layers = (
        Conv(8, stride=4, batch_norm=True),
        Conv(12, kernel=7, padding="valid", batch_norm=True),
        Conv(16, kernel=1, batch_norm=True),
        Flatten(),
        Dense(10, activation="linear"),
    )
    operators, function = operators_of(layers), ServingFunction(network(layers), 1.0)

    assert (operators["Gemm"], operators["Conv"]) == (1, 2)
    parity.require(parity.compare(function, opened(function), IMAGES))


def test_int8_layers_compute_their_activation_in_int8() -> None:
    """In an int8 graph of convolutions and ReLU, only the first layer, which is float32, has a separate ReLU."""
    graph = quantize(convert(ServingFunction(network(PRESETS["small"].network(10)), 1.0)), IMAGES)

    operators = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
    assert (operators["Relu"], operators["Conv"] + operators["Gemm"]) == (1, 8)


@pytest.mark.parametrize("layers", [SMALL, DENSE], ids=["convolution", "product"])
def test_weights_of_the_first_layer_contain_the_scale_of_the_pixels(layers: tuple[Layer, ...]) -> None:
    """No operator scales the pixels if the first layer is a convolution or a product."""
    operators = operators_of(layers)

    assert (operators["Cast"], operators["Mul"]) == (1, 0)


@pytest.mark.parametrize(
    "first",
    [MaxPool(2), BatchNorm(), Conv(8, activation="tanh"), Residual((Conv(8, batch_norm=True),))],
    ids=["pooling", "normalisation", "convolution", "two-readers"],
)
def test_scale_of_the_pixels_with_any_first_layer(first: Layer) -> None:
    """Onnxruntime gives Keras's outputs. A scale that stays has as many axes as the images: with fewer, it costs 5 us per image."""
    function = ServingFunction(network((first, *SMALL)), 1.0)

    parity.require(parity.compare(function, opened(function), IMAGES))
    graph = onnx.load_from_string(convert(function)).graph
    shapes = {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    scales = [node for node in graph.node[:2] if node.op_type == "Mul"]
    assert [shapes[scale.input[1]] for scale in scales] == ([] if isinstance(first, Conv) else [[1, 1, 1, 1]])


def test_equal_networks_give_equal_bytes() -> None:
    """Converting twice, or converting a network with equal weights, gives equal bytes; other weights give others."""
    function = ServingFunction(network(), 1.0)
    graph = convert(function)

    assert convert(function) == graph
    assert convert(ServingFunction(network(), 1.0)) == graph
    assert convert(ServingFunction(network(seed=2), 1.0)) != graph


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_temperature_and_ood_score(temperature: float) -> None:
    """Probabilities are softmax(logits / temperature); the OOD score is -logsumexp(logits) at any temperature."""
    built = network()
    logits = built(IMAGES, training=False)

    outputs = opened(ServingFunction(built, temperature)).run(IMAGES)

    assert np.allclose(outputs.probabilities, tf.nn.softmax(logits / temperature), atol=1e-5)
    assert np.allclose(outputs.ood_score, -tf.reduce_logsumexp(logits, axis=1), atol=1e-4)


def test_huge_logits_stay_finite() -> None:
    """Logits beyond the range of exp give finite outputs."""
    built = network(DENSE)
    built.set_weights([np.full((784, 10), 50.0) * np.arange(10), np.zeros(10)])

    outputs = opened(ServingFunction(built, 1.0)).run(np.full((1, 28, 28, 1), 255, np.uint8))

    assert np.all(np.isfinite(outputs.probabilities))
    assert outputs.ood_score == pytest.approx(-784 * 50 * 9, rel=1e-5)


def test_parity_check_detects_slightly_perturbed_weights() -> None:
    """A graph with slightly different weights fails the parity check, and the error has the differences."""
    built = network()
    session = opened(ServingFunction(built, 1.0))
    built.weights[-1].assign_add(np.linspace(0, 0.01, 10))

    measured = parity.compare(ServingFunction(built, 1.0), session, IMAGES)

    assert 1e-4 < measured.largest_difference < 0.1
    with pytest.raises(
        ParityError, match=r"largest difference of a probability 0\.\d+, allowed 0\.0001; .* of 211 labels"
    ):
        parity.require(measured)


def test_golden_check_detects_perturbed_weights() -> None:
    """A graph with other weights fails the service's golden check when it is opened."""
    built = network()
    graph = convert(ServingFunction(built, 1.0))
    built.weights[-1].assign_add(np.arange(10.0))
    expected = run_keras(ServingFunction(built, 1.0), IMAGES[:3])

    with pytest.raises(ParityError, match="check 'golden' failed: probabilities differ by"):
        open_session(graph, Golden(IMAGES[:3], expected.probabilities, expected.ood_score), LABELS)


@pytest.mark.parametrize("differences", [(float("nan"), 0.0, 0), (0.0, float("nan"), 0), (0.0, 0.1, 0), (0.0, 0.0, 1)])
def test_each_difference_fails_parity(differences: tuple[float, float, int]) -> None:
    """A NaN, an OOD score beyond the tolerance, or one other label fails the parity check."""
    assert not parity.Parity(*differences, num_images=10).holds
