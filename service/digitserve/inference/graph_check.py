"""Checks of ``model.onnx`` before onnxruntime loads it: it is self-contained, and its tensors are not larger than the file.

``bundle`` calls it in the supervisor and in training. Only the parts of ONNX that the checks need are declared here; the
service does not depend on the package ``onnx``. Field numbers are those of onnx.proto (github.com/onnx/onnx, IR version 10).
Graphs are not trusted: a check takes at most about a second and memory in proportion to the file, whatever the file contains.
What a graph allocates while it runs is limited by ``memory_limit``.
"""

import math
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from digitserve.errors import BundleError

MAX_NODES = 10_000
"""Most nodes of a graph; that of the shipped model has 25, with int8 46."""

MAX_FIELDS = 250_000
"""Most fields of all messages in the file, and axes of its tensors. That of the shipped model has 1,000."""

MAX_AXES = 8
"""Most axes of a tensor; those of the shipped models have up to 4."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that onnxruntime itself implements: ONNX, classical machine learning, onnxruntime's own operators."""

_EXTERNAL = 1
"""TensorProto.DataLocation.EXTERNAL."""

_MESSAGES = {
    "Entry": {"key": ("string", 1)},
    "Tensor": {"dims": ("int64*", 1), "name": ("string", 8), "external_data": ("Entry*", 13), "data_location": ("int32", 14)},
    "SparseTensor": {"dims": ("int64*", 3)},
    "Attribute": {
        "name": ("string", 1), "t": ("Tensor", 5), "g": ("Graph", 6), "tensors": ("Tensor*", 10), "graphs": ("Graph*", 11),
        "sparse_tensor": ("SparseTensor", 22), "sparse_tensors": ("SparseTensor*", 23),
    },
    "Node": {"name": ("string", 3), "op_type": ("string", 4), "attribute": ("Attribute*", 5), "domain": ("string", 7)},
    "ValueInfo": {"name": ("string", 1)},
    "Graph": {
        "node": ("Node*", 1), "initializer": ("Tensor*", 5), "input": ("ValueInfo*", 11), "output": ("ValueInfo*", 12),
        "sparse_initializer": ("SparseTensor*", 15),
    },
    "Function": {"name": ("string", 1)},
    "Model": {"graph": ("Graph", 7), "functions": ("Function*", 25)},
}  # fmt: skip
"""Messages of onnx.proto without the suffix Proto, with type and number of each field; a star marks a repeated one."""

_SCALARS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}


def _model_class() -> Any:
    """Return the class of the message Model. proto2, as onnx.proto: strings need not be UTF-8."""
    file = descriptor_pb2.FileDescriptorProto(name="digitserve/graph_check.proto", package="digitserve.graph_check")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (declared, number) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if declared.endswith("*") else added.LABEL_OPTIONAL
            kind = declared.removesuffix("*")
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = added.TYPE_MESSAGE, f".{file.package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))


_Model = _model_class()

_CHILDREN = {
    name: {number: declared.removesuffix("*") for declared, number in fields.values() if declared != "string"}
    for name, fields in _MESSAGES.items()
}
"""By message: the fields that are messages or axes, with their types."""

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
"""Wire types of protobuf, and the sizes of those of fixed size. ONNX has no groups, the types 3 and 4."""

_MAX_VARINT_BYTES = 10


def check_graph(graph: bytes, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Check a graph before onnxruntime loads it.

    Args:
        graph: contents of ``model.onnx``.
        inputs: names that its inputs must have.
        outputs: names that its outputs must have.

    Raises:
        BundleError: it is no ONNX model; has other inputs or outputs; or has external data, custom operators, functions,
            sub-graphs, sparse tensors, more than ``MAX_NODES`` nodes or ``MAX_FIELDS`` fields, or a tensor that is larger
            than the file.
    """
    try:
        _check_num_fields(graph)
        model = _Model.FromString(graph)
    except (DecodeError, IndexError):
        raise _refused("it is no ONNX model") from None
    found = model.graph
    if model.functions:
        raise _refused("it defines functions", "export it with its functions inlined")
    if len(found.node) > MAX_NODES:
        raise _refused(f"it has {len(found.node):,} nodes; expected at most {MAX_NODES:,}")
    if found.sparse_initializer:
        raise _refused("it has sparse tensors", "export it with dense ones")
    stored = {tensor.name for tensor in found.initializer}
    _check_names("inputs", [value.name for value in found.input if value.name not in stored], inputs)
    _check_names("outputs", [value.name for value in found.output], outputs)
    for tensor in found.initializer:
        _check_tensor(tensor, len(graph))
    for node in found.node:
        _check_node(node, len(graph))


def _check_num_fields(graph: bytes) -> None:
    """Count the fields before protobuf parses them: an empty message of 2 bytes takes 100 bytes of memory.

    Raises:
        BundleError: there are too many.
        DecodeError, IndexError: the bytes are no protobuf message.
    """
    num_fields, unread = 0, [("Model", 0, len(graph))]
    while unread:
        message, position, end = unread.pop()
        if message not in _CHILDREN:  # packed integers: each takes at least one byte
            num_fields += end - position
            position = end
        while position < end and num_fields <= MAX_FIELDS:
            num_fields += 1
            tag, position = _read_varint(graph, position)
            wire_type = tag & 7
            if wire_type == _LENGTH_DELIMITED:
                size, start = _read_varint(graph, position)
                position = start + size
                child = _CHILDREN[message].get(tag >> 3)
                if size and child is not None:
                    unread.append((child, start, position))
            elif wire_type == _VARINT:
                _, position = _read_varint(graph, position)
            elif wire_type in _FIXED_BYTES:
                position += _FIXED_BYTES[wire_type]
            else:
                raise DecodeError
            if position > end:
                raise DecodeError
        if num_fields > MAX_FIELDS:
            raise _refused(f"it has more than {MAX_FIELDS:,} fields")


def _read_varint(graph: bytes, start: int) -> tuple[int, int]:
    """Return an integer, encoded with seven bits per byte, and the position after it."""
    number = 0
    for position in range(start, start + _MAX_VARINT_BYTES):
        byte = graph[position]
        number |= (byte & 0x7F) << 7 * (position - start)
        if byte < 0x80:  # noqa: PLR2004 - set in all bytes but the last
            return number, position + 1
    raise DecodeError


def _check_node(node: Any, graph_bytes: int) -> None:
    """Check a node. Control flow is rejected: a loop may run forever, and its allocations are unknown."""
    what = f"node '{node.name}' ({node.op_type})"
    if node.domain not in DOMAINS:
        raise _refused(f"{what} is a custom operator of '{node.domain}'", "use operators of ONNX")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise _refused(f"{what} has a sub-graph", "export it without Loop, Scan, If and SequenceMap")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise _refused(f"{what} has sparse tensors", "export it with dense ones")
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            _check_tensor(tensor, graph_bytes)


def _check_tensor(tensor: Any, graph_bytes: int) -> None:
    # onnxruntime treats some locations of external data as memory addresses.
    if tensor.data_location == _EXTERNAL or tensor.external_data:
        raise _refused(
            f"tensor '{tensor.name}' is external data, which the sha256 does not cover",
            "store all tensors in model.onnx",
        )
    # Few axes first: the product of many large ones takes minutes. The smallest elements are half a byte.
    dims = tensor.dims
    if len(dims) > MAX_AXES or any(dim < 0 for dim in dims) or math.prod(dims) > 2 * graph_bytes:
        raise _refused(
            f"tensor '{tensor.name}' has the shape {list(dims[:MAX_AXES])}{', ...' * (len(dims) > MAX_AXES)}; expected at most "
            f"{MAX_AXES} axes, and no more elements than a file of {graph_bytes:,} bytes can hold"
        )


def _check_names(what: str, got: list[str], expected: Iterable[str]) -> None:
    # Names that are not UTF-8 are bytes.
    got, expected = list(map(str, got)), sorted(expected)
    if sorted(got) != expected:
        raise _refused(f"its {what} are {got[:4]}{'...' if len(got) > 4 else ''}; expected {expected}")  # noqa: PLR2004


def _refused(reason: str, remedy: str = "") -> BundleError:
    return BundleError("signature", f"model.onnx cannot be served: {reason}" + (remedy and f"; {remedy}"))
