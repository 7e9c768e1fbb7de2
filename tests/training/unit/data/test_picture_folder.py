"""What is promised about folders of pictures: classes by name, framing as served, parts that stay the same."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.types import Ink
from digitserve.vision.framing import frame
from digitserve_training.data import splits
from digitserve_training.data.picture_folder import read_picture
from digitserve_training.errors import DataError
from support.published import figures, write_pictures

NAMES = ("ape", "bee", "cat")


def numbered(folder: Path, *counts: int) -> Path:
    """Write grey 28x28 pictures that carry their class and number in the first two pixels."""
    for label, count in enumerate(counts):
        (folder / NAMES[label]).mkdir(parents=True)
        for number in range(count):
            image = np.zeros((28, 28), np.uint8)
            image[0, :2] = label, number
            Image.fromarray(image).save(folder / NAMES[label] / f"{number:03}.png")
    return folder


def identities(labelled: splits.Labelled) -> set[tuple[int, int]]:
    """Return class and number of each picture."""
    return {(int(first), int(second)) for first, second in labelled.images[:, 0, :2, 0]}


def test_a_sixth_of_each_class_is_tested_with(tmp_path: Path) -> None:
    """Where no parts are given, a sixth of each class, at least one picture, is the test part, the same each time."""
    numbered(tmp_path, 60, 13, 2)

    training, test = splits.read_training(tmp_path, "folder"), splits.read_test(tmp_path, "folder")

    assert (training.names, test.names) == (NAMES, NAMES)
    assert np.bincount(test.labels).tolist() == [10, 2, 1]
    assert identities(training) | identities(test) == {(0, n) for n in range(60)} | {(1, n) for n in range(13)} | {
        (2, 0), (2, 1)
    }  # fmt: skip
    assert not identities(training) & identities(test)
    assert np.array_equal(splits.read_test(tmp_path, "folder").images, test.images)
    assert all(label == image[0, 0, 0] for image, label in zip(training.images, training.labels, strict=True))


def test_training_opens_no_picture_of_the_test(tmp_path: Path) -> None:
    """The training part is read even where every picture of the test part is unusable."""
    numbered(tmp_path, 12, 12)
    for label, number in identities(splits.read_test(tmp_path, "folder")):
        (tmp_path / NAMES[label] / f"{number:03}.png").write_bytes(b"spoilt")

    assert len(splits.read_training(tmp_path, "folder")) == 20
    with pytest.raises(DataError, match="cannot be read as a picture"):
        splits.read_test(tmp_path, "folder")


def test_given_parts(tmp_path: Path) -> None:
    """With train/ and test/ inside, the parts are as given; other files and hidden ones are passed over."""
    numbered(tmp_path / "train", 3, 4)
    numbered(tmp_path / "test", 1, 2)
    (tmp_path / "LICENCE").write_text("free")
    (tmp_path / "train" / "labels.txt").write_text("ape bee")
    (tmp_path / "train" / "ape" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "train" / ".cache").mkdir()

    training, test = splits.read_training(tmp_path, "folder"), splits.read_test(tmp_path, "folder")

    assert np.bincount(training.labels).tolist() == [3, 4]
    assert np.bincount(test.labels).tolist() == [1, 2]


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    """Unless train and test are the only folders, train is a class like any other."""
    images, labels = figures(6, 2)
    write_pictures(tmp_path, images, labels, ("plane", "train"))

    assert splits.read_training(tmp_path, "folder").names == ("plane", "train")


def no_classes(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing yet")


def empty_class(folder: Path) -> None:
    numbered(folder, 3, 0)


def single_picture(folder: Path) -> None:
    numbered(folder, 3, 1)


def text_among_pictures(folder: Path) -> None:
    numbered(folder, 3, 3)
    for number in range(3):
        (folder / "bee" / f"{number:03}.png").write_text("no picture")


def cut_short(folder: Path) -> None:
    numbered(folder, 3, 3)
    for path in (folder / "ape").iterdir():
        path.write_bytes(path.read_bytes()[:-30])


def nested(folder: Path) -> None:
    numbered(folder / "first", 2, 2)
    numbered(folder / "second", 2, 2)


def other_classes(folder: Path) -> None:
    numbered(folder / "train", 2, 2, 2)
    numbered(folder / "test", 2, 2)


def name_of_two_lines(folder: Path) -> None:
    numbered(folder, 3, 3)
    (folder / "bee").rename(folder / "bee\nwasp")


def name_that_is_no_text(folder: Path) -> None:
    numbered(folder, 3, 3)
    (folder / "bee").rename(folder / os.fsdecode(b"b\xff\xfe"))


def without_ink(folder: Path) -> None:
    numbered(folder, 3, 3)
    for path in (folder / "ape").iterdir():
        Image.new("L", (50, 50), 255).save(path)


@pytest.mark.parametrize(
    ("lay_out", "message"),
    [
        (no_classes, "has 0 sub-folders; expected two or more, each a class"),
        (empty_class, "bee holds no picture; expected some of this class"),
        (single_picture, "bee has 1 picture; expected two or more"),
        (text_among_pictures, r"bee/00\d\.png cannot be read as a picture: .*; expected pictures alone"),
        (cut_short, r"ape/00\d\.png cannot be read as a picture"),
        (nested, "first/(ape|bee) cannot be read as a picture: .*Is a directory"),
        (other_classes, "test has the classes ape, bee; expected those of .*train: ape, bee, cat"),
        (name_of_two_lines, r"the class 'bee\\nwasp' has no printable name"),
        (name_that_is_no_text, r"the class 'b\\udcff\\udcfe' has no printable name"),
        (without_ink, "shows no ink; expected a figure on an even background"),
    ],
)
def test_bad_folders(tmp_path: Path, lay_out: Callable[[Path], None], message: str) -> None:
    """A folder that is laid out in another way, or holds what is no picture, is refused, saying where and what."""
    lay_out(tmp_path)

    with pytest.raises(DataError, match=message):
        splits.read_training(tmp_path, "folder")


def test_pictures_are_framed_as_served(tmp_path: Path) -> None:
    """Any size, format, ink and transparency end in what the service would give the network."""
    drawn, _ = figures(1, 1, side=112)
    expected = frame(drawn[0], Ink.LIGHT_ON_DARK).pixels
    clear = np.stack([np.zeros_like(drawn[0])] * 3 + [drawn[0]], axis=-1)
    pictures = {
        "light.png": Image.fromarray(drawn[0]),
        "dark.bmp": Image.fromarray(255 - drawn[0]),
        "clear.webp": Image.fromarray(clear),
        "coloured.tiff": Image.fromarray(255 - drawn[0]).convert("CMYK"),
        "palette.gif": Image.fromarray(255 - drawn[0]).convert("P"),
        "deep.png": Image.fromarray(drawn[0].astype(np.uint16) * 257),
    }

    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.array_equal(read_picture(tmp_path / name), expected), name


@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
def test_the_networks_own_size_is_taken_as_it_is(tmp_path: Path, mode: str) -> None:
    """A grey picture of 28x28 is taken pixel by pixel, wherever its figure stands; one in colour is framed."""
    image = np.zeros((28, 28), np.uint8)
    image[1:9, 2:5] = 255
    path = tmp_path / "picture.png"
    stored = Image.fromarray(image.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(image).convert(mode)
    stored.save(path)

    assert stored.mode == mode
    assert np.array_equal(read_picture(path), image)
    Image.fromarray(image).convert("RGB").save(path)
    assert np.array_equal(read_picture(path), frame(image, Ink.LIGHT_ON_DARK).pixels)


def test_too_large_pictures_are_not_decoded(tmp_path: Path) -> None:
    """A picture with more pixels than the service takes is refused by its header alone: its pixels are not even there."""
    path = tmp_path / "huge.png"
    Image.new("1", (4097, 4096)).save(path)
    path.write_bytes(path.read_bytes()[:60])

    with pytest.raises(DataError, match="4096x4097 pixels; expected at most 16777216 in all"):
        read_picture(path)
