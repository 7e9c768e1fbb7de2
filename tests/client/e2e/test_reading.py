"""Both clients, ``digitserve read`` and the example program read pages and forms with the real service and the shipped model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.client import Box, Client, IgnoredKind, MarkKind, Reading
from support.clients import awaited
from support.digits import MODELS
from support.number_images import DIGIT, LINE, form_of, page_of
from support.serving import PATIENCE_S, Service, command, run_service

EXAMPLE = Path(__file__).parents[3] / "examples" / "python" / "read_form.py"
PAGE = page_of("31416", "9264", "308")
TEXT = "31416\n9264\n308"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(MODELS, tmp_path_factory.mktemp("service") / "log", "--workers", "1") as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.grpc_address, timeout_s=PATIENCE_S) as client:
        yield client


def printed(*arguments: str | Path) -> tuple[str, str]:
    """Return what a command prints on standard output and standard error."""
    done = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return done.stdout, done.stderr


def is_inside(box: Box, outer: Box) -> bool:
    """Return whether a box is inside another one."""
    return outer.top <= box.top < box.bottom <= outer.bottom and outer.left <= box.left < box.right <= outer.right


def test_a_page_is_read(client: Client) -> None:
    """Lines and digits are in order, and each digit is where it was drawn."""
    reading = client.read(PAGE, top_k=2)
    assert reading.text == TEXT
    assert reading.model == "digits"
    for row, line in enumerate(reading.lines):
        assert 0 < line.confidence <= 1 and line.complete
        for column, mark in enumerate(line.marks):
            top, left = LINE // 2 + row * LINE, DIGIT * (column + 2)
            assert mark.kind is MarkKind.DIGIT and mark.label == mark.text == mark.top[0].label
            assert is_inside(mark.box, Box(top, top + DIGIT, left, left + DIGIT))


def test_both_clients_and_streams_agree(service: Service, client: Client) -> None:
    """Arrays in grey and colour and Pillow images have the same readings in single calls and on streams."""

    def facts(reading: Reading) -> object:
        return reading.lines, reading.ignored, reading.version

    colour = np.repeat(PAGE[..., None], 3, axis=2)
    expected = facts(client.read(PAGE))
    assert facts(client.read(colour)) == facts(client.read(Image.fromarray(colour))) == expected
    assert facts(awaited(service.grpc_address, lambda one: one.read(PAGE))) == expected
    assert [facts(reading) for reading in client.read_stream([PAGE, colour] * 3)] == [expected] * 6


def test_boxes_of_a_reduced_page_are_in_its_own_pixels(client: Client) -> None:
    """A page that is reduced before it is sent is read, and its boxes are where the digits are in the large one."""
    large = np.kron(PAGE, np.ones((3, 3), np.uint8))
    reading = client.read(large, max_side=max(PAGE.shape))
    assert reading.text == TEXT
    top, left = 3 * (LINE // 2), 3 * DIGIT * 2
    assert is_inside(reading.lines[0].marks[0].box, Box(top, top + 3 * DIGIT, left, left + 3 * DIGIT))


def test_a_form_is_read_by_its_cells(client: Client) -> None:
    """An empty cell is a space in the text, and the boxes of the form are ignored."""
    reading = client.read(form_of("40 72"), layout="cells", num_digits=5)
    assert reading.text == "40 72"
    assert [mark.kind for mark in reading.lines[0].marks].count(MarkKind.EMPTY) == 1
    assert {ignored.kind for ignored in reading.ignored} <= {IgnoredKind.RULING, IgnoredKind.SPECK}


def test_doubtful_digits_are_placeholders(client: Client) -> None:
    """With a minimum that nothing reaches, all is unread; a pattern that nothing has is reported."""
    (line,) = client.read(page_of("31"), min_confidence=1.0, placeholder="_").lines
    assert (line.text, line.confidence, line.complete) == ("__", 0, False)
    (line,) = client.read(page_of("31"), pattern=r"\d{40}").lines
    assert (line.text, line.matches) == ("31", False)


def test_the_command_prints_files(service: Service, tmp_path: Path) -> None:
    """A photo is read upright; JSON has the boxes; a blank image and a wrong length are named on standard error."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when it is shown
    Image.fromarray(np.rot90(PAGE)).save(tmp_path / "page.png", exif=exif)
    Image.new("L", (60, 50), 255).save(tmp_path / "blank.png")
    read = command("read", "--address", service.grpc_address)
    assert printed(*read, tmp_path / "page.png") == (f"{TEXT}\n", "")
    text, notes = printed(*read, tmp_path / "blank.png")
    assert (text, notes.count("\n"), "no numbers found" in notes) == ("", 1, True)
    (answer,) = map(json.loads, printed(*read, "--json", tmp_path / "page.png")[0].splitlines())
    assert (answer["text"], answer["lines"][2]["marks"][0]["kind"]) == (TEXT, "MARK_KIND_DIGIT")
    assert answer["lines"][0]["box"]["bottom"] <= LINE // 2 + DIGIT


def test_the_example_lists_what_to_check(service: Service, tmp_path: Path) -> None:
    """A form that is as expected is printed with its confidence; one without the pattern is to be checked."""
    Image.fromarray(form_of("40172")).save(tmp_path / "form.png")
    program = [sys.executable, EXAMPLE, "--address", service.grpc_address, "--min-confidence", "0.5"]
    right, _ = printed(*program, "--pattern", r"\d{5}", tmp_path / "form.png")
    assert "form.png: 40172 (" in right
    wrong, _ = printed(*program, "--pattern", r"\d{7}", tmp_path / "form.png")
    assert "form.png: 40172 to be checked" in wrong
