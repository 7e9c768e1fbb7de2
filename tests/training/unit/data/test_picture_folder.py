"""Folders of image files: class names, the same framing as in the service, and a reproducible test part."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.types import Framing, Ink, native_framing
from digitserve.vision.framing import frame
from digitserve_training.data import splits
from digitserve_training.data.picture_folder import read_picture
from digitserve_training.errors import DataError
from support.dataset_files import labelled_shapes, write_pictures

NAMES = ("ape", "bee", "cat")


def write_numbered(folder: Path, *counts: int) -> Path:
    """Write grey 28x28 images with their class and number in the first two pixels."""
    for label, count in enumerate(counts):
        (folder / NAMES[label]).mkdir(parents=True)
        for number in range(count):
            image = np.zeros((28, 28), np.uint8)
            image[0, :2] = label, number
            Image.fromarray(image).save(folder / NAMES[label] / f"{number:03}.png")
    return folder


def identities(labelled: splits.Labelled) -> set[tuple[int, int]]:
    """Return class and number of each image."""
    return {(int(first), int(second)) for first, second in labelled.images[:, 0, :2, 0]}


def test_one_sixth_of_each_class_is_the_test_part(tmp_path: Path) -> None:
    """If no parts are given, one sixth of each class, at least one image, is the test part; it is the same every time."""
    write_numbered(tmp_path, 60, 13, 2)

    training, test = splits.read_training(tmp_path, "folder"), splits.read_test(tmp_path, "folder")

    assert (training.names, test.names) == (NAMES, NAMES)
    assert np.bincount(test.labels).tolist() == [10, 2, 1]
    assert identities(training) | identities(test) == {(0, n) for n in range(60)} | {(1, n) for n in range(13)} | {
        (2, 0), (2, 1)
    }  # fmt: skip
    assert not identities(training) & identities(test)
    assert np.array_equal(splits.read_test(tmp_path, "folder").images, test.images)
    assert all(label == image[0, 0, 0] for image, label in zip(training.images, training.labels, strict=True))


def test_training_opens_no_test_image(tmp_path: Path) -> None:
    """The training part can be read even if every file of the test part is unusable."""
    write_numbered(tmp_path, 12, 12)
    for label, number in identities(splits.read_test(tmp_path, "folder")):
        (tmp_path / NAMES[label] / f"{number:03}.png").write_bytes(b"damaged")

    assert len(splits.read_training(tmp_path, "folder")) == 20
    with pytest.raises(DataError, match="unknown format"):
        splits.read_test(tmp_path, "folder")


def test_given_parts(tmp_path: Path) -> None:
    """If the folder contains train/ and test/, these are the parts; hidden files and files next to classes are ignored."""
    write_numbered(tmp_path / "train", 3, 4)
    write_numbered(tmp_path / "test", 1, 2)
    (tmp_path / "LICENCE").write_text("free")
    (tmp_path / "train" / "labels.txt").write_text("ape bee")
    (tmp_path / "train" / "ape" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "train" / ".cache").mkdir()

    training, test = splits.read_training(tmp_path, "folder"), splits.read_test(tmp_path, "folder")

    assert np.bincount(training.labels).tolist() == [3, 4]
    assert np.bincount(test.labels).tolist() == [1, 2]


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    """A folder named train is an ordinary class unless train and test are the only folders."""
    images, labels = labelled_shapes(6, 2)
    write_pictures(tmp_path, images, labels, ("plane", "train"))

    assert splits.read_training(tmp_path, "folder").names == ("plane", "train")


def no_classes(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing yet")


def empty_class(folder: Path) -> None:
    write_numbered(folder, 3, 0)


def single_image(folder: Path) -> None:
    write_numbered(folder, 3, 1)


def text_among_images(folder: Path) -> None:
    write_numbered(folder, 3, 3)
    for number in range(3):
        (folder / "bee" / f"{number:03}.png").write_text("not an image")


def truncated_files(folder: Path) -> None:
    write_numbered(folder, 3, 3)
    for path in (folder / "ape").iterdir():
        path.write_bytes(path.read_bytes()[:-30])


def nested(folder: Path) -> None:
    write_numbered(folder / "first", 2, 2)
    write_numbered(folder / "second", 2, 2)


def other_classes(folder: Path) -> None:
    write_numbered(folder / "train", 2, 2, 2)
    write_numbered(folder / "test", 2, 2)


def name_with_line_break(folder: Path) -> None:
    write_numbered(folder, 3, 3)
    (folder / "bee").rename(folder / "bee\nwasp")


def name_with_invalid_bytes(folder: Path) -> None:
    write_numbered(folder, 3, 3)
    (folder / "bee").rename(folder / os.fsdecode(b"b\xff\xfe"))


def without_ink(folder: Path) -> None:
    write_numbered(folder, 3, 3)
    for path in (folder / "ape").iterdir():
        Image.new("L", (50, 50), 255).save(path)


@pytest.mark.parametrize(
    ("lay_out", "message"),
    [
        (no_classes, "has 0 sub-folders; expected two or more, each named after its class"),
        (empty_class, "bee contains no image file; expected image files of this class"),
        (single_image, "bee has 1 image file; expected two or more"),
        (
            text_among_images,
            r"bee/00\d\.png: got 12 bytes in an unknown format; .*; put only image files into the folder",
        ),
        (truncated_files, r"ape/00\d\.png: cannot be decoded"),
        (nested, "first/(ape|bee): is a directory; expected a file"),
        (other_classes, "test has the classes ape, bee; expected the classes of .*train: ape, bee, cat"),
        (name_with_line_break, r"the class name 'bee\\nwasp' is not printable text"),
        (name_with_invalid_bytes, r"the class name 'b\\udcff\\udcfe' is not printable text"),
        (without_ink, "shows no ink; expected one shape on an even background"),
    ],
)
def test_bad_folders(tmp_path: Path, lay_out: Callable[[Path], None], message: str) -> None:
    """A folder with another layout, or with a file that is not an image, is rejected; the error names the place."""
    lay_out(tmp_path)

    with pytest.raises(DataError, match=message):
        splits.read_training(tmp_path, "folder")


def test_images_are_framed_as_in_the_service(tmp_path: Path) -> None:
    """For any size, file format, ink and transparency, the result is what the service would pass to the network."""
    drawn, _ = labelled_shapes(1, 1, side=112)
    expected = frame(drawn[0], Ink.LIGHT_ON_DARK).pixels
    clear = np.stack([np.zeros_like(drawn[0])] * 3 + [drawn[0]], axis=-1)
    images = {
        "light.png": Image.fromarray(drawn[0]),
        "dark.bmp": Image.fromarray(255 - drawn[0]),
        "clear.webp": Image.fromarray(clear),
        "coloured.tiff": Image.fromarray(255 - drawn[0]).convert("CMYK"),
        "palette.gif": Image.fromarray(255 - drawn[0]).convert("P"),
        "deep.png": Image.fromarray(drawn[0].astype(np.uint16) * 257),
    }

    for name, image in images.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.array_equal(read_picture(tmp_path / name, Framing.AS_IS), expected), name


@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
def test_grey_images_of_the_network_size_are_unchanged(tmp_path: Path, mode: str) -> None:
    """For labels that are not digits, a 28x28 image is used unchanged, wherever its ink is; for digits it is framed."""
    image = np.zeros((28, 28), np.uint8)
    image[1:9, 2:5] = 255
    path = tmp_path / "image.png"
    stored = Image.fromarray(image.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(image).convert(mode)
    stored.save(path)

    assert stored.mode == mode
    assert np.array_equal(read_picture(path, Framing.AS_IS), image)
    Image.fromarray(image).convert("RGB").save(path)
    assert np.array_equal(read_picture(path, Framing.AS_IS), image)
    assert np.array_equal(read_picture(path, Framing.AUTO), frame(image, Ink.LIGHT_ON_DARK).pixels)


def test_too_large_images_are_not_decoded(tmp_path: Path) -> None:
    """An image over the limit of files is rejected after its header is read: this file contains no pixel data."""
    path = tmp_path / "huge.png"
    Image.new("1", (8193, 8192)).save(path)
    path.write_bytes(path.read_bytes()[:60])

    with pytest.raises(DataError, match="8192x8193 pixels; expected at most 67108864 in all"):
        read_picture(path, Framing.AS_IS)


def test_digits_are_read_as_the_service_reads_them(tmp_path: Path) -> None:
    """A 28x28 digit that does not look like MNIST's, such as a dark one on white, is framed; other things are unchanged."""
    image = np.full((28, 28), 255, np.uint8)
    image[4:24, 12:16] = 0
    path = tmp_path / "one.png"
    Image.fromarray(image).save(path)

    framed = read_picture(path, native_framing(("1", "2")))
    assert (framed[0, 0], framed.max()) == (0, 255)
    assert np.array_equal(read_picture(path, native_framing(("shirt", "coat"))), image)
