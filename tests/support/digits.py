"""Real digits for tests: MNIST if it is available, and scikit-learn's digits, which always are."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

MODELS = Path(__file__).parents[2] / "models"
"""Folder of the bundles that the project ships."""

needs_mnist = pytest.mark.skipif(
    "DIGITSERVE_MNIST" not in os.environ,
    reason="needs MNIST: set DIGITSERVE_MNIST to mnist.npz, a file with the arrays of keras.datasets.mnist",
)


def mnist_test() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return MNIST's test images, uint8[10000,28,28], and labels, uint8[10000]."""
    with np.load(os.environ["DIGITSERVE_MNIST"]) as stored:
        return stored["x_test"], stored["y_test"]


def scanned_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return scikit-learn's digits, light on dark: uint8[1797,8,8] and labels uint8[1797]."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    images, labels = load_digits(return_X_y=True)
    return np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.astype(np.uint8)
