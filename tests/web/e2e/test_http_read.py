"""``POST /v1/read`` of the real service, on both transports."""

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image

from digitserve.client import Client
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.image_files import read_images
from support.digits import MODELS
from support.number_images import form_of, page_of
from support.serving import PATIENCE_S, TRANSPORTS, Service, run_service

PAGE = page_of("31416", "9264")
TEXTS = ["31416", "9264"]


@pytest.fixture(scope="module", params=TRANSPORTS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("log") / "log"
    with run_service(MODELS, log, "--workers", "1", "--transport", request.param) as running:
        yield running


def read(service: Service, body: bytes, query: str = "") -> dict[str, Any]:
    """Return the answer to an image."""
    with urllib.request.urlopen(f"{service.http_url}/v1/read{query}", body, timeout=PATIENCE_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels) if kind == "npy" else Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def texts(answer: dict[str, Any]) -> list[str]:
    return [line["text"] for line in answer["lines"]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "npy"])
def test_files_get_the_answers_of_grpc(service: Service, kind: str) -> None:
    """Each file gets the reading that the client library gets for its pixels; the answer is ProtoJSON of ReadResponse."""
    content = encoded(PAGE, kind)
    answer = read(service, content, "?top_k=2")
    with Client(service.grpc_address, timeout_s=PATIENCE_S) as client:
        (pixels,) = read_images(io.BytesIO(content))
        expected = client.read(pixels, top_k=2)
    message = json_format.ParseDict(answer, pb.ReadResponse())
    assert texts(answer) == [line.text for line in expected.lines] == TEXTS
    assert [(mark.box.top, mark.box.left) for mark in message.lines[1].marks] == [
        (mark.box.top, mark.box.left) for mark in expected.lines[1].marks
    ]
    assert [score["label"] for score in answer["lines"][0]["marks"][0]["top"]] == [
        score.label for score in expected.lines[0].marks[0].top
    ]


def test_raw_pixels_and_options(service: Service) -> None:
    """With width and height the body is pixels; the options of the query are used."""
    form = form_of("40 72")
    height, width = form.shape
    query = f"?height={height}&width={width}&layout=cells&num_digits=5"
    assert texts(read(service, form.tobytes(), query)) == ["40 72"]
    unread = read(service, encoded(PAGE, "PNG"), "?min_confidence=1&placeholder=_&pattern=%5Cd%7B40%7D")
    assert [(line["text"], line["matches"]) for line in unread["lines"]] == [("_____", False), ("____", False)]


def test_boxes_are_in_pixels_of_the_upright_picture(service: Service) -> None:
    """A turned photo is read upright; if it is reduced, boxes are in its own pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when it is shown
    large = np.kron(PAGE, np.ones((3, 3), np.uint8))
    turned = encoded(np.rot90(large), "PNG", exif=exif)
    answer, reduced = read(service, turned), read(service, turned, f"?max_side={max(PAGE.shape)}")
    assert texts(answer) == texts(reduced) == TEXTS
    for one, other in zip(answer["lines"], reduced["lines"], strict=True):
        assert all(abs(one["box"][side] - other["box"][side]) <= 6 for side in ("top", "bottom", "left", "right"))


@pytest.mark.parametrize(
    ("body", "query", "status", "message"),
    [
        (b"", "", 400, "got an empty body; expected an image"),
        (b"hello", "", 400, "unknown format"),
        (encoded(np.zeros((2, 30, 30), np.uint8), "npy"), "", 400, "got 2 images; expected at most 1 per HTTP request"),
        (bytes(8), "?width=2&height=2", 400, "got 2 images; expected at most 1 per HTTP request"),
        (bytes(3), "?width=2&height=2", 400, "got 3 bytes; expected 4"),
        (encoded(PAGE, "PNG"), "?pattern=(", 400, "pattern"),
        (encoded(PAGE, "PNG"), "?num_digits=65", 400, "query: num_digits: got '65'"),
        (encoded(PAGE, "PNG"), "?explain=true", 400, "query: got the unknown parameter 'explain'"),
        (encoded(PAGE, "PNG"), "?model_version=99", 404, "99"),
    ],
)  # fmt: skip
def test_errors_are_those_of_grpc(service: Service, body: bytes, query: str, status: int, message: str) -> None:
    """Bad requests get the status of their code, and a text that says what was expected."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        read(service, body, query)
    with caught.value as error:
        assert (error.code, message in json.load(error)["message"]) == (status, True)
