"""The model bundle that a benchmark uses: the servers that it starts and the floors must use the same one."""

import os
from pathlib import Path

from digitserve.inference.bundle import Bundle, find_bundle, read_bundle
from digitserve.settings import Settings


def served(models: Path) -> Bundle:
    """Read the bundle that ``digitserve serve`` serves in this environment: the newest of the model DIGITSERVE_MODEL.

    Raises:
        BundleError: there is none, or it fails a check.
    """
    return read_bundle(find_bundle(models, os.environ.get("DIGITSERVE_MODEL") or Settings().model))
