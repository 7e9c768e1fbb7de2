"""The model bundles that a benchmark uses: servers and floors must use the same ones.

``models/`` beside this file has the two networks of the first release. ``targets`` compares with the first one, so they stay as
they are. They are not served by default, and not part of the package or the image.
"""

import os
from pathlib import Path

from digitserve.inference.bundle import Bundle, read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.settings import Settings

FIRST_RELEASE = Path(__file__).parent / "models"
"""Folder of the networks of the first release: digits/3 and digits-int8/1."""

FLOAT32_MODEL, INT8_MODEL = "digits", "digits-int8"
"""The models of the first release, and those of this one unless DIGITSERVE_MODEL names another."""


def folder(models: Path, model: str | None = None) -> Path:
    """Return the folder of the newest bundle of a model; by default of the one that ``digitserve serve`` serves here.

    Raises:
        BundleError: there is none.
    """
    return find_bundle(models, model or os.environ.get("DIGITSERVE_MODEL") or Settings().model)


def served(models: Path, model: str | None = None) -> Bundle:
    """Read the bundle in ``folder``.

    Raises:
        BundleError: there is none, or it fails a check.
    """
    return read_bundle(folder(models, model))


def networks(models: Path) -> dict[str, Path]:
    """Return the folders of all networks to measure, by the name of the figure for their seconds per image."""
    found = {"first_image_s": folder(FIRST_RELEASE, FLOAT32_MODEL), "image_s": folder(models)}
    if has_int8(models):
        found |= {"first_int8_image_s": folder(FIRST_RELEASE, INT8_MODEL), "int8_image_s": folder(models, INT8_MODEL)}
    return found


def has_int8(models: Path) -> bool:
    """Return whether a folder has the int8 network beside the one that is served by default."""
    return (models / INT8_MODEL).exists() and served(models).manifest.name != INT8_MODEL
