"""The HTTP API of the real service, on both transports."""

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from PIL import Image

from digitserve.access import UNAUTHENTICATED
from digitserve.client import Client
from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import GET_MODEL
from digitserve.vision.image_files import read_images
from support.bomb import bomb
from support.digits import MODELS, scanned_digits
from support.serving import PATIENCE_S, TRANSPORTS, Service, run_service, stopped_workers, wait_until

ROOT = MODELS.parent
PAGE = (ROOT / "examples" / "three.png").read_bytes()
MAX_BYTES = (16 << 20) + (64 << 10)
LISTENING = "00010000"
"""Flag of /proc/net/unix."""


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    content: Any


def send(
    service: Service, path: str = "/v1/classify", body: bytes | None = b"", method: str = "POST", **headers: str
) -> Answer:
    """Send a request on a connection of its own."""
    address = urlsplit(service.http_url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read()))


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels) if kind == "npy" else Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def errors(service: Service) -> list[str]:
    """Return the log lines about faults."""
    return [
        line for line in service.log.read_text().splitlines() if json.loads(line)["level"] not in {"info", "warning"}
    ]


@pytest.fixture(scope="module", params=TRANSPORTS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("log") / "log"
    with run_service(
        MODELS, log, "--workers", "2", "--transport", request.param, "--log-requests-per-s", "10000"
    ) as running:
        yield running


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "JPEG", "npy"])
def test_files_get_the_answers_of_grpc(service: Service, kind: str) -> None:
    """Each format that the command reads gets the prediction that the client library gets for its pixels."""
    content = encoded(np.asarray(Image.open(io.BytesIO(PAGE)).convert("L")), kind)
    answer = send(service, "/v1/classify?top_k=3&explain=true", content)
    with Client(service.grpc_address) as client:
        (expected,) = client.classify(read_images(io.BytesIO(content)), top_k=3, explain=True)
    (prediction,) = answer.content["predictions"]
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert prediction["label"] == expected.label == "3"
    assert prediction["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
    assert [score["label"] for score in prediction["top"]] == [score.label for score in expected.top]
    seen = np.frombuffer(base64.b64decode(prediction["preparation"]["pixels"]), np.uint8).reshape(28, 28)
    assert expected.preparation is not None
    assert np.array_equal(seen, expected.preparation.pixels)
    assert prediction["preparation"]["box"] == expected.preparation.box._asdict()  # type: ignore[union-attr]


def test_raw_pixels(service: Service) -> None:
    """With width and height the body is pixels, of several images."""
    images = np.stack([np.kron(image, np.ones((4, 4), np.uint8)) for image in scanned_digits()[0][:5]])
    answer = send(service, "/v1/classify?width=32&height=32", images.tobytes(), content_type="application/octet-stream")
    assert [one["label"] for one in answer.content["predictions"]] == ["0", "1", "2", "3", "4"]
    colors = np.repeat(images[..., None], 3, axis=3)
    answer = send(service, "/v1/classify?width=32&height=32&pixel_format=rgb8", colors.tobytes())
    assert [one["label"] for one in answer.content["predictions"]] == ["0", "1", "2", "3", "4"]


def test_odd_request_ids_are_no_fault(service: Service) -> None:
    """A client chooses the header fields that are passed on: an invalid value does no harm, and logs no error."""
    for value in ("caf\xe9", "a\tb", "x" * 5_000):
        assert send(service, body=PAGE, x_request_id=value, traceparent=value).status == 200
    assert errors(service) == []


def test_boxes_are_in_pixels_of_the_file(service: Service) -> None:
    """A photo is reduced before it reaches a worker; what the answer says about its pixels holds for the photo."""
    photo = np.full((3000, 4000), 250, np.uint8)
    photo[1000:1800, 1900:2000] = 20
    (prediction,) = send(service, "/v1/classify?explain=true", encoded(photo, "JPEG")).content["predictions"]
    box = prediction["preparation"]["box"]
    assert [box["top"], box["bottom"], box["left"], box["right"]] == pytest.approx([1000, 1800, 1900, 2000], abs=8)


def test_the_model(service: Service) -> None:
    """GET /v1/model is GetModel."""
    with Client(service.grpc_address) as client:
        model = client.model()
    answer = send(service, "/v1/model", None, "GET").content["model"]
    assert (answer["name"], answer["version"], answer["sha256"]) == (model.name, model.version, model.sha256)
    assert answer["max_request_bytes"] == str(model.max_request_bytes)  # ProtoJSON: 64 bits are text


def test_errors_of_a_worker_have_its_text(service: Service) -> None:
    """An error that the worker finds has the same code and text as over gRPC, and is google.rpc.Status."""
    answer = send(service, "/v1/classify?model_version=99", PAGE)
    expected = {
        "code": 5,
        "message": f"model_version: got '99'; expected '{find_bundle(MODELS, 'digits').name}', the version that is served",
        "details": [],
    }
    assert (answer.status, answer.content) == (404, expected)
    answer = send(service, "/v1/classify?width=28&height=28", bytes(785))
    assert (answer.status, answer.content["code"]) == (400, 3)
    assert "got 785 bytes" in answer.content["message"]
    with stopped_workers(service):
        assert send(service, "/v1/classify?width=28&height=28&timeout_s=0.05", bytes(784)).status == 504


def damaged_tiff() -> bytes:
    """Return a file about which libtiff writes to standard error."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "TIFF", compression="tiff_lzw")
    return file.getvalue()[:20] + b"\xff" * 20 + file.getvalue()[40:]


def large_gif() -> bytes:
    """Return a file of a few bytes whose frame has 65535x65535 pixels."""
    return b"GIF89a\x0a\0\x0a\0\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"


BAD = {
    "text": (b"hello", {}, 400, "image: got 5 bytes in an unknown format; expected PNG, "),
    "half an image": (PAGE[: len(PAGE) // 2], {}, 400, "image: cannot be decoded"),
    "empty": (b"", {}, 400, "got an empty body; expected an image"),
    "a bomb": (bomb(), {}, 413, "image: got too many pixels; expected at most 8388608"),
    "a large frame": (large_gif(), {}, 413, "image: got too many pixels; expected at most 8388608"),
    "a damaged TIFF": (damaged_tiff(), {}, 400, "image: cannot be decoded"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", {}, 400, "image: got 24 bytes in an unknown format; expected PNG, "),
    "many images": (encoded(np.zeros((65, 28, 28), np.uint8), "npy"), {}, 400, "got 65 images; expected at most 64 "),
    "HTML": (b"<html>", {"content_type": "text/html"}, 415, "got content-type 'text/html'; expected image/png, "),
    "compressed": (PAGE, {"content_encoding": "gzip"}, 415, "got a body with content-encoding 'gzip'; expected none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_the_fault_of_the_client(service: Service, name: str) -> None:
    """It gets 400, 413 or 415 and a text that says what is expected. The log shows no fault of the service, and no other text."""
    body, headers, status, message = BAD[name]
    answer = send(service, "/v1/classify", body, **headers)
    assert (answer.status, answer.content["message"][: len(message)]) == (status, message)
    assert errors(service) == []


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_a_hundred_megabytes_are_not_read(service: Service, is_chunked: bool) -> None:
    """The answer is 413, and the connection is closed before the client has sent all."""
    address = urlsplit(service.http_url)
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"Content-Length: 100000000\r\n\r\n"
    part = b"10000\r\n" + bytes(1 << 16) + b"\r\n" if is_chunked else bytes(1 << 16)
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:
        connection.sendall(head)
        if is_chunked:
            for _ in range(MAX_BYTES // (1 << 16) + 1):
                connection.sendall(part)
        assert connection.recv(12) == b"HTTP/1.1 413"
        with pytest.raises(ConnectionError):
            wait_until(lambda: connection.sendall(b"1" if is_chunked else b"0"), "the connection is closed")
    assert errors(service) == []


def test_a_client_that_sends_all_before_it_reads_gets_the_answer(service: Service) -> None:
    """Also a client that closes its connection after one request, as urllib does, can send 20 MB and then read 413."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(service.http_url + "/v1/classify", bytes(20_000_000), PATIENCE_S)
    with caught.value as answer:
        assert (answer.status, json.loads(answer.read())["code"]) == (413, 8)


def test_wrong_methods_and_paths(service: Service) -> None:
    """They get 405 with the right method, and 404."""
    address = urlsplit(service.http_url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/classify")
        response = connection.getresponse()
        assert (response.status, response.headers["allow"]) == (405, "POST")
        response.read()
        connection.request("GET", "/v1/other")
        assert connection.getresponse().status == 404


def test_a_killed_decoder_is_replaced(service: Service) -> None:
    """A decoder that ends, as by a defect of a library, harms neither the service nor the next image."""
    assert send(service, body=PAGE).status == 200
    for pid in decoders(service):
        os.kill(pid, signal.SIGKILL)
    assert send(service, body=PAGE).status in {200, 400}
    assert send(service, body=PAGE).status == 200
    assert errors(service) == []


def decoders(service: Service) -> list[int]:
    return [pid for pid in service.workers() if b"decoder_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_killed_worker_is_no_error(service: Service) -> None:
    """Calls go to the workers that are left, and to the new one."""
    (first, *_) = (
        pid for pid in service.workers() if b"digitserve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(first, signal.SIGKILL)
    assert {send(service, body=PAGE).status for _ in range(20)} == {200}
    wait_until(lambda: service.total("digitserve_ready_workers") == 2, "the worker is replaced")
    assert {send(service, body=PAGE).status for _ in range(5)} == {200}


def test_only_the_supervisor_can_connect(service: Service) -> None:
    """No other process, of this or of another user, can call a worker on the sockets of the HTTP API.

    They have no name. With gRPC core they have one, but calls without the supervisor's secret are rejected.
    """
    wait_until(lambda: service.total("digitserve_ready_workers") == 2, "both workers are ready")
    assert send(service, body=PAGE).status == 200
    pids = [service.process.pid, *service.workers()]
    inodes = {
        str(link.readlink())[8:-1] for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
    }
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    names = [line[7] for line in lines if line[6] in inodes and line[3] == LISTENING]
    for name in names:
        for metadata in [(), (("authorization", f"Bearer {name[-64:]}"),)]:
            with grpc.insecure_channel(f"unix-abstract:{name[1:]}") as channel, pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(GET_MODEL.path)(b"", timeout=PATIENCE_S, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(names) == (2 if "grpcio" in " ".join(Path(f"/proc/{pids[0]}/cmdline").read_text().split("\0")) else 0)


def test_answers_are_counted(service: Service) -> None:
    """The metrics count answers by path and status, and calls of workers as those of gRPC."""
    before = service.total("digitserve_http_requests_total", path="/v1/classify", code="200")
    calls = service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK")
    send(service, body=PAGE)
    assert service.total("digitserve_http_requests_total", path="/v1/classify", code="200") == before + 1
    assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") == calls + 1


def test_the_api_needs_the_token_of_grpc(tmp_path: Path) -> None:
    """With tokens, a request without one gets 401 and the text of gRPC; nothing else of it is read."""
    token = "secret-of-16-characters"  # noqa: S105 - of the test
    (tmp_path / "tokens").write_text(token)
    with run_service(MODELS, tmp_path / "log", "--workers", "1", "--token-file", str(tmp_path / "tokens")) as running:
        for path, method in [("/v1/classify", "POST"), ("/v1/model", "GET"), ("/v1/openapi.json", "GET")]:
            answer = send(running, path, b"x", method)
            assert (answer.status, answer.content["message"]) == (401, UNAUTHENTICATED.message)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert send(running, body=PAGE, authorization=f"Bearer {token}").status == 200
