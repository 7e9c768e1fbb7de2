"""Mixed precision: faster arithmetic while training, and no trace of it in what comes out."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from digitserve_training._tensorflow import keras
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import RunError
from digitserve_training.evaluate import candidate
from digitserve_training.export import parity
from digitserve_training.fit.settings import Options, Settings, resume, start
from digitserve_training.fit.train import Training, train
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.onnx_graph import convert


def bars(number: int) -> Labelled:
    """Draw images of ten kinds that any network tells apart: a bar at one of ten heights, in noise."""
    generator = np.random.default_rng(1)
    labels = np.arange(number) % 10
    images = generator.integers(0, 64, (number, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] = 255
    return Labelled(images, labels)


def begin(precision: str) -> tuple[Settings, Split]:
    images = bars(300)
    asked = Options(preset="lenet5", epochs=8, precision=precision)
    return start(asked, images.names, splits.fingerprint(images)), splits.split(images)


def test_learns_and_leaves_float32(tmp_path: Path) -> None:
    """A training in bfloat16 learns; checkpoint and exported graph are float32 alone, and the graph is the network."""
    chosen, split = begin("bfloat16")
    state = train(chosen, split, tmp_path)

    assert state.history[-1]["validation_accuracy"] > 0.9
    assert {str(array.dtype) for array in state.arrays.values() if array.ndim} == {"float32"}
    answer = candidate.serving_function(restore_network(state), 1.0)
    graph = convert(answer)
    held = {value.data_type for value in onnx.load_from_string(graph).graph.initializer}
    assert held <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32}
    session = candidate.open_session(graph, candidate.make_golden(answer, split.validation), split.training.names)
    parity.require(parity.compare(answer, session, split.validation.images))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_layers_compute_in_it(precision: str) -> None:
    """While training, every layer but the logits computes in the precision asked for, on float32 weights."""
    training = Training(*begin(precision))

    *inner, logits = [layer for layer in training._network.layers if layer.weights]
    assert {layer.compute_dtype for layer in inner} == {precision}
    assert logits.compute_dtype == "float32"
    assert {weight.dtype for weight in training._network.weights} == {"float32"}
    assert {layer.compute_dtype for layer in training._average.layers if layer.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_float16_skips_what_overflows() -> None:
    """A step whose scaled gradients overflow halves the scale and leaves the weights as they were."""
    training = Training(*begin("float16"))
    before = [weight.numpy() for weight in training._network.weights]
    training._optimizer.dynamic_scale.assign(1e38)

    training._compiled_step(np.arange(64), 0)

    assert float(training._optimizer.dynamic_scale.numpy()) == pytest.approx(5e37)
    assert all(np.array_equal(*pair) for pair in zip(before, training._network.get_weights(), strict=True))


def test_a_run_keeps_its_precision() -> None:
    """A run is resumed in the precision that it was started with; runs from before there was a choice, in float32."""
    chosen, _ = begin("bfloat16")

    assert resume(Options(), chosen, chosen.data_sha256) == chosen
    with pytest.raises(RunError, match="precision was bfloat16, now float32"):
        resume(Options(precision="float32"), chosen, chosen.data_sha256)
    old = {name: value for name, value in vars(chosen).items() if name != "precision"}
    assert Settings(**old).precision == "float32"
