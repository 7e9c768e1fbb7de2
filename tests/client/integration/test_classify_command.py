"""``digitserve classify`` in this process, against a real worker whose network's output encodes its input."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from digitserve.cli import main
from digitserve.cli.output import print_error
from digitserve.client.pool import Deadline
from support.bundles import echo_image, write_echo_bundle
from support.serving import RunningWorker, run_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    models = tmp_path_factory.mktemp("models")
    write_echo_bundle(models)
    with run_worker(models) as running:
        yield running


def classify(worker: RunningWorker, *arguments: str | Path) -> list[str]:
    """Return the lines that ``digitserve classify`` prints."""
    result = CliRunner().invoke(main, ["classify", "--address", worker.address, *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_json_explains_each_image(worker: RunningWorker, tmp_path: Path) -> None:
    """``--json --explain`` adds ``preparation``, with the pixels that the network saw as rows; without it there is none."""
    images = np.stack([echo_image(4), echo_image(5)])
    np.save(tmp_path / "two.npy", images)
    explained = [json.loads(line) for line in classify(worker, "--json", "--explain", tmp_path / "two.npy")]
    plain = [json.loads(line) for line in classify(worker, "--json", tmp_path / "two.npy")]

    assert [one.pop("preparation") for one in explained] == [
        {"pixels": image.tolist(), "framing": "FRAMING_AS_IS", "ink": "INK_LIGHT_ON_DARK", "box": None, "removed": []}
        for image in images
    ]
    assert explained == plain


def test_text_explains_each_image_in_one_more_line(worker: RunningWorker, tmp_path: Path) -> None:
    """The second line says in words what was found."""
    Image.fromarray(echo_image(4)).save(tmp_path / "four.png")
    paper = np.full((60, 60), 255, np.uint8)
    paper[10:50, 25:33] = 0
    Image.fromarray(paper).save(tmp_path / "paper.png")
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(tmp_path / "blank.png")
    lines = classify(worker, "--explain", tmp_path / "four.png", tmp_path / "paper.png", tmp_path / "blank.png")

    assert len(lines) == 6
    assert lines[1] == "  light ink on dark, pixels used as they are"
    assert lines[3].startswith("  dark ink on light")
    assert (lines[4].split(": ", 1)[1], lines[5]) == ("blank: no ink", "  no ink found")
    assert len(classify(worker, tmp_path / "four.png")) == 1


def test_a_large_photo_is_reduced(worker: RunningWorker, tmp_path: Path) -> None:
    """A 12-megapixel JPEG is answered; with ``--max-side 0`` it is sent as it is, and refused with advice."""
    photo = Image.new("RGB", (3000, 4000), "white")
    photo.paste("navy", (1400, 1000, 1600, 3000))
    photo.save(tmp_path / "photo.jpg")

    assert len(classify(worker, tmp_path / "photo.jpg")) == 1
    command = ["classify", "--address", worker.address, "--max-side", "0", str(tmp_path / "photo.jpg")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "reduce the image" in refused.stderr


def test_advice_names_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of the client library name its arguments; the command names its flags, and leaves file names as they are."""
    write_echo_bundle(tmp_path)
    Image.new("RGB", (4200, 2900), "white").save(tmp_path / "max_side.png")
    # gRPC core itself rejects messages over twice the limit, so the advice is the client library's.
    with run_worker(tmp_path, transport="grpcio") as worker:
        command = ["classify", "--address", worker.address, "--max-side", "0", str(tmp_path / "max_side.png")]
        large = CliRunner().invoke(main, command)
    print_error(str(Deadline(2).error()))

    assert large.exit_code == 1
    assert "max_side.png: " in large.stderr
    assert "(see --max-side)" in large.stderr
    assert "set a longer --timeout-s" in capsys.readouterr().err


def test_a_file_of_28x28_has_no_rules_of_its_own(worker: RunningWorker, tmp_path: Path) -> None:
    """The command sends such a file without ink and framing, as any other: the service alone decides how it is used."""
    image = echo_image(1234567)
    Image.fromarray(image).save(tmp_path / "28.png")
    (tmp_path / "28.raw").write_bytes(image.tobytes())
    for arguments in ((tmp_path / "28.png",), ("--size", "28x28", tmp_path / "28.raw")):
        (line,) = classify(worker, "--json", "--explain", *arguments)
        answer = json.loads(line)

        assert answer["ood_score"] == 1234567
        assert answer["preparation"]["pixels"] == image.tolist()
