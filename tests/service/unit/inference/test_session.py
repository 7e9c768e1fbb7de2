"""A session that exists has passed its checks; each that fails is named; nothing is left in the home folder."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from digitserve.errors import BundleError, ProviderError
from digitserve.inference import bundle
from digitserve.inference.session import Session
from support.bundles import echo_golden, echo_graph, echo_image, make_graph, manifest, write_echo_bundle


@pytest.fixture
def echo(tmp_path: Path) -> bundle.Bundle:
    """Read a good bundle."""
    return bundle.read(write_echo_bundle(tmp_path))


def failed_check(broken: bundle.Bundle) -> tuple[str, str]:
    """Return the check that opening a session fails, and its words."""
    with pytest.raises(BundleError) as caught:
        Session(broken)
    return caught.value.check, str(caught.value)


def change_graph(*, rename: dict[str, str] | None = None, drop: str | None = None) -> bytes:
    """Return the echo network with tensors renamed, or an output dropped."""
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


def test_an_echo_session_answers_each_image_with_its_own_number(echo: bundle.Bundle) -> None:
    """Rows come back in their order: the score is the image's number, the most probable label its last digit."""
    numbers = [0, 5, 70_001, 16_777_215, 42, 42]
    outputs = Session(echo).run(np.stack([echo_image(number) for number in numbers])[..., None])
    assert outputs.ood_score.tolist() == numbers
    assert outputs.probabilities.argmax(axis=1).tolist() == [number % 10 for number in numbers]
    assert outputs.probabilities.dtype == outputs.ood_score.dtype == np.float32
    assert outputs.probabilities.shape == (6, 10)


def test_warming_up_gives_the_time_of_an_image(echo: bundle.Bundle) -> None:
    """The batcher's first estimate is a number of seconds above 0, whatever the maximum."""
    session = Session(echo)
    assert all(session.warm_up(size) > 0 for size in (1, 3, 8))
    assert session.provider == "CPUExecutionProvider"


def test_a_graph_that_is_garbage_fails_the_check_of_the_signature(tmp_path: Path) -> None:
    """Its sha256 agrees, so only loading finds it."""
    broken = bundle.read(bundle.write(tmp_path, manifest(), b"no graph at all", echo_golden()))
    check, text = failed_check(broken)
    assert (check, "cannot load model.onnx" in text) == ("signature", True)


@pytest.mark.parametrize(
    "graph",
    [
        change_graph(rename={"images": "pictures"}),
        change_graph(rename={"ood_score": "score"}),
        change_graph(drop="ood_score"),
        echo_graph().replace(b"batch", b"group", 1),
    ],
    ids=["another input", "another output", "an output less", "axes of two names"],
)
def test_a_graph_of_other_names_fails_the_check_of_the_signature(echo: bundle.Bundle, graph: bytes) -> None:
    """Inputs and outputs must be those that every bundle has; how their free axes are called does not matter."""
    if b"group" in graph:
        Session(replace(echo, graph=graph))
        return
    check, text = failed_check(replace(echo, graph=graph))
    assert check == "signature"
    assert "expected" in text


def retype(dtype: int, shape: list[object]) -> bytes:
    """Return the echo network with another input."""
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
def test_a_graph_of_another_input_fails_the_check_of_the_signature(
    echo: bundle.Bundle, dtype: int, shape: list[object]
) -> None:
    """Type and shape count, and the batch axis must be free."""
    check, text = failed_check(replace(echo, graph=retype(dtype, shape)))
    assert (check, "the graph has" in text) == ("signature", True)


def with_golden(echo: bundle.Bundle, **arrays: NDArray) -> bundle.Bundle:
    """Return a bundle in which some golden arrays are others."""
    return replace(echo, golden=replace(echo.golden, **arrays))


@pytest.mark.parametrize("error", [2e-4, -0.5, np.nan, np.inf])
def test_probabilities_off_by_more_than_the_tolerance_fail_the_check_of_golden(
    echo: bundle.Bundle, error: float
) -> None:
    """One wrong value of one image is enough, and what is no number is wrong."""
    wrong = echo.golden.probabilities.copy()
    wrong[2, 3] += error
    check, text = failed_check(with_golden(echo, probabilities=wrong))
    assert (check, "allowed is 0.0001" in text) == ("golden", True)


def test_probabilities_within_the_tolerance_pass(echo: bundle.Bundle) -> None:
    """Other machines round otherwise."""
    Session(with_golden(echo, probabilities=echo.golden.probabilities + np.float32(5e-5)))


@pytest.mark.parametrize(("array", "within", "beyond"), [("probabilities", 1e-3, 3e-3), ("ood_score", 1e-2, 3e-2)])
def test_a_manifests_tolerance_is_honoured(echo: bundle.Bundle, array: str, within: float, beyond: float) -> None:
    """A bundle that allows more is opened where the default would refuse it, and refused beyond what it allows."""
    wide = replace(echo, manifest=replace(echo.manifest, golden_tolerance=2e-3))
    golden = getattr(echo.golden, array)
    off = {array: golden + np.float32(within)}
    Session(with_golden(wide, **off))
    assert failed_check(with_golden(echo, **off))[0] == "golden"
    assert failed_check(with_golden(wide, **{array: golden + np.float32(beyond)}))[0] == "golden"


@pytest.mark.parametrize("error", [0.5, -0.5, np.nan])
def test_a_wrong_ood_score_fails_the_check_of_golden(echo: bundle.Bundle, error: float) -> None:
    """The score decides what is called unfamiliar, so it is verified as the probabilities are."""
    wrong = echo.golden.ood_score.copy()
    wrong[1] += error
    check, text = failed_check(with_golden(echo, ood_score=wrong))
    assert (check, "ood_score" in text) == ("golden", True)


def test_a_graph_that_cannot_run_is_refused_in_words(echo: bundle.Bundle) -> None:
    """A graph that loads, has the signature, and then fails on a batch is refused in words, not with a traceback."""
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


def test_a_provider_that_is_not_there_is_a_refusal(echo: bundle.Bundle) -> None:
    """CUDA was asked for: without it nothing starts, and never silently on the CPU."""
    with pytest.raises(ProviderError, match="--device cuda: this onnxruntime has .*CPUExecutionProvider.*--device cpu"):
        Session(echo, device="cuda")


def test_auto_takes_the_cpu_where_there_is_nothing_else(echo: bundle.Bundle) -> None:
    """Nothing was asked for, so what is there will do."""
    assert Session(echo, device="auto").provider == "CPUExecutionProvider"


def test_onnxruntime_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    """No telemetry: a process that opens a session and runs it leaves no file behind."""
    path = write_echo_bundle(tmp_path / "models")
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys, pathlib; from digitserve.inference import bundle, session;"
        "session.Session(bundle.read(pathlib.Path(sys.argv[1]))).warm_up(2)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "HOME"))}
    environment = kept | {"HOME": str(home), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", program, str(path)], env=environment, cwd=home, check=True)
    assert not list(home.rglob("*"))
