"""Which bundle a benchmark is about: the one that ``digitserve serve`` would take."""

import os
from pathlib import Path

from digitserve.bundle import Bundle, find, read
from digitserve.settings import Settings


def served(models: Path) -> Bundle:
    """Read the bundle that is served of a directory: the model that DIGITSERVE_MODEL names, as everywhere.

    Raises:
        BundleError: there is none, or it is broken.
    """
    return read(find(models, os.environ.get("DIGITSERVE_MODEL", Settings().model)))
