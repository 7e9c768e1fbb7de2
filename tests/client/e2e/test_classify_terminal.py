"""``digitserve classify`` on a pseudo terminal, against a real worker whose network's output encodes its input."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, command, run_worker
from support.terminal import ESCAPE, run_on_terminal


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    models = tmp_path_factory.mktemp("models")
    write_echo_bundle(models)
    with run_worker(models) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(echo_image(4)).save(tmp_path / "four.png")
    return tmp_path / "four.png"


def shown(worker: RunningWorker, *arguments: str | Path, columns: int = 80, **environment: str) -> str:
    """Return what the command writes to a terminal."""
    line = command("classify", "--address", worker.address, *map(str, arguments))
    with run_on_terminal(line, columns, **environment) as terminal:
        text = terminal.read_to_end()
        assert terminal.process.returncode == 0, text
    return text.replace("\r\n", "\n")


def piped(worker: RunningWorker, *arguments: str | Path) -> str:
    """Return what the command writes to a pipe."""
    line = command("classify", "--address", worker.address, *map(str, arguments))
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True).stdout


def test_image_and_probabilities(worker: RunningWorker, file: Path) -> None:
    """The first line is that of a pipe; below it are the image and ten bars, within 80 columns."""
    text = shown(worker, file)
    lines = ESCAPE.sub("", text).splitlines()
    assert lines[0] + "\n" == piped(worker, file)
    assert "▀" in text and sum("%" in line for line in lines[1:]) == 10
    assert max(map(len, lines[1:])) <= 80


def test_what_the_network_saw(worker: RunningWorker, file: Path) -> None:
    """With --explain a second picture shows the framed pixels, beside the first one or, on a narrow terminal, below it."""
    wide = ESCAPE.sub("", shown(worker, "--explain", file)).splitlines()
    assert any("28x28" in line and "seen by the network" in line for line in wide)
    narrow = ESCAPE.sub("", shown(worker, "--explain", file, columns=40)).splitlines()
    # The terminal breaks the lines of text.
    assert max(map(len, narrow[2:])) <= 40
    assert not any("28x28" in line and "seen" in line for line in narrow)


def test_many_images(worker: RunningWorker, tmp_path: Path) -> None:
    """More than three images go on a sheet, several side by side, each with its answer; the last row is not lost."""
    np.save(tmp_path / "six.npy", np.stack([echo_image(number) for number in range(6)]))
    lines = ESCAPE.sub("", shown(worker, tmp_path / "six.npy")).splitlines()
    text = "\n".join(lines)
    assert all(f"[{number}]" in text for number in range(6))
    assert len(lines) < 40


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_plain_text_on_a_terminal(worker: RunningWorker, file: Path, environment: dict[str, str]) -> None:
    """NO_COLOR and a dumb terminal get what a pipe gets."""
    assert shown(worker, file, **environment) == piped(worker, file)


def test_json_on_a_terminal(worker: RunningWorker, file: Path) -> None:
    """``--json`` is the same on a terminal and in a pipe, byte for byte."""
    text = shown(worker, "--json", file)
    assert text == piped(worker, "--json", file)
    assert json.loads(text)["top"] == []


def test_ascii(worker: RunningWorker, file: Path) -> None:
    """In a locale without UTF-8, only ASCII is written."""
    text = shown(worker, file, LC_ALL="C")
    assert text.isascii() and "\x1b[48;5;" in text and "#" in text
