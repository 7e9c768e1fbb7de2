"""Verified bundles in memory, from which workers start.

    folder ──verify──▶ SealedBundle ──descriptor, inherited──▶ parse_bundle(BundleFiles.unseal(fd)) in a worker

The supervisor creates one per version that it serves. The files are read once, so each worker gets the bytes that were verified,
even if the folder changes later.
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
        digest: sha256 over all files: the manifest has that of the graph.
        choice: why ``--precision`` selects it, as in "auto: the processor has AVX512_VNNI"; empty without this setting.
    """

    def __init__(self, files: BundleFiles) -> None:
        """Verify the files, and copy them to memory that no process can change.

        Raises:
            BundleError: they failed a check.
        """
        self.manifest = parse_bundle(files).manifest
        self.digest = hashlib.sha256(hashlib.sha256(files.manifest).digest() + files.golden).digest()
        self.choice = ""
        self.fd = files.seal()
        weakref.finalize(self, os.close, self.fd)

    def __str__(self) -> str:
        """Return name and version, as in ``digits/4``."""
        return f"{self.manifest.name}/{self.manifest.version}"
