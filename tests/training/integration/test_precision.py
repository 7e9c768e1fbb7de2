"""Mixed precision: layers compute in it while training; checkpoints and exported graphs are float32."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from digitserve_training._tensorflow import keras
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import RunError
from digitserve_training.evaluate import converted_model
from digitserve_training.export import parity
from digitserve_training.fit.settings import Options, Settings, resolve, resolve_resumed
from digitserve_training.fit.train import Training, train
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.onnx_graph import ServingFunction, convert


def bars(number: int) -> Labelled:
    """Draw ten classes of images that are easy to learn: a bar at one of ten heights, in noise."""
    generator = np.random.default_rng(1)
    labels = np.arange(number) % 10
    images = generator.integers(0, 64, (number, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] = 255
    return Labelled(images, labels)


def start(precision: str) -> tuple[Settings, Split]:
    """Return settings and images of a run in a precision."""
    images = bars(300)
    options = Options(preset="lenet5", epochs=8, precision=precision)
    return resolve(options, images.names, splits.fingerprint(images)), splits.split(images)


def test_bfloat16_learns_and_exports_float32(tmp_path: Path) -> None:
    """A training in bfloat16 learns; checkpoint and graph are float32, and the graph passes the parity check."""
    settings, split = start("bfloat16")
    state = train(settings, split, tmp_path)

    assert state.history[-1]["validation_accuracy"] > 0.9
    assert {str(array.dtype) for array in state.arrays.values() if array.ndim} == {"float32"}
    function = ServingFunction(restore_network(state), 1.0)
    graph = convert(function)
    types = {value.data_type for value in onnx.load_from_string(graph).graph.initializer}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32}
    session = converted_model.open_session(
        graph, converted_model.make_golden(function, split.validation.images), split.training.names
    )
    parity.require(parity.compare(function, session, split.validation.images))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_layers_compute_in_the_precision(precision: str) -> None:
    """While training, every layer but the last computes in the precision of the settings, with float32 weights."""
    training = Training(*start(precision))

    *inner, logits = [layer for layer in training._network.layers if layer.weights]
    assert {layer.compute_dtype for layer in inner} == {precision}
    assert logits.compute_dtype == "float32"
    assert {weight.dtype for weight in training._network.weights} == {"float32"}
    assert {layer.compute_dtype for layer in training._average.layers if layer.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_float16_skips_steps_that_overflow() -> None:
    """A step whose scaled gradients overflow halves the loss scale and does not change the weights."""
    training = Training(*start("float16"))
    before = [weight.numpy() for weight in training._network.weights]
    training._optimizer.dynamic_scale.assign(1e38)

    training._compiled_step(np.arange(64), 0)

    assert float(training._optimizer.dynamic_scale.numpy()) == pytest.approx(5e37)
    assert all(np.array_equal(*pair) for pair in zip(before, training._network.get_weights(), strict=True))


def test_a_run_keeps_its_precision() -> None:
    """A run is resumed in the precision that it was started with; a run stored without precision, in float32."""
    settings, _ = start("bfloat16")

    assert resolve_resumed(Options(), settings, settings.data_sha256) == settings
    with pytest.raises(RunError, match="precision was bfloat16, now float32"):
        resolve_resumed(Options(precision="float32"), settings, settings.data_sha256)
    old = {name: value for name, value in settings.to_dict().items() if name != "precision"}
    assert Settings.from_dict(old, "a checkpoint").precision == "float32"
