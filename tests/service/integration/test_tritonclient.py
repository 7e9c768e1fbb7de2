"""NVIDIA's client for Triton, in an environment of its own: it needs protobuf 6, and its stubs collide with ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.open_inference import open_inference_pb2 as oip
from support.bundles import echo_image, write_echo_bundle
from support.digits import MODELS
from support.serving import PATIENCE_S, run_worker

ROOT = MODELS.parent
CLIENT = ROOT / "tests" / "support" / "triton" / "client.py"
NUMBERS = [5, 70_001, 16_777_215]
SCRIPT_WITH_OUR_CLIENT = """
import sys
import numpy as np
import tritonclient.grpc as triton
from digitserve.client import Client
images = np.load(sys.argv[2])
with Client(sys.argv[1]) as client, triton.InferenceServerClient(sys.argv[1]) as other:
    tensor = triton.InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    labels = other.infer("digits", [tensor]).as_numpy("label").tolist()
    assert [int(prediction.label) for prediction in client.classify(images)] == labels, labels
"""


def run(*command: str | Path, **variables: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False, env=os.environ | variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment with the packages of ``requirements/tritonclient.txt``."""
    folder, uv = tmp_path_factory.mktemp("triton") / "environment", Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--no-project", f"--python={sys.executable}", folder)
    lock = ROOT / "requirements" / "tritonclient.txt"
    run(uv, "pip", "sync", "--quiet", "--require-hashes", f"--python={folder}", lock)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with images whose answers are ``NUMBERS``, and a blank one."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.stack([*map(echo_image, NUMBERS), np.zeros((28, 28), np.uint8)])[..., None])
    return path


@pytest.fixture(scope="module", params=["native", "grpcio"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models")
    write_echo_bundle(models)
    with run_worker(models, transport=request.param) as worker:
        yield worker.address


@pytest.fixture(scope="module")
def results(address: str, python: Path, images: Path) -> dict[str, Any]:
    """Return what tritonclient got."""
    found: dict[str, Any] = json.loads(run(python, "-P", CLIENT, address, images))
    return found


def test_every_way_to_send_a_request_gets_the_answers(results: dict[str, Any]) -> None:
    """``as_numpy`` returns every output in its datatype and shape: sent at once, compressed, as [N, H, W], with parameters,
    asynchronously and over asyncio; the id is returned.
    """
    answers = results["answers"]
    assert answers["ood_score"] == [*NUMBERS, 0]
    assert answers["label"] == [*(number % 10 for number in NUMBERS), -1]
    assert answers["verdict"] == ["ACCEPTED"] * 3 + ["BLANK"]
    assert answers["probabilities"] == np.eye(10)[[number % 10 for number in (*NUMBERS, 0)]].tolist()
    for way in ("compressed", "grey", "parameters", "aio"):
        assert results[way] == answers
    found, messages = results["asynchronous"]
    assert found == {str(number): answers["ood_score"] for number in range(10)}
    assert messages == ["model name: got 'mnist'; expected 'digits', the model that is served"]
    assert results["id"] == "an id"


def test_state_and_metadata(results: dict[str, Any]) -> None:
    """The server is live and ready; of the models only the served version is; the metadata describes both."""
    assert results["state"] == [True, True, True, True, False, False]
    described = results["metadata"]
    assert (described["server"], described["extensions"]) == ("digitserve", ["classification"])
    model = described["model"]
    assert (model["name"], model["versions"], model["platform"]) == ("digits", ["1"], "onnx_onnxv1")
    assert [(tensor["name"], tensor["datatype"]) for tensor in model["inputs"]] == [("images", "UINT8")]
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in model["outputs"]] == [
        ("probabilities", "FP32", ["-1", "10"]), ("ood_score", "FP32", ["-1"]), ("label", "INT64", ["-1"]),
        ("verdict", "BYTES", ["-1"]),
    ]  # fmt: skip


def test_requested_outputs_and_classification(results: dict[str, Any]) -> None:
    """Only requested outputs are returned; ``class_count`` gives "value:index:label", the most probable first."""
    assert results["subset"] == [["verdict", "label"], None]
    assert [row[0] for row in results["classes"]] == [f"1.000000:{n % 10}:{n % 10}" for n in (*NUMBERS, 0)]
    assert [len(row) for row in results["classes"]] == [3] * 4


ERRORS = {
    "model": ("NOT_FOUND", "model name: got 'mnist'; expected 'digits'"),
    "version": ("NOT_FOUND", "model_version: got '9'; expected '1'"),
    "datatype": ("INVALID_ARGUMENT", "images: got datatype 'FP32'; expected UINT8"),
    "shape": ("INVALID_ARGUMENT", "images: got shape [4, 784]; expected [images, height, width]"),
    "input": ("INVALID_ARGUMENT", "inputs: got 'masks'; expected 'images'"),
    "output": ("INVALID_ARGUMENT", "outputs: got 'logits'; expected 'probabilities'"),
    "shared memory": ("INVALID_ARGUMENT", "input 'images': got parameter 'shared_memory_"),
    "output in shared memory": ("INVALID_ARGUMENT", "output 'label': got parameter 'shared_memory_"),
    "timeout": ("DEADLINE_EXCEEDED", ""),
    "config": ("UNIMPLEMENTED", "this server has no such method"),
    "repository": ("UNIMPLEMENTED", "this server has no such method"),
    "statistics": ("UNIMPLEMENTED", "this server has no such method"),
    "load": ("UNIMPLEMENTED", "this server has no such method"),
    "metadata": ("NOT_FOUND", "model name: got 'mnist'"),
}


def test_errors_reach_the_caller(results: dict[str, Any]) -> None:
    """Exceptions have our status and text, also ``client_timeout`` and methods that only Triton has."""
    assert {name: status for name, (status, _) in results["errors"].items()} == {
        name: status for name, (status, _) in ERRORS.items()
    }
    for name, (_, text) in results["errors"].items():
        assert text.startswith(ERRORS[name][1]), name


def test_streams_are_unimplemented(results: dict[str, Any]) -> None:
    """ModelStreamInfer is an extension of Triton: the stream ends with a text that lists the methods."""
    status, text = results["stream"]
    assert status == "UNIMPLEMENTED"
    assert "inference.GRPCInferenceService has ModelInfer" in text


def test_our_proto_is_that_of_triton(results: dict[str, Any]) -> None:
    """Every field of our messages has the name, number and type that it has in tritonclient's."""
    waiting, compared = [*oip.DESCRIPTOR.message_types_by_name.values()], 0
    while waiting:
        message = waiting.pop()
        waiting += message.nested_types
        for field in message.fields:
            expected = [field.number, field.type, field.message_type.full_name if field.message_type else ""]
            assert results["fields"][message.full_name][field.name] == expected
            compared += 1
    assert compared == 66


def test_our_client_works_beside_tritonclient(address: str, python: Path, images: Path, tmp_path: Path) -> None:
    """Both clients work in one process: ours never loads the stubs that collide with tritonclient's."""
    digits = tmp_path / "digits.npy"
    np.save(digits, np.load(images)[:-1])
    run(python, "-P", "-c", SCRIPT_WITH_OUR_CLIENT, address, digits, PYTHONPATH=str(ROOT / "service"))


def test_the_example(python: Path, tmp_path: Path) -> None:
    """``examples/tritonclient_infer.py`` classifies files of any size, and ends with a message if the service does not answer."""
    path = tmp_path / "seven.png"
    Image.fromarray(255 - draw(7, Size(90, 90), np.random.default_rng(1))).save(path)
    blank = tmp_path / "blank.png"
    Image.new("L", (50, 40), 255).save(blank)
    example = (python, "-P", ROOT / "examples" / "tritonclient_infer.py", "--address")
    with run_worker(MODELS) as worker:
        printed = run(*example, worker.address, path, blank)
    failed = subprocess.run([*example, worker.address, path], capture_output=True, text=True, check=False)

    assert printed.startswith(f"{path}: 7 (0.")
    assert "ACCEPTED); 7 0." in printed
    assert printed.endswith(f"{blank}: BLANK\n")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"{worker.address}: [StatusCode.UNAVAILABLE]")
