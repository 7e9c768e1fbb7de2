"""Bundles for tests. The echo network's output encodes its input, so a test can prove that each caller got its answer."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from digitserve.inference import bundle
from digitserve.v1 import digits_pb2 as pb

LABELS = tuple("0123456789")
THRESHOLD = 2.0**24
"""OOD threshold above every score of the echo network: no image is unfamiliar unless a test sets another one."""


def echo_image(number: int, num_labels: int = 10) -> NDArray[np.uint8]:
    """Return uint8[28,28] for which the echo network gives the label ``number % num_labels`` and the score ``number``."""
    image = np.zeros((28, 28), np.uint8)
    image[0, :3] = [number >> 16 & 255, number >> 8 & 255, number & 255]
    image[0, 3] = number % num_labels
    # One shape, as large as MNIST's and centred: the image is used as it is, and is neither blank nor several shapes.
    image[4:25, 10:19] = 255
    return image


def echo_request(*numbers: int, **options: Any) -> pb.ClassifyRequest:
    """Return a request whose predictions have these numbers as OOD scores."""
    return pb.ClassifyRequest(pixels=b"".join(echo_image(number).tobytes() for number in numbers), **options)


def echo_graph(num_labels: int = 10) -> bytes:
    """Return the echo network: pixels 0 to 2 encode ``ood_score``, and ``probabilities`` is the one-hot vector of pixel 3."""
    weights = np.zeros((784, 1), np.float32)
    weights[:3, 0] = [65536, 256, 1]
    constants = {
        "flat": np.array([-1, 784], np.int64),
        "line": np.array([-1], np.int64),
        "weights": weights,
        "third": np.array([3], np.int64),
        "depth": np.array(num_labels, np.int64),
        "off_on": np.array([0, 1], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["numbers"]),
        helper.make_node("Reshape", ["numbers", "line"], ["ood_score"]),
        helper.make_node("Gather", ["rows", "third"], ["digit"], axis=1),
        helper.make_node("Reshape", ["digit", "line"], ["digits"]),
        helper.make_node("Cast", ["digits"], ["classes"], to=TensorProto.INT64),
        helper.make_node("OneHot", ["classes", "depth", "off_on"], ["probabilities"]),
    ]
    return make_graph(nodes, constants, num_labels=num_labels)


def make_graph(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray], side: int = 28, num_labels: int = 10
) -> bytes:
    """Return a serialised ONNX model with the input and outputs that every bundle has."""
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", side, side, 1])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", num_labels]),
            helper.make_tensor_value_info("ood_score", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


def manifest(version: int = 1, **changes: object) -> bundle.Manifest:
    """Return a manifest for a network with ten labels; ``changes`` replaces fields, for example ``labels``."""
    inputs, outputs = bundle.graph_signature(len(changes.get("labels", LABELS)))  # type: ignore[arg-type]
    values = {
        "name": "digits", "version": version, "sha256": "", "inputs": inputs, "outputs": outputs, "labels": LABELS,
        "ood_threshold": THRESHOLD, "training": {"preset": "echo"}, "quality": {"test_accuracy": 1.0},
    }  # fmt: skip
    return bundle.Manifest(**(values | changes))


def echo_golden(num_labels: int = 10) -> bundle.Golden:
    """Return golden outputs of the echo network."""
    numbers = np.array([0, 1, 77, 70_001])
    return bundle.Golden(
        images=np.stack([echo_image(int(n), num_labels) for n in numbers])[..., None],
        probabilities=np.eye(num_labels, dtype=np.float32)[numbers % num_labels],
        ood_score=numbers.astype(np.float32),
    )


def write_echo_bundle(models: Path, version: int = 1, **changes: object) -> Path:
    """Write a bundle of the echo network and return its folder; ``changes`` replaces fields of the manifest."""
    written = manifest(version, **changes)
    num_labels = len(written.labels)
    return bundle.write_bundle(models, written, echo_graph(num_labels), echo_golden(num_labels))
