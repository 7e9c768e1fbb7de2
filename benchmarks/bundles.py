"""Which bundle a benchmark is about: the servers that it starts, and the floors beside them, must agree on it."""

import os
from pathlib import Path

from digitserve.inference.bundle import Bundle, find_bundle, read_bundle
from digitserve.settings import Settings


def served(models: Path) -> Bundle:
    """Read what ``digitserve serve`` takes in the same environment: the newest of the model that DIGITSERVE_MODEL names.

    Raises:
        BundleError: there is none, or it is broken.
    """
    return read_bundle(find_bundle(models, os.environ.get("DIGITSERVE_MODEL") or Settings().model))
