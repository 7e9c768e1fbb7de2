"""Finding, checking, splitting and fingerprinting MNIST."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import DataError


def arrays(num_training: int = 240, num_test: int = 20) -> dict[str, Any]:
    """Return arrays as in MNIST's file: each image is filled with its index, and labels are unevenly distributed."""
    return {
        "x_train": np.broadcast_to(np.arange(num_training, dtype=np.uint8)[:, None, None], (num_training, 28, 28)),
        "y_train": (np.arange(num_training) % 12 % 10).astype(np.uint8),
        "x_test": np.full((num_test, 28, 28), 7, np.uint8),
        "y_test": np.arange(num_test, dtype=np.uint8) % 10,
    }


def write_npz(folder: Path, **changed: Any) -> Path:
    """Write an npz file in which some arrays are changed."""
    path = folder / "digits.npz"
    np.savez(path, allow_pickle=False, **{k: v for k, v in (arrays() | changed).items() if v is not None})
    return path


def test_read(tmp_path: Path) -> None:
    """Images are uint8[N,28,28,1] and labels int64[N]; training and test parts are separate."""
    path = write_npz(tmp_path)

    training, test = splits.read_training(path), splits.read_test(path)

    assert (training.images.shape, training.images.dtype) == ((240, 28, 28, 1), np.dtype(np.uint8))
    assert (training.labels.shape, training.labels.dtype) == ((240,), np.dtype(np.int64))
    assert (test.images.shape, len(test)) == ((20, 28, 28, 1), 20)
    assert np.all(test.images == 7)


def test_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path, DIGITSERVE_MNIST gives the path of MNIST; an explicit path has priority."""
    monkeypatch.setenv(splits.ENVIRONMENT, str(write_npz(tmp_path)))

    assert len(splits.read_training()) == 240
    with pytest.raises(DataError, match="no file"):
        splits.read_training(tmp_path / "other.npz")


def test_training_never_reads_test_images(tmp_path: Path) -> None:
    """Reading the training set does not read the test set, so an unusable test set does not matter."""
    path = write_npz(tmp_path, x_test=np.zeros((3, 2), np.float64))

    assert len(splits.read_training(path)) == 240
    with pytest.raises(DataError, match="part 'test'"):
        splits.read_test(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": None}, r"does not contain x_train; it contains y_train, x_test, y_test"),
        ({"x_test": None, "y_test": None}, r"does not contain x_test, y_test"),
        ({"x_train": np.zeros((240, 28, 27), np.uint8)}, r"uint8\[240, 28, 27\]; expected uint8\[N, 28, 28\]"),
        ({"x_train": np.zeros((240, 784), np.uint8)}, r"uint8\[240, 784\]"),
        ({"x_train": np.zeros((240, 28, 28), np.float32)}, r"float32\[240, 28, 28\]; expected uint8"),
        ({"x_train": np.zeros((0, 28, 28), np.uint8), "y_train": np.zeros(0, np.uint8)}, r"N > 0"),
        ({"y_train": np.zeros(239, np.uint8)}, r"uint8\[239\]; expected one integer for each of 240 images"),
        ({"y_train": np.zeros((240, 10), np.uint8)}, r"uint8\[240, 10\]"),
        ({"y_train": np.zeros(240, np.float32)}, r"float32\[240\]"),
        ({"y_train": np.arange(240)}, r"labels run from 0 to 239; expected 0 to 9"),
        ({"y_train": -np.ones(240, np.int8)}, r"labels run from -1 to -1"),
    ],
)
def test_wrong_arrays_are_rejected(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Arrays with other names, shapes, types or values are rejected; the message states what was found and expected."""
    with pytest.raises(DataError, match=message):
        splits.read_training(write_npz(tmp_path, **changed))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_rejected(tmp_path: Path, share: float) -> None:
    """A file truncated at any place is rejected; the error names the file."""
    path = write_npz(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(DataError, match=r"digits\.npz cannot be read as an npz file"):
        splits.read_training(path)


def test_changed_bytes_are_rejected(tmp_path: Path) -> None:
    """A file whose pixels changed on disk is rejected."""
    path = write_npz(tmp_path)
    content = bytearray(path.read_bytes())
    content[1000:1004] = b"oops"
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as an npz file"):
        splits.read_training(path)


@pytest.mark.parametrize("content", [b"no archive at all", b"\x93NUMPY\x01\x00"])
def test_other_formats_are_rejected(tmp_path: Path, content: bytes) -> None:
    """A file in another format is rejected; the error names the file."""
    path = tmp_path / "digits.npz"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"digits\.npz cannot be read as an npz file"):
        splits.read_training(path)


def test_split_divides_the_training_set(tmp_path: Path) -> None:
    """Each image is used either for training or for validation; one in twelve is used for validation."""
    parts = splits.split(splits.read_training(write_npz(tmp_path)))

    numbers = [set(part.images[:, 0, 0, 0].tolist()) for part in (parts.training, parts.validation)]
    assert [len(part) for part in numbers] == [220, 20]
    assert numbers[0] | numbers[1] == set(range(240))


def test_split_of_mnist_sized_set() -> None:
    """For MNIST, 5,000 of 60,000 training images are held out."""
    labels = np.arange(60_000) % 10

    parts = splits.split(Labelled(np.zeros((60_000, 1, 1, 1), np.uint8), labels))

    assert (len(parts.training), len(parts.validation)) == (55_000, 5_000)
    assert np.bincount(parts.validation.labels).tolist() == [500] * 10


def test_split_is_stratified_and_fixed(tmp_path: Path) -> None:
    """Each part has each label in its share to within one image, and the split is the same every time."""
    training = splits.read_training(write_npz(tmp_path))
    first, again = splits.split(training), splits.split(training)

    shares = np.bincount(training.labels) / len(training)
    for part in (first.training, first.validation):
        assert np.all(np.abs(np.bincount(part.labels, minlength=10) - shares * len(part)) <= 1)
    assert np.array_equal(first.validation.images, again.validation.images)
    assert np.array_equal(first.training.images, again.training.images)


def test_limit_takes_a_stratified_subset(tmp_path: Path) -> None:
    """The limit is the number of training and validation images together, and the subset is stratified."""
    training = splits.read_training(write_npz(tmp_path))

    parts = splits.split(training, limit=60)

    assert (len(parts.training), len(parts.validation)) == (55, 5)
    assert np.all(np.abs(np.bincount(parts.training.labels) - np.bincount(training.labels) * 55 / 240) <= 1)


def test_limit_without_validation_images(tmp_path: Path) -> None:
    """A limit that leaves no image for validation is rejected."""
    with pytest.raises(DataError, match="11 training images; expected at least 12"):
        splits.split(splits.read_training(write_npz(tmp_path)), limit=11)


def test_fingerprint_distinguishes_datasets(tmp_path: Path) -> None:
    """The fingerprint depends on pixels, labels and order, and on nothing else."""
    training = splits.read_training(write_npz(tmp_path))
    fingerprint = splits.fingerprint(training)
    pixels, labels = training.images.copy(), training.labels.copy()
    pixels[3, 4, 5] += 1
    labels[3] += 1

    assert splits.fingerprint(Labelled(training.images.copy(), training.labels.astype(np.int64))) == fingerprint
    assert splits.fingerprint(Labelled(pixels, training.labels)) != fingerprint
    assert splits.fingerprint(Labelled(training.images, labels)) != fingerprint
    assert splits.fingerprint(training.take(np.arange(240)[::-1])) != fingerprint
