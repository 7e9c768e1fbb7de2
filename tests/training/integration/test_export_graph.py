"""What is promised about the exported graph, for networks with arbitrary weights, so that nothing hides behind zeros."""

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
from digitserve_training.model.layers import Conv, Dense, Flatten, GlobalAveragePool, Layer, MaxPool
from digitserve_training.model.networks import build
from digitserve_training.model.onnx_graph import Answering, answering, convert, reference
from digitserve_training.model.presets import PRESETS

IMAGES = np.random.default_rng(7).integers(0, 256, (211, 28, 28, 1), dtype=np.uint8)
SMALL: tuple[Layer, ...] = (
    Conv(16, stride=2, batch_norm=True),
    MaxPool(2),
    Conv(16, batch_norm=True),
    GlobalAveragePool(),
    Dense(10, activation="linear"),
)


def network(layers: tuple[Layer, ...] = SMALL, seed: int = 1) -> keras.Model:
    """Build a network whose biases and moving statistics are as arbitrary as its kernels."""
    keras.utils.set_random_seed(seed)
    built = build(layers)
    generator = np.random.default_rng(seed)
    for variable in built.weights:
        if variable.path.split("/")[-1] != "kernel":
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return built


def opened(answer: Answering) -> Session:
    """Convert and open, with golden answers to three images."""
    expected = reference(answer, IMAGES[:3])
    return open_session(convert(answer), Golden(IMAGES[:3], expected.probabilities, expected.ood_score), LABELS)


@pytest.mark.parametrize(
    "layers",
    [SMALL, PRESETS["compact"].network(10), (Flatten(), Dense(10, activation="linear"))],
    ids=["small", "compact", "dense"],
)
def test_parity(layers: tuple[Layer, ...]) -> None:
    """Onnxruntime gives Keras's answers on every image, in batches of odd sizes."""
    answer = answering(network(layers), 1.0)

    measured = parity.compare(answer, opened(answer), IMAGES)

    parity.require(measured)
    assert (measured.num_images, measured.num_other_labels) == (211, 0)


def test_signature_of_the_graph() -> None:
    """Inputs and outputs have the bundle's names, and the free axis is called batch."""
    graph = onnx.load_from_string(convert(answering(network(), 1.0))).graph

    axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)}  # fmt: skip
    assert axes == {"images": ["batch", 28, 28, 1], "probabilities": ["batch", 10], "ood_score": ["batch"]}


def test_graph_is_lean() -> None:
    """Batch normalisation is folded, and the strided network needs no transposition at all."""
    graph = onnx.load_from_string(convert(answering(network(PRESETS["compact"].network(10)), 1.0))).graph

    operators = Counter(node.op_type for node in graph.node)
    assert operators["Conv"] == 5
    assert not operators.keys() & {"BatchNormalization", "Transpose", "Shape", "Loop", "If"}


def test_equal_networks_give_equal_bytes() -> None:
    """Converting twice, or converting a network of equal weights, gives the same file; other weights another one."""
    answer = answering(network(), 1.0)
    graph = convert(answer)

    assert convert(answer) == graph
    assert convert(answering(network(), 1.0)) == graph
    assert convert(answering(network(seed=2), 1.0)) != graph


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_temperature_and_ood_score(temperature: float) -> None:
    """Probabilities are softmax(logits / temperature); the OOD score is -logsumexp(logits) at any temperature."""
    built = network()
    logits = built(IMAGES, training=False)

    outputs = opened(answering(built, temperature)).run(IMAGES)

    assert np.allclose(outputs.probabilities, tf.nn.softmax(logits / temperature), atol=1e-5)
    assert np.allclose(outputs.ood_score, -tf.reduce_logsumexp(logits, axis=1), atol=1e-4)


def test_huge_logits_stay_finite() -> None:
    """Logits far beyond what exp can take give finite answers."""
    built = network((Flatten(), Dense(10, activation="linear")))
    built.set_weights([np.full((784, 10), 50.0) * np.arange(10), np.zeros(10)])

    outputs = opened(answering(built, 1.0)).run(np.full((1, 28, 28, 1), 255, np.uint8))

    assert np.all(np.isfinite(outputs.probabilities))
    assert outputs.ood_score == pytest.approx(-784 * 50 * 9, rel=1e-5)


def test_slightly_perturbed_weights_are_found_on_the_test_images() -> None:
    """A graph whose weights are off by little passes no parity check, and the message has the figures."""
    built = network()
    session = opened(answering(built, 1.0))
    built.weights[-1].assign_add(np.linspace(0, 0.01, 10))

    measured = parity.compare(answering(built, 1.0), session, IMAGES)

    assert 1e-4 < measured.largest_difference < 0.1
    with pytest.raises(
        ParityError, match=r"largest difference of a probability 0\.\d+, allowed 0\.0001; .* of 211 labels"
    ):
        parity.require(measured)


def test_perturbed_weights_are_found_on_the_golden_images() -> None:
    """A graph of other weights does not even open, by the service's own check."""
    built = network()
    graph = convert(answering(built, 1.0))
    built.weights[-1].assign_add(np.arange(10.0))
    expected = reference(answering(built, 1.0), IMAGES[:3])

    with pytest.raises(ParityError, match="check 'golden' failed: probabilities differ by"):
        open_session(graph, Golden(IMAGES[:3], expected.probabilities, expected.ood_score), LABELS)


@pytest.mark.parametrize("figures", [(float("nan"), 0.0, 0), (0.0, float("nan"), 0), (0.0, 0.1, 0), (0.0, 0.0, 1)])
def test_parity_is_not_claimed_of_nan_or_other_labels(figures: tuple[float, float, int]) -> None:
    """A difference that is not a number, an OOD score that is off, or one other label: each is a failure."""
    assert not parity.Parity(*figures, num_images=10).holds
