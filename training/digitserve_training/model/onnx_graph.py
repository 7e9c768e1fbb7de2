"""Conversion of a Keras network to the ONNX graph that is served, and Keras's own outputs to compare it with.

``evaluate`` and ``export`` both measure the graph made here, run by ``digitserve.inference.session``, so reports
describe what is served.
"""

import numpy as np
import onnx
import tf2onnx
from numpy.typing import NDArray

from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES
from digitserve.inference.session import Outputs
from digitserve_training._tensorflow import keras, tf
from digitserve_training.errors import ParityError
from digitserve_training.model import graph_rewrites
from digitserve_training.model.layers import INPUT_SHAPE

OPSET = 18
"""The highest opset that tf2onnx 1.17 writes."""

BATCH_AXIS = "batch"
_KERAS_BATCH_SIZE = 500


class ServingFunction:
    """A network with the outputs of a bundle's graph, computed by Keras.

    Attributes:
        logits: ``tf.function`` from uint8[N,28,28,1] to float32[N,labels]; ``convert`` converts it.
        temperature: divisor of the logits, above 0.
    """

    def __init__(self, network: keras.Model, temperature: float) -> None:
        """Take a network from uint8[N,28,28,1] to float32[N,labels] logits, and its temperature."""
        images_spec = tf.TensorSpec([None, *INPUT_SHAPE], tf.uint8, name=INPUT_NAME)
        self.logits = tf.function(lambda images: network(images, training=False), input_signature=[images_spec])
        self.temperature = temperature

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify uint8[N,28,28,1]: probabilities = softmax(logits / temperature), ood_score = -logsumexp(logits)."""
        logits = self.logits(images)
        outputs = (tf.nn.softmax(logits / self.temperature), -tf.reduce_logsumexp(logits, axis=1))
        return dict(zip(OUTPUT_NAMES, outputs, strict=True))


def run_keras(function: ServingFunction, images: NDArray[np.uint8]) -> Outputs:
    """Run a network in Keras, in batches.

    Args:
        function: the network.
        images: uint8[N,28,28,1].
    """
    starts = range(0, len(images), _KERAS_BATCH_SIZE)
    batches = [function(tf.constant(images[start : start + _KERAS_BATCH_SIZE])) for start in starts]
    return Outputs(*(np.concatenate([batch[name].numpy() for batch in batches]) for name in OUTPUT_NAMES))


def convert(function: ServingFunction) -> bytes:
    """Convert the network to ONNX and add the outputs of a bundle; equal weights give equal bytes.

    Args:
        function: the network.

    Returns:
        A serialised model with the input ``images`` and the outputs ``probabilities`` and ``ood_score``.

    Raises:
        ParityError: the graph does not pass onnx's checker.
    """
    model, _ = tf2onnx.convert.from_function(function.logits, function.logits.input_signature, opset=OPSET)
    graph_rewrites.fold_scale(model)
    graph_rewrites.multiply_matrices(model)
    graph_rewrites.add_outputs(model, function.temperature)
    graph_rewrites.remove_unused_constants(model)
    _normalise(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"the converted graph does not pass onnx's checker: {error}") from None
    return bytes(model.SerializeToString(deterministic=True))


def _normalise(model: onnx.ModelProto) -> None:
    """Remove what differs between two conversions of one network: counters in names, and tf2onnx's comments."""
    model.producer_name, model.producer_version, model.doc_string = "digitserve-train", "", ""
    model.graph.name, model.graph.doc_string = "digits", ""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS
    _rename(model.graph)


def _rename(graph: onnx.GraphProto) -> None:
    """Number tensors in the order of their first use; the graph's inputs and outputs keep their names."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        for tensors in (node.input, node.output):
            tensors[:] = [names.setdefault(name, f"tensor_{len(names)}") for name in tensors]
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]
    graph.initializer.sort(key=lambda initializer: initializer.name)
