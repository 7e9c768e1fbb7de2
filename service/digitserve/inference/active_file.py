"""The active file: a text file with the number of the version that services serve, by default ``<models>/<name>/active``.

    digitserve models activate ──write──▶ active file ──read──▶ supervisor, at its start and whenever the file changes

It is replaced atomically, so readers get the old or the new version. In Kubernetes it may be a key of a ConfigMap: a symbolic
link, which is replaced as a whole.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from digitserve.errors import BundleError
from digitserve.settings import VERSION

FILE_NAME = "active"

_MAX_BYTES = 64
"""More than a version and its line end need."""


def active_path(models: Path, name: str, active_file: Path | None = None) -> Path:
    """Return the path of a model's active file: ``active_file`` if it is set."""
    return active_file or models / name / FILE_NAME


def signature(path: Path) -> tuple[int, ...]:
    """Return what identifies the present contents of a file, without reading it: it changes whenever the file is replaced.

    It is empty if the file does not exist or cannot be found.
    """
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_active(path: Path) -> int | None:
    """Read the version from an active file. Reading never blocks, whatever kind of file it is.

    Returns:
        The version, or None if there is no such file.

    Raises:
        BundleError: the file cannot be read, or contains something other than a version.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor has no path
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BundleError("active", f"{path} is not a regular file")
            content = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError("active", f"{path} cannot be read: {error.strerror}") from None
    text = content.decode("ascii", "replace").strip()
    if len(content) > _MAX_BYTES or not VERSION.fullmatch(text):
        raise BundleError(
            "active",
            f"{path} contains {text[:20]!r}{'...' * (len(text) > 20)}; expected a version such as 3",  # noqa: PLR2004
        )
    return int(text)


def write_active(path: Path, version: int) -> None:
    """Replace an active file atomically.

    Raises:
        BundleError: it cannot be written.
    """
    try:
        fd, staging = tempfile.mkstemp(prefix=".activating-", dir=path.parent)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor has no path
                file.write(f"{version}\n".encode())
                os.fchmod(fd, 0o644)
                file.flush()
                os.fsync(fd)
            os.replace(staging, path)  # noqa: PTH105 - one path is a string
        except BaseException:
            with suppress(OSError):
                os.unlink(staging)  # noqa: PTH108 - a string
            raise
        # The new entry of the folder survives a power failure only then.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise BundleError("active", f"{path} cannot be written: {error.strerror}") from None
