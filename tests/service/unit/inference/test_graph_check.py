"""A graph is rejected before onnxruntime loads it, unless it is self-contained and uses only operators of ONNX."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from digitserve.errors import BundleError
from digitserve.inference import graph_check
from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES
from support.bundles import echo_graph
from support.memory import limited_to
from support.protobuf import field

ROOT = Path(__file__).parents[4]
Change = Callable[[onnx.ModelProto], object]


def check(graph: bytes) -> None:
    """Check a graph as ``bundle`` does."""
    graph_check.check_graph(graph, [INPUT_NAME], OUTPUT_NAMES)


def external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Store a tensor in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def ones(name: str = "ones") -> onnx.TensorProto:
    """Return a tensor of one element."""
    return numpy_helper.from_array(np.ones(1, np.float32), name)


def sparse() -> onnx.SparseTensorProto:
    """Return a sparse tensor that stands for a dense one of 4 TB."""
    return helper.make_sparse_tensor(ones(), numpy_helper.from_array(np.array([7])), [10**12])


def add_node(model: onnx.ModelProto, operator: str, **attributes: object) -> onnx.NodeProto:
    """Append a node whose output is not used."""
    node = helper.make_node(operator, [], [f"unused {len(model.graph.node)}"], name="added", **attributes)
    model.graph.node.append(node)
    return node


def add_loop(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    """Append a loop whose body has an initializer."""
    body = helper.make_graph([helper.make_node("Identity", [tensor.name], ["copy"])], "body", [], [], [tensor])
    add_node(model, "Loop", body=body)


def add_function(model: onnx.ModelProto) -> None:
    """Define a function that calls itself."""
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    opset = helper.make_opsetid("local", 1)
    model.functions.append(helper.make_function("local", "Twice", ["x"], ["y"], [node], [opset]))


def add_outputs(model: onnx.ModelProto) -> None:
    """Append 1,500 outputs with long names."""
    for number in range(1500):
        model.graph.output.add(name=f"{number}" * 60)


def in_memory(model: onnx.ModelProto) -> None:
    """Make a tensor an address in memory, which onnxruntime would read, without marking it as external."""
    model.graph.initializer[0].external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")


def nest(model: onnx.ModelProto) -> None:
    """Nest 30 sub-graphs, of which the innermost has a custom operator."""
    graph = helper.make_graph([helper.make_node("Run", [], [], domain="evil.ops")], "g", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", [], [], body=graph)], "g", [], [])
    model.graph.node.append(graph.node[0])


def packed_axes() -> bytes:
    """Return a model with a tensor of 300,000 axes, encoded with one byte each."""
    return field(7, field(5, field(1, b"\1" * 300_000)))


REFUSED: dict[str, tuple[Change, str]] = {
    "external": (lambda model: external(model.graph.initializer[0]), "external data.* store all tensors in model.onnx"),
    "address": (in_memory, "external data"),
    "external in a node": (lambda model: add_node(model, "Constant", value=external(ones())), "external data"),
    "external in a list": (lambda model: add_node(model, "Custom", values=[external(ones())]), "external data"),
    "external in a loop": (lambda model: add_loop(model, external(ones())), r"node 'added' \(Loop\) has a sub-graph"),
    "loop": (lambda model: add_loop(model, ones()), "sub-graph.* without Loop"),
    "function": (add_function, "defines functions"),
    "custom operator": (lambda model: add_node(model, "Run", domain="evil.ops"), r"\(Run\) is a custom operator of 'evil.ops'"),
    "outputs": (add_outputs, r"its outputs are \['probabilities', .*expected \['ood_score', 'probabilities'\]"),
    "no outputs": (lambda model: model.graph.ClearField("output"), r"its outputs are \[\]"),
    "input": (lambda model: model.graph.input.add(name="more"), "its inputs are"),
    "sparse": (lambda model: model.graph.sparse_initializer.append(sparse()), "sparse tensors"),
    "sparse constant": (lambda model: add_node(model, "Constant", sparse_value=sparse()), "sparse tensors"),
    "huge": (lambda model: model.graph.initializer[0].dims.append(10**12), r"has the shape \[.*1000000000000\]"),
    "huge constant": (
        lambda model: add_node(model, "Constant", value=TensorProto(dims=[1 << 32, 1 << 32], data_type=1)), "has the shape"
    ),
    "huge product": (
        lambda model: add_node(model, "Constant", value=TensorProto(dims=[1 << 62] * 20_000, data_type=1)),
        r"the shape \[4611686018427387904, .*\], \.\.\.; expected at most 8 axes",
    ),
    "nested": (nest, "has a sub-graph"),
    "many tensors": (lambda model: model.graph.initializer.extend([TensorProto()] * 300_000), "more than 250,000 fields"),
    "many attributes": (
        lambda model: model.graph.node[0].attribute.extend([onnx.AttributeProto()] * 300_000),
        "more than 250,000 fields",
    ),
    "packed axes": (lambda model: model.MergeFromString(packed_axes()), "more than 250,000 fields"),
    "control characters": (
        lambda model: add_node(model, "Run\x1b[31m", domain="evil.ops\0"), r"\(Run\?\[31m\) is a custom operator of 'evil.ops\?'"
    ),
    "negative": (lambda model: model.graph.initializer[0].dims.append(-1), "has the shape"),
    "nodes": (lambda model: [add_node(model, "Identity") for _ in range(10_001)], "10,009 nodes; expected at most 10,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_not_self_contained_is_refused(name: str) -> None:
    """The error names the node or tensor, and what to do."""
    change, message = REFUSED[name]
    model = onnx.load_from_string(echo_graph())
    change(model)
    with pytest.raises(BundleError, match=message) as caught:
        check(model.SerializeToString())
    assert caught.value.check == "signature"
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        (field(7, field(1, field(3, b"\xff") + field(4, b"\xfe") + field(7, b"\xfd"))), "is a custom operator of"),
        (field(7, field(5, field(8, b"\xff") + b"\x70\1")), "external data"),
        (field(7, field(11, field(1, b"\xff"))), "its inputs are"),
        (field(7, field(12, field(1, b"\xff"))), "its outputs are"),
        (field(7, field(5, b"\x08" + b"\xff" * 10)), "it is no ONNX model"),
        (field(7, field(5, b"\x09")), "it is no ONNX model"),
        (field(7, field(1, b"\x0b\x0c")), "it is no ONNX model"),
    ],
)
def test_a_graph_that_onnx_cannot_write_is_refused(addition: bytes, message: str) -> None:
    """Names that are not UTF-8, and damaged fields: appended bytes extend a message of protobuf."""
    with pytest.raises(BundleError, match=message):
        check(echo_graph() + addition)


@pytest.mark.parametrize("number", [1, 5, 11, 12, 15], ids=["nodes", "tensors", "inputs", "outputs", "sparse"])
def test_a_graph_of_many_messages_takes_little_memory(number: int) -> None:
    """4 million empty messages take 400 MB when protobuf parses them; they are counted first."""
    graph = echo_graph() + field(7, field(number, b"") * (1 << 22))
    with limited_to(1 << 26), pytest.raises(BundleError, match="it has more than 250,000 fields"):
        check(graph)


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*/*/model.onnx")), ids=lambda path: path.parts[-3])
def test_the_graphs_of_the_shipped_bundles_pass(path: Path) -> None:
    """float32 and int8, as exported."""
    check(path.read_bytes())


def test_an_initializer_that_is_also_an_input_is_not_an_input() -> None:
    """ONNX up to IR version 3 lists initializers as inputs too."""
    model = onnx.load_from_string(echo_graph())
    for tensor in model.graph.initializer:
        model.graph.input.add(name=tensor.name)
    check(model.SerializeToString())


def test_field_numbers_are_those_of_onnx() -> None:
    """Each declared member has its name, number and kind in onnx.proto."""
    for name, fields in graph_check._MESSAGES.items():
        declared = {"Entry": "StringStringEntryProto", "ValueInfo": "ValueInfoProto"}.get(name, f"{name}Proto")
        descriptor = getattr(onnx, declared).DESCRIPTOR
        for member, (kind, number) in fields.items():
            original = descriptor.fields_by_name[member]
            assert (original.number, original.is_repeated) == (number, kind.endswith("*")), (name, member)
            message = re.sub("^(StringString)?|Proto$", "", original.message_type.name if original.message_type else "")
            assert message == ("" if kind in {"string", "int32", "int64*"} else kind.removesuffix("*")), (name, member)


@given(content=st.binary(max_size=200), place=st.integers(0, 2000), bit=st.integers(0, 7))
def test_any_bytes_pass_or_are_refused(content: bytes, place: int, bit: int) -> None:
    """Neither arbitrary bytes nor a graph with a flipped bit raises another exception than BundleError."""
    damaged = bytearray(echo_graph())
    damaged[place % len(damaged)] ^= 1 << bit
    for graph in (content, bytes(damaged)):
        try:
            check(graph)
        except BundleError as error:
            assert error.check == "signature"
