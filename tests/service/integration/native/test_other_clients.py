"""Clients that are not grpcio with the native transport: grpc-js, nghttp, h2load, curl, and ``buf curl`` with reflection."""

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bundles import echo_image, echo_request, write_echo_bundle
from support.certificates import make_certificate
from support.echo_server import ECHO, EchoServer, run_echo_server
from support.serving import PATIENCE_S, run_worker, wait_until

GRPC_JS = Path(__file__).parents[3] / "support" / "grpc_js"
OPEN_INFERENCE = Path(__file__).parents[4] / "proto" / "inference" / "open_inference.proto"
HEADERS = ("content-type: application/grpc", "te: trailers")


def tool(name: str) -> str:
    """Return the path of a command, or skip the test."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def run(*arguments: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(arguments, capture_output=True, timeout=2 * PATIENCE_S, check=False)
    printed = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert done.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with run_echo_server() as running:
        yield running


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """Return a file with one gRPC message."""
    path = tmp_path / "body"
    path.write_bytes(b"\0" + struct.pack(">I", 5) + b"hello")
    return path


@pytest.fixture(scope="module")
def grpc_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an installed grpc-js."""
    npm, folder = tool("npm"), tmp_path_factory.mktemp("grpc_js")
    shutil.copy(GRPC_JS / "package.json", folder)
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=folder, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.mark.parametrize("secure", [False, True])
def test_grpc_js(grpc_js: Path, tmp_path: Path, secure: bool) -> None:
    """The client of Node.js, also over TLS: parallel and large calls, metadata, failures, a deadline, a cancellation and a
    stream.
    """
    made = make_certificate(tmp_path)
    with run_echo_server(**(made.settings() if secure else {})) as server:
        address = server.address.replace("127.0.0.1", "localhost")  # Node warns about certificates of addresses
        arguments = (str(grpc_js), address, *[str(made.certificate)] * secure)
        results = json.loads(run(tool("node"), str(GRPC_JS / "client.js"), *arguments))
        wait_until(lambda: server.calls.ends["closed"] == 2, "the expired and the cancelled call are closed")

    assert results == {
        "parallel": True,
        "metadata": "hello",
        "empty": 0,
        "big": 0,
        "fail": {"code": 5, "details": "not found: ü %"},
        "unknown": 12,
        "expired": 4,
        "cancelled": 1,
        "stream": [0, True],
        "last": "last",
    }


def test_grpc_js_with_the_open_inference_protocol(grpc_js: Path, tmp_path: Path) -> None:
    """grpc-js needs nothing but the .proto: raw and typed requests, requested outputs, classification, metadata and errors."""
    write_echo_bundle(tmp_path)
    images, numbers = tmp_path / "images", [5, 70_001]
    images.write_bytes(b"".join(echo_image(number).tobytes() for number in numbers))
    with run_worker(tmp_path, transport="native") as worker:
        arguments = (str(GRPC_JS / "infer.js"), str(grpc_js), str(OPEN_INFERENCE), worker.address, str(images))
        results = json.loads(run(tool("node"), *arguments))

    metadata = results.pop("metadata")
    assert [output["name"] for output in metadata["outputs"]] == results["names"]
    assert results == {
        "live": {"live": True},
        "ready": [{"ready": True}, {"ready": True}],
        "id": "an id",
        "names": ["probabilities", "ood_score", "label", "verdict"],
        "scores": numbers,
        "typed": [0, [5, 1], ["ACCEPTED", "ACCEPTED"]],
        "classes": ["1.000000:5:5", "1.000000:1:1"],
        "error": {"code": 5, "details": "model name: got 'mnist'; expected 'digits', the model that is served"},
    }


def test_curl(server: EchoServer, body: Path, tmp_path: Path) -> None:
    """``curl --http2-prior-knowledge`` gets the message, the headers and the trailers of a call."""
    answer, headers = tmp_path / "answer", tmp_path / "headers"
    fields = [part for field in HEADERS for part in ("-H", field)]
    run(
        tool("curl"), "-sS", "--http2-prior-knowledge", *fields, "--data-binary", f"@{body}", "-D", str(headers),
        "-o", str(answer), f"http://{server.address}{ECHO.path}",
    )  # fmt: skip

    assert answer.read_bytes() == body.read_bytes()
    assert headers.read_text().split() == ["HTTP/2", "200", "content-type:", "application/grpc", "grpc-status:", "0"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((":method: POST",), "415"),
        ((":method: GET", "content-type: application/grpc"), "405"),
        ((":method: POST", "content-type: application/grpc-web"), "415"),
    ],
)
def test_requests_that_are_not_grpc(server: EchoServer, body: Path, fields: tuple[str, ...], status: str) -> None:
    """A request that is not gRPC gets a status of HTTP."""
    arguments = [part for field in fields for part in ("-H", field)]
    printed = run(tool("nghttp"), "-v", *arguments, "-d", str(body), f"http://{server.address}{ECHO.path}")

    assert re.search(r"recv \(stream_id=\d+\) :status: (\d+)", printed)[1] == status


def test_nghttp(server: EchoServer, body: Path) -> None:
    """``nghttp`` sends 100 requests with priorities, padding and a body in small frames on one connection."""
    fields = [part for field in (*HEADERS, ":method: POST") for part in ("-H", field)]
    printed = run(
        tool("nghttp"), "-v", "-m", "100", "-b", "64", "--window-bits=16", *fields, "-d", str(body),
        f"http://{server.address}{ECHO.path}",
    )  # fmt: skip

    assert len(re.findall(r"recv \(stream_id=\d+\) grpc-status: 0", printed)) == 100


@pytest.mark.parametrize(("num_connections", "num_parallel"), [(1, 1), (16, 32), (4, 1024)])
def test_h2load(server: EchoServer, body: Path, num_connections: int, num_parallel: int) -> None:
    """Of 20 000 calls of ``h2load`` each is answered."""
    fields = [part for field in HEADERS for part in ("-H", field)]
    printed = run(
        tool("h2load"), "-n", "20000", "-c", str(num_connections), "-m", str(num_parallel), *fields, "-d", str(body),
        f"http://{server.address}{ECHO.path}",
    )  # fmt: skip

    assert "20000 succeeded, 0 failed, 0 errored, 0 timeout" in printed


def test_buf_curl_with_reflection(tmp_path: Path) -> None:
    """``buf curl`` finds the schemas by reflection, describes the model, and classifies with ``ModelInfer``."""
    write_echo_bundle(tmp_path)
    with run_worker(tmp_path, transport="native") as worker:
        arguments = ("curl", "--http2-prior-knowledge", "--protocol", "grpc")
        buf = str(Path(sys.executable).with_name("buf"))
        url = f"http://{worker.address}/digitserve.v1.DigitService"
        model = json.loads(run(buf, *arguments, "--data", "{}", f"{url}/GetModel"))["model"]
        assert (model["name"], model["version"]) == ("digits", "1")
        listed = run(buf, *arguments, "--list-methods", f"http://{worker.address}")
        assert f"{url.rpartition('/')[2]}/ClassifyStream" in listed
        assert len(worker.classify(echo_request(1)).predictions) == 1
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28]}
        tensor["contents"] = {"uint_contents": echo_image(70_001).ravel().tolist()}
        request = json.dumps({"model_name": "digits", "inputs": [tensor], "outputs": [{"name": "ood_score"}]})
        url = f"http://{worker.address}/inference.GRPCInferenceService"
        (output,) = json.loads(run(buf, *arguments, "--data", request, f"{url}/ModelInfer"))["outputs"]
        assert output["contents"] == {"fp32Contents": [70_001]}
