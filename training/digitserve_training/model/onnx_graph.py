"""Conversion of a Keras network to the ONNX graph that is served, and Keras's own outputs to compare it with.

``evaluate`` and ``export`` both measure the graph made here, run by ``digitserve.inference.session``, so reports
describe what is served.
"""

from typing import Any, Protocol

import numpy as np
import onnx
import tf2onnx
from numpy.typing import NDArray

from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES
from digitserve.inference.session import Outputs
from digitserve_training._tensorflow import keras, tf
from digitserve_training.errors import ParityError
from digitserve_training.model.layers import INPUT_SHAPE

OPSET = 18
"""The highest opset that tf2onnx 1.17 writes."""

BATCH_AXIS = "batch"
_KERAS_BATCH_SIZE = 500


class ServingFunction(Protocol):
    """A ``tf.function`` from images uint8[N,28,28,1] to ``probabilities`` and ``ood_score``."""

    input_signature: Any

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify a batch."""


def serving_function(network: keras.Model, temperature: float) -> ServingFunction:
    """Add the outputs of a bundle's graph to a network.

    probabilities = softmax(logits / temperature), and ood_score = -logsumexp(logits). The latter is computed as
    log(max(softmax(logits))) - max(logits): the same number with fewer operations, and no exponent can overflow.

    Args:
        network: from uint8[N,28,28,1] to float32[N,labels] logits.
        temperature: above 0.
    """

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(images, training=False)
        untempered = tf.nn.softmax(logits)
        probabilities = untempered if temperature == 1 else tf.nn.softmax(logits / temperature)
        ood_score = tf.math.log(tf.reduce_max(untempered, axis=1)) - tf.reduce_max(logits, axis=1)
        return dict(zip(OUTPUT_NAMES, (probabilities, ood_score), strict=True))

    images_spec = tf.TensorSpec([None, *INPUT_SHAPE], tf.uint8, name=INPUT_NAME)
    compiled: ServingFunction = tf.function(classify, input_signature=[images_spec])
    return compiled


def run_keras(function: ServingFunction, images: NDArray[np.uint8]) -> Outputs:
    """Run a network in Keras, in batches.

    Args:
        function: from ``serving_function``.
        images: uint8[N,28,28,1].
    """
    starts = range(0, len(images), _KERAS_BATCH_SIZE)
    batches = [function(tf.constant(images[start : start + _KERAS_BATCH_SIZE])) for start in starts]
    return Outputs(*(np.concatenate([batch[name].numpy() for batch in batches]) for name in OUTPUT_NAMES))


def convert(function: ServingFunction) -> bytes:
    """Convert to ONNX; equal weights give equal bytes.

    Args:
        function: from ``serving_function``.

    Returns:
        A serialised model with the input ``images`` and the outputs ``probabilities`` and ``ood_score``.

    Raises:
        ParityError: the graph does not pass onnx's checker.
    """
    model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
    _multiply_matrices(model)
    _normalise(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"the converted graph does not pass onnx's checker: {error}") from None
    return bytes(model.SerializeToString(deterministic=True))


def _multiply_matrices(model: onnx.ModelProto) -> None:
    """Replace the convolution before Flatten by a product of matrices if its kernel covers the whole image.

    onnxruntime computes a convolution image by image, and such a convolution is one row per image. A product takes the rows
    of all images of a batch at once: for the last convolution of ``small``, 40 % of the time in float32, 25 % in int8.
    """
    graph = model.graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
    nodes = [*graph.node]
    for number, (conv, activation, flatten) in enumerate(zip(nodes, nodes[1:], nodes[2:], strict=False)):
        if (conv.op_type, activation.op_type, flatten.op_type) != ("Conv", "Relu", "Reshape"):
            continue
        kernel = constants[conv.input[1]]
        if shapes[conv.output[0]][2:] != [1, 1] or shapes[conv.input[0]][1:] != [*kernel.shape[1:]]:
            continue
        # Rows in the order height, width, channel: onnxruntime has channels last in memory, in float32 and in int8.
        rows = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)))
        last, flat, shape, matrix = (f"{conv.name}/{name}" for name in ("last", "flat", "shape", "matrix"))
        activation.output[0] = flatten.output[0]
        nodes[number : number + 3] = [
            onnx.helper.make_node("Transpose", [conv.input[0]], [last], perm=[0, 2, 3, 1]),
            onnx.helper.make_node("Reshape", [last, shape], [flat]),
            onnx.helper.make_node("Gemm", [flat, matrix, *conv.input[2:]], [conv.output[0]]),
            activation,
        ]
        constants |= {shape: np.array([-1, len(rows)]), matrix: rows}
        break
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(onnx.numpy_helper.from_array(constants[name], name) for name in constants if name in used)


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
