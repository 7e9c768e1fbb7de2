"""Verified bundles in memory, from which workers start.

    folder ──verify──▶ SealedBundle ──descriptor, inherited──▶ parse_bundle(BundleFiles.unseal(fd)) in a worker

The supervisor creates one per version that it serves. The files are read once, so each worker gets the bytes that were verified,
even if the folder changes later.
"""

import hashlib
import os
import weakref

from digitserve.errors import BundleError, SettingsError, StartupError
from digitserve.inference.bundle import find_bundle, parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.settings import VERSION, Settings


class SealedBundle:
    """A bundle that passed all checks except those that need onnxruntime; it closes its descriptor when it is freed.

    Attributes:
        manifest: its manifest.
        fd: sealed memory file with its files.
        digest: sha256 over all files: the manifest has that of the graph.
    """

    def __init__(self, files: BundleFiles) -> None:
        """Verify the files, and copy them to memory that no process can change.

        Raises:
            BundleError: they failed a check.
        """
        self.manifest = parse_bundle(files).manifest
        self.digest = hashlib.sha256(hashlib.sha256(files.manifest).digest() + files.golden).digest()
        self.fd = files.seal()
        weakref.finalize(self, os.close, self.fd)

    def __str__(self) -> str:
        """Return name and version, as in ``digits/4``."""
        return f"{self.manifest.name}/{self.manifest.version}"


def shadow_bundle(settings: Settings) -> SealedBundle | None:
    """Read and verify the bundle of ``--shadow``; None without this setting.

    Raises:
        StartupError: it is no version, or failed a check.
    """
    if settings.shadow is None:
        return None
    name, _, version = settings.shadow.rpartition("/")
    if not VERSION.fullmatch(version) or "/" in name:
        raise SettingsError(
            f"--shadow: got '{settings.shadow}'; expected a version such as 5, or a name and a version such as digits/5"
        )
    try:
        return SealedBundle(BundleFiles.read(find_bundle(settings.models, name or settings.model, int(version))))
    except BundleError as error:
        raise StartupError(f"--shadow: {error}") from None
