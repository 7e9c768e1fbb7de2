"""Versions of models in the folder of all models: ``<models>/<name>/<version>/``; see ``bundle``.

The folder may also be one bundle itself. Nothing here reads a bundle. Commands that need no service call it too.
"""

from pathlib import Path

from digitserve.errors import BundleError, NoModelError
from digitserve.settings import VERSION

INT8_SUFFIX = "-int8"
"""The name of a model in int8 is that of the float32 model with this suffix."""


def list_versions(models: Path, name: str) -> list[int]:
    """Return the versions of a model, lowest first; other directories, such as a partly written version, are ignored.

    Raises:
        BundleError: the folder cannot be read.
    """
    try:
        entries = list((models / name).iterdir())
        return sorted(int(entry.name) for entry in entries if VERSION.fullmatch(entry.name) and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BundleError("files", f"{models / name} cannot be read: {error.strerror}") from None


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle, and not a folder of models."""
    try:
        return (folder / "manifest.json").is_file()
    except OSError:
        return False


def find_bundle(models: Path, name: str, version: int | None = None) -> Path:
    """Return the folder of a version, by default the highest; that of the models if it is a bundle.

    Raises:
        BundleError: there is no such model or version; the message lists the available versions.
    """
    if is_bundle(models):
        if version is not None:
            raise BundleError(
                "files",
                f"got version {version} of a model, but {models} is one bundle itself, without other versions; "
                "to select versions, use a folder with <name>/<version>/",
            )
        return models
    available = list_versions(models, name)
    if not available:
        missing = "" if models.is_dir() else " (no such folder)"
        raise NoModelError(
            f"no version of model '{name}' in {models.absolute()}{missing}; expected {models / name}/<integer>/ "
            "(--models names the folder of all models, --model one of them)"
        )
    wanted = available[-1] if version is None else version
    if wanted not in available:
        raise BundleError(
            "files", f"model '{name}' has no version {wanted}; available: {', '.join(map(str, available))}"
        )
    return models / name / str(wanted)


def int8_folder(models: Path, name: str, version: int) -> Path | None:
    """Return the folder of the int8 bundle of a version; None if there is none.

    Raises:
        BundleError: the folder of the models cannot be read.
    """
    if is_bundle(models) or version not in list_versions(models, name + INT8_SUFFIX):
        return None
    return find_bundle(models, name + INT8_SUFFIX, version)
