"""``digitserve models``: activates a version of a model, lists the versions, and verifies them.

    cli ──activate──▶ verify the bundle ──▶ write the active file ──▶ running services replace their workers
    cli ──list_models──▶ manifests of all versions
    cli ──verify_models──▶ the start-up checks of a worker, for all or some versions

Called in the process of the command, on its one thread.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from digitserve.errors import BundleError, NoModelError, StartupError
from digitserve.inference.active_file import active_path, read_active, write_active
from digitserve.inference.bundle import Manifest, read_bundle
from digitserve.inference.model_folder import find_bundle, int8_folder, is_bundle, list_versions
from digitserve.supervision.verification import verify


def activate(models: Path, name: str, version: int, active_file: Path | None = None) -> Path:
    """Verify a version as a worker does when it starts, on the CPU, and write it to the active file.

    Its int8 bundle, if there is one, is verified too: with ``--precision``, services may serve it.

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
    verify(find_bundle(models, name, version))
    int8 = int8_folder(models, name, version)
    if int8 is not None:
        verify(int8)
    path = active_path(models, name, active_file)
    write_active(path, version)
    return path


class ListedVersion(NamedTuple):
    """A version of a model, or a file of a model that cannot be used.

    Attributes:
        name: of the model; that of the folder if it is one bundle itself, and its manifest is not known.
        version: its number; None if it is not known, or if the problem is of the whole model, such as an active file that cannot
            be read.
        active: whether services serve it.
        manifest: None if there is a problem.
        problem: the check that failed, or None.
    """

    name: str
    version: int | None
    active: bool = False
    manifest: Manifest | None = None
    problem: str | None = None

    def __str__(self) -> str:
        """Return name and version, as in ``digits/4``."""
        return self.name if self.version is None else f"{self.name}/{self.version}"

    def described(self, manifest: Manifest) -> "ListedVersion":
        """Return it with its manifest, which also knows name and version."""
        return self._replace(name=manifest.name, version=manifest.version, manifest=manifest)


def list_models(models: Path) -> Iterator[ListedVersion]:
    """Yield all versions of all models, in order; the networks are not run.

    Args:
        models: folder of all models, or one bundle.

    Raises:
        BundleError: the folder cannot be read, or has no model.
    """
    return _described(models, _find_versions(models), lambda folder: read_bundle(folder).manifest)


def verify_models(models: Path, chosen: Sequence[tuple[str, int]] = ()) -> Iterator[ListedVersion]:
    """Verify versions as a worker does when it starts, on the CPU, and yield each with its problem.

    Args:
        models: folder of all models, or one bundle.
        chosen: names and versions; all by default.

    Raises:
        BundleError: the folder cannot be read, or has no model.
    """
    found = [_find_version(models, *one) for one in chosen]
    return _described(models, found or _find_versions(models), verify)


def _described(
    models: Path, versions: Iterable[ListedVersion], read: Callable[[Path], Manifest]
) -> Iterator[ListedVersion]:
    """Yield versions, those without a problem with the manifest that ``read`` returns, or with its ``StartupError`` as the problem."""
    for found in versions:
        if found.problem is not None:
            yield found
            continue
        try:
            yield found.described(read(find_bundle(models, found.name, found.version)))
        except StartupError as error:
            yield found._replace(problem=str(error))


def _find_versions(models: Path) -> Iterator[ListedVersion]:
    """Yield all versions of all models, in order, without reading the bundles."""
    if is_bundle(models):
        yield ListedVersion(models.absolute().name, None, active=True)
        return
    try:
        names = sorted(entry.name for entry in models.iterdir() if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise NoModelError(f"no model in {models.absolute()} (no such folder)") from None
    except OSError as error:
        raise BundleError("files", f"{models} cannot be read: {error.strerror}") from None
    found = [version for name in names for version in _versions_of(models, name)]
    if not found:
        raise NoModelError(f"no model in {models.absolute()}; expected <name>/<version>/ in it")
    yield from found


def _find_version(models: Path, name: str, version: int) -> ListedVersion:
    missing = ListedVersion(name, version)
    return next((found for found in _versions_of(models, name) if found.version == version), missing)


def _versions_of(models: Path, name: str) -> list[ListedVersion]:
    versions: list[int] = []
    try:
        versions = list_versions(models, name)
        active = read_active(active_path(models, name))
    except BundleError as error:
        return [ListedVersion(name, None, problem=str(error)), *(ListedVersion(name, one) for one in versions)]
    if not versions:
        return []
    # An active file may name a version that does not exist, which is listed with this problem.
    active = active or versions[-1]
    return [ListedVersion(name, version, active=version == active) for version in sorted({*versions, active})]
