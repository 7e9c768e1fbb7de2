"""Verified bundles in memory."""

import gc
import os
from pathlib import Path

import pytest

from digitserve.errors import BundleError
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from support.bundles import write_echo_bundle
from support.child_modules import open_descriptors


def test_a_bundle_closes_its_descriptor(tmp_path: Path) -> None:
    """The descriptor is open as long as the object exists, and is then closed."""
    gc.collect()  # event loops of earlier tests
    before = open_descriptors()
    sealed = SealedBundle(BundleFiles.read(write_echo_bundle(tmp_path, 4)))
    assert (str(sealed), os.fstat(sealed.fd).st_size > 0) == ("digits/4", True)
    del sealed
    assert open_descriptors() <= before


def test_the_digest_covers_all_files(tmp_path: Path) -> None:
    """Two bundles with the same graph and different thresholds have different digests, although their sha256 is the same."""
    sealed = [
        SealedBundle(BundleFiles.read(write_echo_bundle(tmp_path / name, ood_threshold=threshold)))
        for name, threshold in (("a", 1.0), ("b", 2.0), ("c", 1.0))
    ]
    assert sealed[0].digest == sealed[2].digest != sealed[1].digest
    assert len({bundle.manifest.sha256 for bundle in sealed}) == 1


def test_a_damaged_bundle_is_not_sealed(tmp_path: Path) -> None:
    """A damaged bundle fails the checks of ``parse_bundle``, and leaves no descriptor open."""
    path = write_echo_bundle(tmp_path)
    (path / "model.onnx").write_bytes(b"damaged")
    before = open_descriptors()
    with pytest.raises(BundleError, match="check 'sha256' failed"):
        SealedBundle(BundleFiles.read(path))
    assert open_descriptors() <= before
