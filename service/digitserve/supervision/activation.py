"""``digitserve models``: activates a version of a model, and lists the versions.

    cli ──activate──▶ read and verify the bundle ──▶ write the active file ──▶ running services replace their workers
    cli ──list_models──▶ manifests of all versions

Called in the process of the command, on its one thread.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from digitserve.errors import BundleError
from digitserve.inference.active_file import active_path, read_active, write_active
from digitserve.inference.bundle import Manifest, find_bundle, list_versions, read_bundle
from digitserve.settings import Settings


def activate(models: Path, name: str, version: int, active_file: Path | None = None) -> Path:
    """Verify a version as a worker does when it starts, on the CPU, and write it to the active file.

    Args:
        models: folder of all models.
        name: of the model.
        version: to activate.
        active_file: the active file, if it is not in the folder of the model.

    Returns:
        The path of the active file.

    Raises:
        StartupError: there is no such version, it failed a check, or the active file cannot be written.
    """
    # Imported here, because it loads onnxruntime, which the supervisor does not need.
    from digitserve.inference.session import Session  # noqa: PLC0415

    bundle = read_bundle(find_bundle(models, name, version))
    Session(bundle).warm_up(Settings().batch_limit)
    path = active_path(models, name, active_file)
    write_active(path, version)
    return path


class ListedVersion(NamedTuple):
    """A version of a model.

    Attributes:
        name: of the model.
        version: its number.
        active: whether services serve it.
        manifest: None if the bundle failed a check.
        error: the check that failed, or None.
    """

    name: str
    version: int
    active: bool
    manifest: Manifest | None
    error: str | None


def list_models(models: Path) -> Iterator[ListedVersion]:
    """Yield all versions of all models, in order; the graphs are not run.

    Args:
        models: folder of all models.

    Raises:
        BundleError: the folder cannot be read, or has no model; or an active file has no version.
    """
    try:
        names = sorted(entry.name for entry in models.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BundleError("files", f"{models} cannot be read: {error.strerror}") from None
    if not any(list_versions(models, name) for name in names):
        raise BundleError("files", f"no model in {models}; expected {models}/<name>/<version>/")
    for name in names:
        if versions := list_versions(models, name):
            active = read_active(active_path(models, name)) or versions[-1]
            for version in versions:
                yield _listed(models, name, version, active=version == active)


def _listed(models: Path, name: str, version: int, *, active: bool) -> ListedVersion:
    try:
        manifest = read_bundle(find_bundle(models, name, version)).manifest
    except BundleError as error:
        return ListedVersion(name, version, active, None, str(error))
    return ListedVersion(name, version, active, manifest, None)
