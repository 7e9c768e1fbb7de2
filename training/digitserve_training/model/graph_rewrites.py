"""Rewrites of a converted ONNX graph that make it faster in onnxruntime; the outputs stay the same up to rounding.

``onnx_graph.convert`` calls them in order, between tf2onnx and onnx's checker. docs/decisions.md has the times. Needs no
TensorFlow.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.helper import make_node, make_tensor_value_info

from digitserve.inference.bundle import OUTPUT_NAMES

_LINEAR = ("Conv", "MatMul", "Gemm")
"""Operators whose second input is a factor of the output; padding with zeros does not change that."""


def fold_scale(model: onnx.ModelProto) -> None:
    """Multiply the weights of the first layer by the scale of the pixels instead of the pixels.

    A network of ``networks.build`` starts with Cast, Mul and Add (of 0). Nothing changes unless a layer with weights follows, with
    at most one Reshape before it, and no other operator reads the pixels.
    """
    graph, constants = model.graph, _constants(model)
    cast, scale, offset = graph.node[:3]
    first = layer = _only_reader(graph, offset.output[0])
    if first is not None and first.op_type == "Reshape":
        layer = _only_reader(graph, first.output[0])
    if first is None or layer is None or layer.op_type not in _LINEAR:
        return
    factor, weights = constants[scale.input[1]].item(), constants[layer.input[1]]
    # In float64, so that each weight is rounded once.
    scaled = (weights.astype(np.float64) * factor).astype(np.float32)
    layer.input[1] = _add_constant(model, f"{layer.input[1]}/scaled", scaled)
    first.input[0] = cast.output[0]
    graph.node.remove(scale)
    graph.node.remove(offset)


def multiply_matrices(model: onnx.ModelProto) -> None:
    """Replace the convolution before Flatten by a product of matrices if its kernel covers the whole image.

    onnxruntime computes a convolution image by image, and such a convolution is one row per image. A product takes the rows
    of all images of a batch at once: for the last convolution of ``small``, 40 % of the time in float32, 25 % in int8.
    """
    graph, constants = model.graph, _constants(model)
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
    nodes = [*graph.node]
    for number, (conv, activation, flatten) in enumerate(zip(nodes, nodes[1:], nodes[2:], strict=False)):
        if (conv.op_type, activation.op_type, flatten.op_type) != ("Conv", "Relu", "Reshape"):
            continue
        # A Reshape to four axes changes the order of axes between two convolutions of one pixel.
        if len(shapes[flatten.output[0]]) != 2:
            continue
        kernel = constants[conv.input[1]]
        if shapes[conv.output[0]][2:] != [1, 1] or shapes[conv.input[0]][1:] != [*kernel.shape[1:]]:
            continue
        # Rows in the order height, width, channel: onnxruntime has channels last in memory, in float32 and in int8.
        rows = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)))
        last, flat = f"{conv.name}/last", f"{conv.name}/flat"
        shape = _add_constant(model, f"{conv.name}/shape", np.array([-1, len(rows)]))
        matrix = _add_constant(model, f"{conv.name}/matrix", rows)
        activation.output[0] = flatten.output[0]
        nodes[number : number + 3] = [
            make_node("Transpose", [conv.input[0]], [last], perm=[0, 2, 3, 1]),
            make_node("Reshape", [last, shape], [flat]),
            make_node("Gemm", [flat, matrix, *conv.input[2:]], [conv.output[0]]),
            activation,
        ]
        break
    del graph.node[:]
    graph.node.extend(nodes)


def add_outputs(model: onnx.ModelProto, temperature: float) -> None:
    """Replace the only output, logits float32[N,labels], by the outputs of a bundle.

    probabilities = softmax(logits / temperature), and ood_score = -logsumexp(logits). They are added here because TensorFlow
    has no operator that becomes ReduceLogSumExp, which computes the score in one node and cannot overflow. Each node costs
    0.3 to 0.5 us per batch.
    """
    graph = model.graph
    (logits,) = graph.output
    labels = logits.type.tensor_type.shape.dim[1].dim_value
    probabilities, ood_score = OUTPUT_NAMES
    tempered = logits.name
    if temperature != 1:
        tempered = "tempered"
        factor = _add_constant(model, "inverse_temperature", np.array(1 / temperature, np.float32))
        graph.node.append(make_node("Mul", [logits.name, factor], [tempered]))
    axes = _add_constant(model, "axes", np.array([1]))
    graph.node.extend(
        [
            make_node("Softmax", [tempered], [probabilities], axis=1),
            make_node("ReduceLogSumExp", [logits.name, axes], ["logsumexp"], keepdims=0),
            make_node("Neg", ["logsumexp"], [ood_score]),
        ]
    )
    del graph.output[:]
    graph.output.extend(
        [
            make_tensor_value_info(probabilities, onnx.TensorProto.FLOAT, [None, labels]),
            make_tensor_value_info(ood_score, onnx.TensorProto.FLOAT, [None]),
        ]
    )


def remove_unused_constants(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    for constant in [constant for constant in model.graph.initializer if constant.name not in used]:
        model.graph.initializer.remove(constant)


def _only_reader(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto | None:
    readers = [node for node in graph.node if tensor in node.input]
    return readers[0] if len(readers) == 1 else None


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}


def _add_constant(model: onnx.ModelProto, name: str, value: NDArray[np.generic]) -> str:
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return name
