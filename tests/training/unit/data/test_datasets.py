"""Reading datasets in their published file formats, and errors for files that are missing or damaged."""

import contextlib
import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from digitserve.types import Framing
from digitserve_training.data import datasets, idx, splits
from digitserve_training.data.picture_folder import read_picture
from digitserve_training.errors import DataError
from digitserve_training.fit.settings import Options, resolve
from support.dataset_files import idx_bytes, labelled_shapes, write_emnist_letters, write_idx

NUM = 24
IMAGES, LABELS = labelled_shapes(NUM, 10)
OTHERS, OTHER_LABELS = labelled_shapes(10, 10, seed=1)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "emnist-digits"])
def test_idx_folders(tmp_path: Path, name: str, compressed: bool) -> None:
    """Each dataset is read from its published idx files, compressed or not; EMNIST's images are transposed to upright."""
    emnist = name.startswith("emnist")
    train, test = (f"{name}-train", f"{name}-test") if emnist else ("train", "t10k")
    axes = (0, 2, 1) if emnist else (0, 1, 2)
    write_idx(tmp_path, train, IMAGES.transpose(axes), LABELS, compressed=compressed)
    write_idx(tmp_path, test, OTHERS.transpose(axes), OTHER_LABELS, compressed=compressed)

    training, testing = splits.read_training(tmp_path, name), splits.read_test(tmp_path, name)

    assert np.array_equal(training.images, IMAGES[..., None]) and np.array_equal(training.labels, LABELS)
    assert np.array_equal(testing.images, OTHERS[..., None]) and np.array_equal(testing.labels, OTHER_LABELS)
    assert training.names == testing.names == datasets.DATASETS[name].labels


def test_emnist_letters(tmp_path: Path) -> None:
    """Labels 1 to 26 are A to Z, and images stored in column-major order are returned upright."""
    images, labels = labelled_shapes(52, 26)
    write_emnist_letters(tmp_path, (images, labels), (OTHERS, OTHER_LABELS))

    training = splits.read_training(tmp_path, "emnist-letters")

    assert "".join(training.names[label] for label in training.labels[:26]) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert np.array_equal(training.images[..., 0], images)
    assert len(splits.read_test(tmp_path, "emnist-letters")) == 10


def test_kmnist_npz(tmp_path: Path) -> None:
    """KMNIST is read from its four npz files with one array each, even if the folder also contains idx files."""
    for part, images, labels in (("train", IMAGES, LABELS), ("test", OTHERS, OTHER_LABELS)):
        np.savez_compressed(tmp_path / f"kmnist-{part}-imgs.npz", images)
        np.savez_compressed(tmp_path / f"kmnist-{part}-labels.npz", labels.astype(np.uint8))
    write_idx(tmp_path, "train", OTHERS, OTHER_LABELS)

    training = splits.read_training(tmp_path, "kmnist")

    assert np.array_equal(training.images[..., 0], IMAGES)
    assert (training.names[0], training.names[9]) == ("お", "を")
    assert len(splits.read_test(tmp_path, "kmnist")) == 10


def test_fashion_mnist_npz(tmp_path: Path) -> None:
    """Fashion-MNIST is read from an npz file with Keras's arrays, and has its own labels."""
    path = tmp_path / "fashion.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=OTHERS, y_test=OTHER_LABELS)

    training = splits.read_training(path, "fashion-mnist")

    assert np.array_equal(training.images[..., 0], IMAGES)
    assert (training.names[0], training.names[9]) == ("T-shirt/top", "Ankle boot")


def test_environment_variable_applies_to_mnist_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITSERVE_MNIST replaces --data for MNIST and for no other dataset."""
    write_idx(tmp_path, "train", IMAGES, LABELS)
    monkeypatch.setenv(splits.ENVIRONMENT, str(tmp_path))

    assert len(splits.read_training()) == NUM
    with pytest.raises(DataError, match="kmnist cannot be downloaded automatically"):
        splits.read_training(dataset="kmnist")


@pytest.mark.parametrize(
    ("name", "origin", "files"),
    [
        ("kmnist", "rois-codh/kmnist on GitHub", "kmnist-train-imgs.npz"),
        ("emnist-digits", "NIST's page of the EMNIST dataset", "emnist-digits-train-images-idx3-ubyte.gz"),
        ("emnist-letters", "gzip.zip", "emnist-letters-train-images-idx3-ubyte.gz"),
        ("folder", "your own image files", "one sub-folder of image files per class"),
    ],
)
def test_datasets_that_keras_cannot_download(tmp_path: Path, name: str, origin: str, files: str) -> None:
    """Without --data, or with a path that does not exist, the message states where to get the dataset and which path to give."""
    for path in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError) as raised:
            splits.read_training(path, name)

        assert origin in str(raised.value) and files in str(raised.value)
        assert "--data" in str(raised.value)


def test_unknown_dataset() -> None:
    """The error for an unknown name lists the names of all datasets."""
    with pytest.raises(DataError, match="no dataset 'cifar10'; datasets: mnist, fashion-mnist, kmnist, emnist-digits"):
        splits.read_training(None, "cifar10")


@pytest.mark.parametrize("name", list(datasets.DATASETS))
def test_only_digits_have_scans_and_outliers(name: str) -> None:
    """For datasets without digits, the share of scans and of outliers is 0, and the rest of the preset is unchanged."""
    chosen = resolve(Options(preset="small", dataset=name), ("a", "b"), "abc")
    mnist = resolve(Options(preset="small"), ("a", "b"), "abc")

    assert mnist.recipe.scanned > 0 and mnist.recipe.outliers > 0 and mnist.recipe.certain_outliers > 0
    assert (chosen.preset, chosen.layers) == (mnist.preset, mnist.layers)
    if name in {"mnist", "emnist-digits"}:
        assert chosen.recipe == mnist.recipe
    else:
        assert chosen.recipe == replace(mnist.recipe, scanned=0.0, outliers=0.0, certain_outliers=0.0)


# -- Bad files ---------------------------------------------------------------------------------------------------------

RAW_IMAGES, RAW_LABELS = idx_bytes(IMAGES), idx_bytes(LABELS.astype(np.uint8))
IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def write_with_bad_file(folder: Path, name: str, content: bytes | None) -> Path:
    """Write a valid folder in which one file is replaced or missing."""
    write_idx(folder, "train", IMAGES, LABELS)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES_FILE, None, "does not contain train-images-idx3-ubyte or train-images-idx3-ubyte.gz"),
        (LABELS_FILE, None, "does not contain train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz"),
        (IMAGES_FILE, b"", r"starts with the bytes \(none\); expected 00 00 08 03"),
        (IMAGES_FILE, RAW_LABELS, "starts with the bytes 00 00 08 01; expected 00 00 08 03"),
        (IMAGES_FILE, b"\0\0\x0d" + RAW_IMAGES[3:], "starts with the bytes 00 00 0d 03"),
        (IMAGES_FILE, b"PK\3\4 an archive", "starts with the bytes 50 4b 03 04"),
        (IMAGES_FILE, RAW_IMAGES[:10], "ends within its header of 16 bytes"),
        (
            IMAGES_FILE,
            RAW_IMAGES[:-1],
            r"contains 18815 bytes after its header; expected 18816 for the shape \[24, 28, 28\]",
        ),
        (IMAGES_FILE, RAW_IMAGES + b"\0", "contains more than 18816 bytes after its header"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES[:-1], mtime=0), "contains 18815 bytes after its header"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES, mtime=0)[:-20], "cannot be read as an idx file, it may be truncated"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES, mtime=0)[:-1], "cannot be read as an idx file, it may be truncated"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES, mtime=0)[:12], "cannot be read as an idx file, it may be truncated"),
        (
            IMAGES_FILE,
            idx_bytes(np.zeros((0, 28, 28))),
            r"has the shape \[0, 28, 28\]; expected at least one value",
        ),
        (IMAGES_FILE, idx_bytes(np.zeros((24, 27, 28))), r"uint8\[24, 27, 28\]; expected uint8\[N, 28, 28\]"),
        (LABELS_FILE, idx_bytes(np.zeros(23)), r"uint8\[23\]; expected one integer for each of 24 images"),
        (LABELS_FILE, idx_bytes(np.full(24, 10)), "labels run from 10 to 10; expected 0 to 9"),
    ],
)
def test_bad_idx_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """An idx file that is missing, truncated, in another format or inconsistent with the other file is rejected."""
    with pytest.raises(DataError, match=message):
        splits.read_training(write_with_bad_file(tmp_path, name, content), "fashion-mnist")


def test_letters_out_of_range(tmp_path: Path) -> None:
    """The range check uses the labels as stored: EMNIST's letters start with 1."""
    write_idx(tmp_path, "emnist-letters-train", IMAGES, LABELS)

    with pytest.raises(DataError, match="labels run from 0 to 9; expected 1 to 26"):
        splits.read_training(tmp_path, "emnist-letters")


@pytest.mark.parametrize("name", ["kmnist", "emnist-letters", "folder"])
def test_file_in_place_of_folder(tmp_path: Path, name: str) -> None:
    """A file is rejected where the dataset needs a folder."""
    path = tmp_path / "set.npz"
    path.write_bytes(RAW_IMAGES)

    with pytest.raises(DataError, match=r"set\.npz is a file; expected (the|a) folder"):
        splits.read_training(path, name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no file .*kmnist-train-labels.npz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read as an npz file, it may be truncated"),
        (lambda path: np.savez(path, labels=LABELS), "does not contain arr_0; it contains labels"),
        (lambda path: np.savez(path, LABELS.astype(np.float32)), r"labels are float32\[24\]"),
    ],
)
def test_bad_kmnist_files(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    """If one of KMNIST's four files is missing, truncated or in another format, the error names it."""
    np.savez(tmp_path / "kmnist-train-imgs.npz", IMAGES)
    np.savez(tmp_path / "kmnist-train-labels.npz", LABELS)
    damage(tmp_path / "kmnist-train-labels.npz")

    with pytest.raises(DataError, match=message):
        splits.read_training(tmp_path, "kmnist")


@pytest.mark.parametrize("encode", [bytes, gzip.compress])
def test_header_does_not_decide_allocation(tmp_path: Path, encode: Callable[[bytes], bytes]) -> None:
    """A header that announces three terabytes does not make the reader allocate more than one chunk."""
    path = tmp_path / "images"
    path.write_bytes(encode(RAW_IMAGES[:4] + struct.pack(">3I", 2**32 - 1, 28, 28) + bytes(5000)))

    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="contains 5000 bytes after its header"):
            idx.read(path, num_axes=3)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Truncate the content, or overwrite some of its bytes."""
    places = st.integers(0, len(content) - 1)
    over = st.tuples(places, st.binary(min_size=1, max_size=8)).map(
        lambda drawn: content[: drawn[0]] + drawn[1] + content[drawn[0] + len(drawn[1]) :]
    )
    return st.one_of(places.map(lambda place: content[:place]), over)


SMALL = idx_bytes(IMAGES[:2])


@settings(max_examples=300)
@given(content=st.one_of(st.binary(max_size=64), damaged(SMALL), damaged(SMALL[:40]), damaged(gzip.compress(SMALL))))
def test_damaged_idx_files_raise_only_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """For any content, an idx file is read as an array with the header's shape, or rejected with DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged-idx"
    path.write_bytes(content)
    try:
        values = idx.read(path, num_axes=3)
    except DataError:
        return
    plain = zlib.decompress(content, wbits=31) if content.startswith(b"\x1f\x8b") else content
    assert plain == idx_bytes(values)


def npz_bytes() -> bytes:
    """Return a small npz file with Keras's arrays."""
    file = io.BytesIO()
    np.savez_compressed(file, x_train=IMAGES[:2], y_train=LABELS[:2], x_test=IMAGES[:1], y_test=LABELS[:1])
    return file.getvalue()


@settings(max_examples=200)
@given(content=damaged(npz_bytes()))
def test_damaged_npz_files_raise_only_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A damaged npz file either gives the original images or is rejected with DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert np.array_equal(splits.read_training(path).images[..., 0], IMAGES[:2])


def image_file_bytes(kind: str) -> bytes:
    """Return a small colour image file."""
    file = io.BytesIO()
    Image.fromarray(255 - IMAGES[3]).convert("RGB").resize((40, 40)).save(file, kind)
    return file.getvalue()


@settings(max_examples=200)
@given(content=st.one_of([damaged(image_file_bytes(kind)) for kind in ("PNG", "GIF", "BMP", "TIFF", "JPEG")]))
def test_damaged_image_files_raise_only_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A damaged image file is either read as 28x28 pixels or rejected with DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged-image"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert (read_picture(path, Framing.AUTO).shape, read_picture(path, Framing.AUTO).dtype) == ((28, 28), np.uint8)
