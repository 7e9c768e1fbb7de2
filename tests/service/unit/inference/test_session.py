"""A session that exists has passed its checks; an error names the failed check; onnxruntime writes no files."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from digitserve.errors import BundleError, ProviderError
from digitserve.inference import bundle
from digitserve.inference.session import Session
from support.bundles import echo_graph, echo_image, make_graph, write_echo_bundle


@pytest.fixture
def echo(tmp_path: Path) -> bundle.Bundle:
    """Read a valid bundle."""
    return bundle.read_bundle(write_echo_bundle(tmp_path))


def failed_check(broken: bundle.Bundle) -> tuple[str, str]:
    """Return the check that fails when a session is opened, and the error's text."""
    with pytest.raises(BundleError) as caught:
        Session(broken)
    return caught.value.check, str(caught.value)


def change_graph(*, rename: dict[str, str] | None = None, drop: str | None = None) -> bytes:
    """Return the echo network with some tensors renamed, or without one output."""
    model = onnx.load_from_string(echo_graph())
    names = rename or {}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    kept = [output for output in model.graph.output if output.name != drop]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return bytes(model.SerializeToString())


def test_rows_of_the_outputs_are_in_the_order_of_the_images(echo: bundle.Bundle) -> None:
    """For the echo network, the score is the image's number and the most probable label its last digit."""
    numbers = [0, 5, 70_001, 16_777_215, 42, 42]
    outputs = Session(echo).run(np.stack([echo_image(number) for number in numbers])[..., None])
    assert outputs.ood_score.tolist() == numbers
    assert outputs.probabilities.argmax(axis=1).tolist() == [number % 10 for number in numbers]
    assert outputs.probabilities.dtype == outputs.ood_score.dtype == np.float32
    assert outputs.probabilities.shape == (6, 10)


def test_warm_up_returns_the_time_per_image(echo: bundle.Bundle) -> None:
    """The batcher's first estimate is a positive number of seconds, for any maximum batch size."""
    session = Session(echo)
    assert all(session.warm_up(size) > 0 for size in (1, 3, 8))
    assert session.provider == "CPUExecutionProvider"


def allocating_graph(num_elements: int, batch_power: int = 0) -> bytes:
    """Return the echo network with a node that fills ``num_elements`` times the batch size to a power."""
    model = onnx.load_from_string(echo_graph())
    constants = {"axis": np.array([0]), "first": np.array([0]), "last": np.array([1]), "size": np.array([num_elements])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["images"], ["shape"], start=0, end=1),
            *(helper.make_node("Mul", [f"f{n}" if n else "size", "shape"], [f"f{n + 1}"]) for n in range(batch_power)),
            helper.make_node("ConstantOfShape", [f"f{batch_power}" if batch_power else "size"], ["filled"]),
            helper.make_node("ReduceMax", ["filled", "axis"], ["most"]),
        ]
    )
    scores = next(node for node in model.graph.node if "ood_score" in node.output)
    scores.output[0] = "scores"
    model.graph.node.append(helper.make_node("Add", ["scores", "most"], ["ood_score"]))
    return bytes(model.SerializeToString())


def test_a_graph_that_needs_gigabytes_fails_a_check(echo: bundle.Bundle) -> None:
    """An error instead of a process that the kernel kills; afterwards the process can allocate as before."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    Session(replace(echo, graph=allocating_graph(1 << 20)))
    check, text = failed_check(replace(echo, graph=allocating_graph(1 << 29)))
    assert (check in {"signature", "golden"}, "alloc" in text) == (True, True)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_graph_that_needs_gigabytes_for_large_batches_fails_the_warm_up(echo: bundle.Bundle) -> None:
    """The golden images are few; memory may grow with the square of the batch size."""
    session = Session(replace(echo, graph=allocating_graph(1 << 9, batch_power=2)))
    session.warm_up(8)
    with pytest.raises(BundleError, match="check 'warm-up' failed: the graph fails on a batch of 1024 images: .*alloc"):
        session.warm_up(1024)


def test_a_file_in_onnxruntimes_own_format_fails_the_signature_check(echo: bundle.Bundle, tmp_path: Path) -> None:
    """``graph_check`` reads ONNX only, so onnxruntime may take the bytes for nothing else."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(echo.graph, options)
    graph = (tmp_path / "model.ort").read_bytes()
    onnxruntime.InferenceSession(graph)
    assert failed_check(replace(echo, graph=graph))[0] == "signature"


def test_an_invalid_graph_fails_the_signature_check(echo: bundle.Bundle) -> None:
    """A file that is not an ONNX graph is found when it is loaded."""
    check, text = failed_check(replace(echo, graph=b"no graph at all"))
    assert (check, "cannot load model.onnx" in text) == ("signature", True)


@pytest.mark.parametrize(
    "graph",
    [
        change_graph(rename={"images": "pictures"}),
        change_graph(rename={"ood_score": "score"}),
        change_graph(drop="ood_score"),
        echo_graph().replace(b"batch", b"group", 1),
    ],
    ids=["renamed input", "renamed output", "missing output", "two names of the batch axis"],
)
def test_wrong_tensor_names_fail_the_signature_check(echo: bundle.Bundle, graph: bytes) -> None:
    """Inputs and outputs must have the names that every bundle has; the names of free axes do not matter."""
    if b"group" in graph:
        Session(replace(echo, graph=graph))
        return
    check, text = failed_check(replace(echo, graph=graph))
    assert check == "signature"
    assert "expected" in text


def retype(dtype: int, shape: list[object]) -> bytes:
    """Return the echo network with another type or shape of its input."""
    model = onnx.load_from_string(echo_graph())
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", dtype, shape))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (TensorProto.FLOAT, ["batch", 28, 28, 1]),
        (TensorProto.UINT8, [1, 28, 28, 1]),
        (TensorProto.UINT8, ["batch", 28, 28]),
        (TensorProto.UINT8, ["batch", 1, 28, 28]),
        (TensorProto.UINT8, ["batch", "height", 28, 1]),
    ],
)
def test_a_wrong_input_type_or_shape_fails_the_signature_check(
    echo: bundle.Bundle, dtype: int, shape: list[object]
) -> None:
    """The input must have the right type and shape, with a free batch axis."""
    check, text = failed_check(replace(echo, graph=retype(dtype, shape)))
    assert (check, "the graph has" in text) == ("signature", True)


def with_golden(echo: bundle.Bundle, **arrays: NDArray) -> bundle.Bundle:
    """Return a bundle with some golden arrays replaced."""
    return replace(echo, golden=replace(echo.golden, **arrays))


@pytest.mark.parametrize("error", [2e-4, -0.5, np.nan, np.inf])
def test_probabilities_beyond_the_tolerance_fail_the_golden_check(echo: bundle.Bundle, error: float) -> None:
    """One wrong value of one image is enough; NaN and infinity are wrong."""
    wrong = echo.golden.probabilities.copy()
    wrong[2, 3] += error
    check, text = failed_check(with_golden(echo, probabilities=wrong))
    assert (check, "the tolerance is 0.0001" in text) == ("golden", True)


def test_probabilities_within_the_tolerance_pass(echo: bundle.Bundle) -> None:
    """A difference within the tolerance passes, because machines round differently."""
    Session(with_golden(echo, probabilities=echo.golden.probabilities + np.float32(5e-5)))


@pytest.mark.parametrize(("array", "within", "beyond"), [("probabilities", 1e-3, 3e-3), ("ood_score", 1e-2, 3e-2)])
def test_the_tolerance_of_the_manifest_is_used(echo: bundle.Bundle, array: str, within: float, beyond: float) -> None:
    """A bundle with a larger tolerance opens where the default would fail, and fails beyond its own tolerance."""
    wide = replace(echo, manifest=replace(echo.manifest, golden_tolerance=2e-3))
    golden = getattr(echo.golden, array)
    off = {array: golden + np.float32(within)}
    Session(with_golden(wide, **off))
    assert failed_check(with_golden(echo, **off))[0] == "golden"
    assert failed_check(with_golden(wide, **{array: golden + np.float32(beyond)}))[0] == "golden"


@pytest.mark.parametrize("error", [0.5, -0.5, np.nan])
def test_a_wrong_ood_score_fails_the_golden_check(echo: bundle.Bundle, error: float) -> None:
    """The score decides which images are unfamiliar, so it is verified as the probabilities are."""
    wrong = echo.golden.ood_score.copy()
    wrong[1] += error
    check, text = failed_check(with_golden(echo, ood_score=wrong))
    assert (check, "ood_score" in text) == ("golden", True)


def test_a_graph_that_fails_to_run_fails_the_golden_check(echo: bundle.Bundle) -> None:
    """A graph that loads, has the right signature, and then fails on a batch gives a BundleError."""
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Gather", ["rows", "first"], ["index"], axis=1),
        helper.make_node("Add", ["index", "beyond"], ["outside"]),
        helper.make_node("Gather", ["table", "outside"], ["ood_score"]),
        helper.make_node("Gather", ["rows", "some"], ["digits"], axis=1),
        helper.make_node("Cast", ["digits"], ["probabilities"], to=TensorProto.FLOAT),
    ]
    constants = {
        "flat": np.array([-1, 784], np.int64), "first": np.array(0, np.int64), "some": np.arange(10),
        "beyond": np.array(1000, np.int64), "table": np.zeros(1, np.float32),
    }  # fmt: skip
    check, text = failed_check(replace(echo, graph=make_graph(nodes, constants)))
    assert (check, "the graph fails on the images of golden.npz" in text) == ("golden", True)


def test_a_missing_provider_is_an_error(echo: bundle.Bundle) -> None:
    """With ``cuda`` and no CUDA, no session opens; it never runs on the CPU instead."""
    with pytest.raises(ProviderError, match="--device cuda: this onnxruntime has .*CPUExecutionProvider.*--device cpu"):
        Session(echo, device="cuda")


def test_auto_runs_on_the_cpu_without_cuda(echo: bundle.Bundle) -> None:
    """With ``auto`` and no CUDA, the session runs on the CPU."""
    assert Session(echo, device="auto").provider == "CPUExecutionProvider"


def test_onnxruntime_writes_nothing_into_the_home_directory(tmp_path: Path) -> None:
    """Telemetry is off: a process that opens and runs a session leaves no file behind."""
    path = write_echo_bundle(tmp_path / "models")
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys, pathlib; from digitserve.inference import bundle, session;"
        "session.Session(bundle.read_bundle(pathlib.Path(sys.argv[1]))).warm_up(2)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "HOME"))}
    environment = kept | {"HOME": str(home), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", program, str(path)], env=environment, cwd=home, check=True)
    assert not list(home.rglob("*"))
