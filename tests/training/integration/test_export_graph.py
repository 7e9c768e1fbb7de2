"""The exported graph, for networks with arbitrary weights: zeros would hide errors."""

from collections import Counter

import numpy as np
import onnx
import pytest

from digitserve.inference.bundle import Golden, find_bundle
from digitserve.inference.session import Session
from digitserve_training._tensorflow import keras, tf
from digitserve_training.data.splits import LABELS
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.converted_model import open_session
from digitserve_training.export import parity
from digitserve_training.export.quantize import quantize
from digitserve_training.model.layers import Conv, Dense, Flatten, GlobalAveragePool, Layer, MaxPool
from digitserve_training.model.networks import build
from digitserve_training.model.onnx_graph import ServingFunction, convert, run_keras, serving_function
from digitserve_training.model.presets import PRESETS
from tests.support.digits import MODELS

IMAGES = np.random.default_rng(7).integers(0, 256, (211, 28, 28, 1), dtype=np.uint8)
SMALL: tuple[Layer, ...] = (
    Conv(16, stride=2, batch_norm=True),
    MaxPool(2),
    Conv(16, batch_norm=True),
    GlobalAveragePool(),
    Dense(10, activation="linear"),
)


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
    graph = onnx.load_from_string(convert(serving_function(network(layers), 1.0))).graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize(
    "layers",
    [SMALL, PRESETS["compact"].network(10), PRESETS["small"].network(10), (Flatten(), Dense(10, activation="linear"))],
    ids=["strides", "compact", "small", "dense"],
)
def test_parity(layers: tuple[Layer, ...]) -> None:
    """Onnxruntime gives Keras's outputs for every image, in all ``BATCH_SIZES``."""
    function = serving_function(network(layers), 1.0)

    measured = parity.compare(function, opened(function), IMAGES)

    parity.require(measured)
    assert (measured.num_images, measured.num_other_labels) == (211, 0)


def test_signature_of_the_graph() -> None:
    """Inputs and outputs have the names and shapes of a bundle, and the batch axis is free and called batch."""
    graph = onnx.load_from_string(convert(serving_function(network(), 1.0))).graph

    axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)}  # fmt: skip
    assert axes == {"images": ["batch", 28, 28, 1], "probabilities": ["batch", 10], "ood_score": ["batch"]}


def test_graph_has_no_superfluous_operators() -> None:
    """Batch normalisation is folded, and convolutions have no Transpose between them."""
    operators = operators_of(PRESETS["compact"].network(10))

    assert (operators["Conv"], operators["Transpose"]) == (4, 1)
    assert not operators.keys() & {"BatchNormalization", "Shape", "Loop", "If"}


@pytest.mark.parametrize(("kernel", "padding", "num_products"), [(7, "valid", 1), (5, "valid", 0), (7, "same", 0)])
def test_convolution_over_the_whole_image_is_a_product(kernel: int, padding: str, num_products: int) -> None:
    """Only a convolution with one output position becomes a product of matrices; onnxruntime gives Keras's outputs."""
    layers = (
        Conv(8, stride=4, batch_norm=True),
        Conv(12, kernel=kernel, padding=padding, batch_norm=True),
        Flatten(),
        Dense(10, activation="linear"),
    )
    operators, function = operators_of(layers), serving_function(network(layers), 1.0)

    assert (operators["Gemm"], operators["Conv"]) == (num_products, 2 - num_products)
    parity.require(parity.compare(function, opened(function), IMAGES))


def test_int8_layers_compute_their_activation_in_int8() -> None:
    """In an int8 graph of convolutions and ReLU, only the first layer, which is float32, has a separate ReLU."""
    graph = quantize(convert(serving_function(network(PRESETS["small"].network(10)), 1.0)), IMAGES)

    operators = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
    assert (operators["Relu"], operators["Conv"] + operators["Gemm"]) == (1, 8)


@pytest.mark.parametrize("name", ["digits", "digits-int8", None], ids=["float32", "int8", "converted"])
def test_scale_of_the_pixels_has_as_many_axes_as_the_images(name: str | None) -> None:
    """Onnxruntime combines images with a scalar of fewer axes element by element: 5 us per image."""
    if name:
        graph = (find_bundle(MODELS, name) / "model.onnx").read_bytes()
    else:
        graph = convert(serving_function(network(), 1.0))
    model = onnx.load_from_string(graph).graph

    shapes = {initializer.name: list(initializer.dims) for initializer in model.initializer}
    scale = next(node for node in model.node if node.op_type == "Mul")
    assert [shapes[name] for name in scale.input if name in shapes] == [[1, 1, 1, 1]]


def test_equal_networks_give_equal_bytes() -> None:
    """Converting twice, or converting a network with equal weights, gives equal bytes; other weights give others."""
    function = serving_function(network(), 1.0)
    graph = convert(function)

    assert convert(function) == graph
    assert convert(serving_function(network(), 1.0)) == graph
    assert convert(serving_function(network(seed=2), 1.0)) != graph


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_temperature_and_ood_score(temperature: float) -> None:
    """Probabilities are softmax(logits / temperature); the OOD score is -logsumexp(logits) at any temperature."""
    built = network()
    logits = built(IMAGES, training=False)

    outputs = opened(serving_function(built, temperature)).run(IMAGES)

    assert np.allclose(outputs.probabilities, tf.nn.softmax(logits / temperature), atol=1e-5)
    assert np.allclose(outputs.ood_score, -tf.reduce_logsumexp(logits, axis=1), atol=1e-4)


def test_huge_logits_stay_finite() -> None:
    """Logits beyond the range of exp give finite outputs."""
    built = network((Flatten(), Dense(10, activation="linear")))
    built.set_weights([np.full((784, 10), 50.0) * np.arange(10), np.zeros(10)])

    outputs = opened(serving_function(built, 1.0)).run(np.full((1, 28, 28, 1), 255, np.uint8))

    assert np.all(np.isfinite(outputs.probabilities))
    assert outputs.ood_score == pytest.approx(-784 * 50 * 9, rel=1e-5)


def test_parity_check_detects_slightly_perturbed_weights() -> None:
    """A graph with slightly different weights fails the parity check, and the error has the differences."""
    built = network()
    session = opened(serving_function(built, 1.0))
    built.weights[-1].assign_add(np.linspace(0, 0.01, 10))

    measured = parity.compare(serving_function(built, 1.0), session, IMAGES)

    assert 1e-4 < measured.largest_difference < 0.1
    with pytest.raises(
        ParityError, match=r"largest difference of a probability 0\.\d+, allowed 0\.0001; .* of 211 labels"
    ):
        parity.require(measured)


def test_golden_check_detects_perturbed_weights() -> None:
    """A graph with other weights fails the service's golden check when it is opened."""
    built = network()
    graph = convert(serving_function(built, 1.0))
    built.weights[-1].assign_add(np.arange(10.0))
    expected = run_keras(serving_function(built, 1.0), IMAGES[:3])

    with pytest.raises(ParityError, match="check 'golden' failed: probabilities differ by"):
        open_session(graph, Golden(IMAGES[:3], expected.probabilities, expected.ood_score), LABELS)


@pytest.mark.parametrize("differences", [(float("nan"), 0.0, 0), (0.0, float("nan"), 0), (0.0, 0.1, 0), (0.0, 0.0, 1)])
def test_each_difference_fails_parity(differences: tuple[float, float, int]) -> None:
    """A NaN, an OOD score beyond the tolerance, or one other label fails the parity check."""
    assert not parity.Parity(*differences, num_images=10).holds
