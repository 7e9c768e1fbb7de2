"""Verified bundles in memory, from which workers start.

    folder ──verify──▶ SealedBundle ──descriptor, inherited──▶ parse_bundle(BundleFiles.unseal(fd)) in a worker

The supervisor makes one per version that it serves. The files are read once: whatever happens to the folder later, each worker
gets the bytes that were verified.
"""

import hashlib
import os
import weakref

from digitserve.inference.bundle import parse_bundle
from digitserve.inference.bundle_files import BundleFiles


class SealedBundle:
    """A bundle that passed all checks except those that need onnxruntime; it closes its descriptor when it is freed.

    Attributes:
        manifest: its manifest.
        fd: sealed memory file with its files.
        digest: sha256 of all files, while ``manifest.sha256`` is that of the graph only.
    """

    def __init__(self, files: BundleFiles) -> None:
        """Verify the files, and copy them to memory that no process can change.

        Raises:
            BundleError: they failed a check.
        """
        self.manifest = parse_bundle(files).manifest
        self.digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files[1:])).digest()
        self.fd = files.seal()
        weakref.finalize(self, os.close, self.fd)

    def __str__(self) -> str:
        """Return name and version, as in ``digits/4``."""
        return f"{self.manifest.name}/{self.manifest.version}"
