"""``digitserve read`` in this process and on a terminal, against a service whose readings repeat what it was asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from digitserve.cli import main
from support.fake_reader import REFUSED, serve_fake_reader
from support.serving import LOCAL, PATIENCE_S, command
from support.terminal import ESCAPE, run_on_terminal


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve_fake_reader() as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Path:
    Image.fromarray(np.full((30, 41), 200, np.uint8)).save(tmp_path / "page.png")
    return tmp_path / "page.png"


def read(address: str, *arguments: str | Path, **options: Any) -> Result:
    """Run ``digitserve read``."""
    return CliRunner().invoke(main, ["read", "--address", address, *map(str, arguments)], **options)


def test_each_line_is_printed(address: str, page: Path) -> None:
    """One file gives its text alone, also from standard input; of several, each line has the name of its file."""
    assert read(address, page).output == "30/41\n200\n"
    assert read(address, "-", input=page.read_bytes()).output == "30/41\n200\n"
    assert read(address, page, page).output == f"{page}: 30/41\n{page}: 200\n" * 2


def test_images_of_an_array_are_numbered(address: str, tmp_path: Path) -> None:
    """Each image of a file of several is read."""
    np.save(tmp_path / "two.npy", np.full((2, 8, 9), 3, np.uint8))
    name = tmp_path / "two.npy"
    assert read(address, name).output == f"{name}[0]: 8/9\n{name}[0]: 3\n{name}[1]: 8/9\n{name}[1]: 3\n"


def test_options_are_sent(address: str, tmp_path: Path) -> None:
    """A mark that was not read is the placeholder; lines without the number of digits are named on standard error; the code is 0."""
    Image.fromarray(np.full((30, 41), 90, np.uint8)).save(tmp_path / "90.png")
    done = read(address, "--placeholder", "_", "--digits", "5", "--max-side", "20", tmp_path / "90.png")
    assert (done.exit_code, done.stdout) == (0, "10/14\n_0\n")
    assert done.stderr.splitlines() == [
        f"digitserve: {tmp_path / '90.png'}: line {number} does not have the pattern or the number of digits"
        for number in (1, 2)
    ]


def test_json_has_all_of_a_reading(address: str, page: Path) -> None:
    """One object per image, with the names of the protocol, and boxes in pixels of the image in the file."""
    (line,) = read(address, "--json", "--max-side", "20", page).output.splitlines()
    box = {"top": 0, "bottom": 30, "left": 0, "right": 41}
    answer = json.loads(line)
    second = answer["lines"].pop()
    assert answer == {
        "file": str(page), "image": 0, "text": "10/14\n200",
        "lines": [
            {
                "text": "10/14", "confidence": 0.75, "box": box, "matches": True,
                "marks": [
                    {
                        "text": "1", "kind": "MARK_KIND_DIGIT", "box": box, "label": "1", "class_index": 0, "confidence": 0.75,
                        "verdict": "VERDICT_UNSPECIFIED", "ood_score": 0.0, "top": [],
                    }
                ],
            }
        ],
        "ignored": [{"kind": "IGNORED_KIND_SPECK", "box": box}],
        "timing": {"queue_s": 0.0, "preprocess_s": 0.0, "inference_s": 0.0, "batch_size": 0},
        "model": "fake/1",
    }  # fmt: skip
    assert second["text"] == "200"


def test_exit_codes(address: str, page: Path) -> None:
    """A missing file and a refused pattern: 1, and the other files are read; wrong usage: 2; no service: 3."""
    missing = read(address, "missing.png", page)
    assert (missing.exit_code, missing.stdout) == (1, f"{page}: 30/41\n{page}: 200\n")
    refused = read(address, "--pattern", REFUSED, page)
    assert refused.exit_code == 1
    assert str(page) in refused.stderr and "expected another one" in refused.stderr
    for wrong in (["--placeholder", "??"], ["--min-confidence", "2"], ["--layout", "book"], ["--digits", "0"]):
        assert read(address, *wrong, page).exit_code == 2
    assert read(f"{LOCAL}:1", page).exit_code == 3


def shown(address: str, *arguments: str | Path, **environment: str) -> str:
    """Return what the command writes to a terminal."""
    with run_on_terminal(command("read", "--address", address, *map(str, arguments)), 60, **environment) as terminal:
        text = terminal.read_to_end()
        assert terminal.process.wait(PATIENCE_S) == 0, text
    return text.replace("\r\n", "\n")


def test_a_terminal_shows_the_picture_and_colours(address: str, page: Path) -> None:
    """The picture is above the text, digits have colours, and each line ends with its confidence; NO_COLOR gives plain text."""
    text = shown(address, page)
    lines = ESCAPE.sub("", text).splitlines()
    assert lines[-2:] == ["30/41  75.0%", "200  75.0%"]
    assert lines[0] == "▀" * 41 and len(lines) == 15 + 2
    assert "\x1b[1;33m3\x1b[0m0/41" in text
    assert shown(address, page, NO_COLOR="1") == "30/41\n200\n"
    assert json.loads(shown(address, "--json", page))["text"] == "30/41\n200"
