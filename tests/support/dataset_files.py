"""Small datasets in the file formats that the authors of the real ones publish."""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Gray = NDArray[np.uint8]


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """Return the content of an idx file."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + np.ascontiguousarray(values, np.uint8).tobytes()


def write_idx(folder: Path, prefix: str, images: Gray, labels: NDArray[np.integer], *, compressed: bool = True) -> None:
    """Write one part of a dataset as two idx files with MNIST's suffixes."""
    folder.mkdir(exist_ok=True)
    for kind, values in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
        content = idx_bytes(values)
        path = folder / f"{prefix}-{kind}-ubyte{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(content) if compressed else content)


def write_emnist_letters(folder: Path, train: tuple[Gray, NDArray], test: tuple[Gray, NDArray]) -> None:
    """Write EMNIST letters: images in column-major order, labels from 1."""
    for part, (images, labels) in (("train", train), ("test", test)):
        write_idx(folder, f"emnist-letters-{part}", images.transpose(0, 2, 1), labels + 1)


def labelled_shapes(num: int, num_labels: int, side: int = 28, seed: int = 0) -> tuple[Gray, NDArray[np.int64]]:
    """Draw light L shapes on dark at random positions; the lengths of the two arms encode the label.

    Returns:
        uint8[num,side,side], and int64[num] in which the labels alternate.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % num_labels
    images = np.zeros((num, side, side), np.uint8)
    unit, width_px = side // 14, max(2, side // 9)
    for image, label in zip(images, labels, strict=True):
        top, left = generator.integers(1, 4, 2) * unit
        height, width = (3 + int(label) % 6 * 1.4) * unit, (3 + int(label) // 6 * 1.6) * unit
        image[top : top + int(height), left : left + width_px] = 255
        image[top : top + width_px, left : left + int(width)] = 255
    return images, labels


def write_pictures(folder: Path, images: Gray, labels: NDArray[np.integer], names: tuple[str, ...]) -> None:
    """Write image files into one folder per class: in turn PNG, dark-on-light JPEG, and RGBA with a clear background."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / names[label]
        place.mkdir(parents=True, exist_ok=True)
        stem = place / f"{number:04}"
        if number // len(names) % 3 == 0:
            Image.fromarray(image).save(stem.with_suffix(".png"))
        elif number // len(names) % 3 == 1:
            Image.fromarray(255 - image).save(stem.with_suffix(".jpg"), quality=95)
        else:
            Image.fromarray(np.stack([np.zeros_like(image)] * 3 + [image], axis=-1)).save(stem.with_suffix(".webp"))
