"""Fixtures for tests of the real training command."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def noise_path(tmp_path: Path) -> Path:
    """Write noise in MNIST's layout; the quality of the network does not matter here."""
    generator = np.random.default_rng(1)
    arrays = {
        f"{kind}_{part}": generator.integers(0, top, shape, dtype=np.uint8)
        for part in ("train", "test")
        for kind, top, shape in (("x", 256, (144, 28, 28)), ("y", 10, (144,)))
    }
    path = tmp_path / "noise.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path
