"""What is promised about reading sets of images as they are published, and about files that are not as they should be."""

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

from digitserve_training.data import datasets, idx, splits
from digitserve_training.data.picture_folder import read_picture
from digitserve_training.errors import DataError
from digitserve_training.fit.settings import Options, resolve
from support.published import figures, packed_as_idx, write_emnist_letters, write_idx

NUM = 24
IMAGES, LABELS = figures(NUM, 10)
OTHERS, OTHER_LABELS = figures(10, 10, seed=1)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "emnist-digits"])
def test_idx_folders(tmp_path: Path, name: str, packed: bool) -> None:
    """Each set is read from a folder with the idx files of its makers, packed or not; EMNIST's images come upright."""
    emnist = name.startswith("emnist")
    train, test = (f"{name}-train", f"{name}-test") if emnist else ("train", "t10k")
    axes = (0, 2, 1) if emnist else (0, 1, 2)
    write_idx(tmp_path, train, IMAGES.transpose(axes), LABELS, packed=packed)
    write_idx(tmp_path, test, OTHERS.transpose(axes), OTHER_LABELS, packed=packed)

    training, testing = splits.read_training(tmp_path, name), splits.read_test(tmp_path, name)

    assert np.array_equal(training.images, IMAGES[..., None]) and np.array_equal(training.labels, LABELS)
    assert np.array_equal(testing.images, OTHERS[..., None]) and np.array_equal(testing.labels, OTHER_LABELS)
    assert training.names == testing.names == datasets.DATASETS[name].labels


def test_emnist_letters(tmp_path: Path) -> None:
    """Labels 1 to 26 are A to Z, and an image that is stored column by column comes upright."""
    images, labels = figures(52, 26)
    write_emnist_letters(tmp_path, (images, labels), (OTHERS, OTHER_LABELS))

    training = splits.read_training(tmp_path, "emnist-letters")

    assert "".join(training.names[label] for label in training.labels[:26]) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert np.array_equal(training.images[..., 0], images)
    assert len(splits.read_test(tmp_path, "emnist-letters")) == 10


def test_kmnist_npz(tmp_path: Path) -> None:
    """KMNIST is read from the four npz files with one array each, before any idx file that lies there too."""
    for part, images, labels in (("train", IMAGES, LABELS), ("test", OTHERS, OTHER_LABELS)):
        np.savez_compressed(tmp_path / f"kmnist-{part}-imgs.npz", images)
        np.savez_compressed(tmp_path / f"kmnist-{part}-labels.npz", labels.astype(np.uint8))
    write_idx(tmp_path, "train", OTHERS, OTHER_LABELS)

    training = splits.read_training(tmp_path, "kmnist")

    assert np.array_equal(training.images[..., 0], IMAGES)
    assert (training.names[0], training.names[9]) == ("お", "を")
    assert len(splits.read_test(tmp_path, "kmnist")) == 10


def test_fashion_mnist_npz(tmp_path: Path) -> None:
    """Fashion-MNIST is read from an npz file as Keras lays it out, and has its own labels."""
    path = tmp_path / "fashion.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=OTHERS, y_test=OTHER_LABELS)

    training = splits.read_training(path, "fashion-mnist")

    assert np.array_equal(training.images[..., 0], IMAGES)
    assert (training.names[0], training.names[9]) == ("T-shirt/top", "Ankle boot")


def test_the_environment_names_mnist_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITSERVE_MNIST stands in for --data where MNIST is learned, and for no other set."""
    write_idx(tmp_path, "train", IMAGES, LABELS)
    monkeypatch.setenv(splits.ENVIRONMENT, str(tmp_path))

    assert len(splits.read_training()) == NUM
    with pytest.raises(DataError, match="kmnist is not fetched by itself"):
        splits.read_training(dataset="kmnist")


@pytest.mark.parametrize(
    ("name", "origin", "files"),
    [
        ("kmnist", "rois-codh/kmnist on GitHub", "kmnist-train-imgs.npz"),
        ("emnist-digits", "NIST's page of the EMNIST dataset", "emnist-digits-train-images-idx3-ubyte.gz"),
        ("emnist-letters", "gzip.zip", "emnist-letters-train-images-idx3-ubyte.gz"),
        ("folder", "wherever your pictures are", "one sub-folder of pictures a class"),
    ],
)
def test_what_keras_does_not_fetch(tmp_path: Path, name: str, origin: str, files: str) -> None:
    """Without --data, or with one that leads nowhere, the message says where a set is found and what to name."""
    for path in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError) as refused:
            splits.read_training(path, name)

        assert origin in str(refused.value) and files in str(refused.value)
        assert "--data" in str(refused.value)


def test_unknown_dataset() -> None:
    """A name that is no dataset's is answered with those there are."""
    with pytest.raises(DataError, match="no dataset 'cifar10'; datasets: mnist, fashion-mnist, kmnist, emnist-digits"):
        splits.read_training(None, "cifar10")


@pytest.mark.parametrize("name", list(datasets.DATASETS))
def test_only_digits_have_paper_and_outliers(name: str) -> None:
    """Sets that are no digits are learned without what is right for digits alone, and all else stays."""
    chosen = resolve(Options(preset="compact", dataset=name), ("a", "b"), "abc")
    mnist = resolve(Options(preset="compact"), ("a", "b"), "abc")

    assert mnist.recipe.scanned > 0 and mnist.recipe.outliers > 0
    assert (chosen.preset, chosen.layers) == (mnist.preset, mnist.layers)
    if name in {"mnist", "emnist-digits"}:
        assert chosen.recipe == mnist.recipe
    else:
        assert chosen.recipe == replace(mnist.recipe, scanned=0.0, outliers=0.0)


# -- Bad files ---------------------------------------------------------------------------------------------------------

RAW_IMAGES, RAW_LABELS = packed_as_idx(IMAGES), packed_as_idx(LABELS.astype(np.uint8))
IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def written(folder: Path, name: str, content: bytes | None) -> Path:
    """Write a good folder, with one file replaced or left out."""
    write_idx(folder, "train", IMAGES, LABELS)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES_FILE, None, "lacks train-images-idx3-ubyte, plain or .gz"),
        (LABELS_FILE, None, "lacks train-labels-idx1-ubyte, plain or .gz"),
        (IMAGES_FILE, b"", "begins with nothing; expected 00 00 08 03"),
        (IMAGES_FILE, RAW_LABELS, "begins with 00 00 08 01; expected 00 00 08 03"),
        (IMAGES_FILE, b"\0\0\x0d" + RAW_IMAGES[3:], "begins with 00 00 0d 03"),
        (IMAGES_FILE, b"PK\3\4 an archive", "begins with 50 4b 03 04"),
        (IMAGES_FILE, RAW_IMAGES[:10], "ends within its header of 16 bytes"),
        (IMAGES_FILE, RAW_IMAGES[:-1], r"holds 18815 bytes after its header, whose shape \[24, 28, 28\] says 18816"),
        (IMAGES_FILE, RAW_IMAGES + b"\0", "holds more bytes after its header"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES[:-1]), "holds 18815 bytes after its header"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES)[:-20], "cannot be read as idx, it may be cut short"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES)[:-1], "cannot be read as idx, it may be cut short"),
        (IMAGES_FILE, gzip.compress(RAW_IMAGES)[:12], "cannot be read as idx, it may be cut short"),
        (
            IMAGES_FILE,
            packed_as_idx(np.zeros((0, 28, 28))),
            r"has the shape \[0, 28, 28\]; expected at least one value",
        ),
        (IMAGES_FILE, packed_as_idx(np.zeros((24, 27, 28))), r"uint8\[24, 27, 28\]; expected uint8\[N, 28, 28\]"),
        (LABELS_FILE, packed_as_idx(np.zeros(23)), r"uint8\[23\]; expected one integer for each of 24 images"),
        (LABELS_FILE, packed_as_idx(np.full(24, 10)), "labels run from 10 to 10; expected 0 to 9"),
    ],
)
def test_bad_idx_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """An idx file that is missing, cut short, of another kind or at odds with the other is refused, saying how."""
    with pytest.raises(DataError, match=message):
        splits.read_training(written(tmp_path, name, content), "fashion-mnist")


def test_letters_out_of_range(tmp_path: Path) -> None:
    """Labels are judged as they stand in the file: EMNIST's letters begin with 1."""
    write_idx(tmp_path, "emnist-letters-train", IMAGES, LABELS)

    with pytest.raises(DataError, match="labels run from 0 to 9; expected 1 to 26"):
        splits.read_training(tmp_path, "emnist-letters")


@pytest.mark.parametrize("name", ["kmnist", "emnist-letters", "folder"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, name: str) -> None:
    """Sets of several files are named by their folder."""
    path = tmp_path / "set.npz"
    path.write_bytes(RAW_IMAGES)

    with pytest.raises(DataError, match=r"set\.npz is a file; expected (the|a) folder"):
        splits.read_training(path, name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no file .*kmnist-train-labels.npz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read as npz, it may be cut short"),
        (lambda path: np.savez(path, labels=LABELS), "lacks arr_0; it has labels"),
        (lambda path: np.savez(path, LABELS.astype(np.float32)), r"labels are float32\[24\]"),
    ],
)
def test_bad_kmnist_files(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    """A file of KMNIST's four that is missing, cut short or of another kind is refused by name."""
    np.savez(tmp_path / "kmnist-train-imgs.npz", IMAGES)
    np.savez(tmp_path / "kmnist-train-labels.npz", LABELS)
    spoil(tmp_path / "kmnist-train-labels.npz")

    with pytest.raises(DataError, match=message):
        splits.read_training(tmp_path, "kmnist")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_header_allocates_nothing(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A header that promises three terabytes costs no more memory than reading a piece of the file."""
    path = tmp_path / "images"
    path.write_bytes(pack(RAW_IMAGES[:4] + struct.pack(">3I", 2**32 - 1, 28, 28) + bytes(5000)))

    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds 5000 bytes after its header"):
            idx.read(path, num_axes=3)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Cut content anywhere, or write other bytes over it anywhere."""
    places = st.integers(0, len(content) - 1)
    over = st.tuples(places, st.binary(min_size=1, max_size=8)).map(
        lambda drawn: content[: drawn[0]] + drawn[1] + content[drawn[0] + len(drawn[1]) :]
    )
    return st.one_of(places.map(lambda place: content[:place]), over)


SMALL = packed_as_idx(IMAGES[:2])


@settings(max_examples=300)
@given(content=st.one_of(st.binary(max_size=64), damaged(SMALL), damaged(SMALL[:40]), damaged(gzip.compress(SMALL))))
def test_damaged_idx_never_escapes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever bytes a file holds, it is read as an array that has the header's shape, or refused as DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged-idx"
    path.write_bytes(content)
    try:
        values = idx.read(path, num_axes=3)
    except DataError:
        return
    plain = zlib.decompress(content, wbits=31) if content.startswith(b"\x1f\x8b") else content
    assert plain == packed_as_idx(values)


def npz_bytes() -> bytes:
    """Return a small npz file laid out like Keras's."""
    file = io.BytesIO()
    np.savez_compressed(file, x_train=IMAGES[:2], y_train=LABELS[:2], x_test=IMAGES[:1], y_test=LABELS[:1])
    return file.getvalue()


@settings(max_examples=200)
@given(content=damaged(npz_bytes()))
def test_damaged_npz_never_escapes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever happened to an npz file, its images are read, or it is refused as DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert np.array_equal(splits.read_training(path).images[..., 0], IMAGES[:2])


def picture_bytes(kind: str) -> bytes:
    """Return a small picture in colour."""
    file = io.BytesIO()
    Image.fromarray(255 - IMAGES[3]).convert("RGB").resize((40, 40)).save(file, kind)
    return file.getvalue()


@settings(max_examples=200)
@given(content=st.one_of([damaged(picture_bytes(kind)) for kind in ("PNG", "GIF", "BMP", "TIFF", "JPEG")]))
def test_damaged_pictures_never_escape(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever happened to a picture, it is read as 28x28 pixels, or refused as DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged-picture"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert (read_picture(path).shape, read_picture(path).dtype) == ((28, 28), np.uint8)
