"""Files of a bundle: read within limits, and passed from the supervisor to its workers as one sealed file in memory.

    folder ──read──▶ BundleFiles ──seal──▶ memfd ──inherited descriptor──▶ unseal ──▶ BundleFiles in a worker

The supervisor reads and verifies the files once. Each worker, also a replacement that starts months later, gets these bytes,
whatever happens to the folder. ``bundle`` parses them.
"""

import errno
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import NamedTuple

from digitserve.errors import BundleError

MAX_BYTES = {"manifest.json": 1 << 20, "model.onnx": 1 << 28, "golden.npz": 1 << 22}
"""Largest size of each file. Those of the shipped bundles have 6 KB, 1.4 MB and 5 KB."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class BundleFiles(NamedTuple):
    """The contents of a bundle's files.

    Attributes:
        path: the folder that they were read from.
        manifest: of ``manifest.json``.
        graph: of ``model.onnx``.
        golden: of ``golden.npz``.
    """

    path: Path
    manifest: bytes
    graph: bytes
    golden: bytes

    @classmethod
    def read(cls, path: Path) -> "BundleFiles":
        """Read the files of a folder.

        Raises:
            BundleError: one is missing, too large, or no regular file.
        """
        return cls(path, *(_read_file(path, name) for name in MAX_BYTES))

    def seal(self) -> int:
        """Copy the files to a sealed memory file, which no process can change; return its descriptor. The caller closes it."""
        sizes = [len(content) for content in self[1:]]
        header = json.dumps({"path": str(self.path), "sizes": sizes}).encode() + b"\n"
        fd = os.memfd_create("digitserve-bundle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(b"".join((header, *self[1:])))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @classmethod
    def unseal(cls, fd: int) -> "BundleFiles":
        """Return the files that ``seal`` copied; several processes may read one descriptor."""
        # pread, because all processes share the position of the descriptor.
        header, _, contents = os.pread(fd, os.fstat(fd).st_size, 0).partition(b"\n")
        described = json.loads(header)
        manifest_end, graph_size, _ = described["sizes"]
        graph_end = manifest_end + graph_size
        return cls(
            Path(described["path"]), contents[:manifest_end], contents[manifest_end:graph_end], contents[graph_end:]
        )


def _read_file(path: Path, name: str) -> bytes:
    """Read a regular file. Anything else, such as a link, a FIFO or a device, is rejected, and opening it does not block."""
    try:
        fd = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor has no path
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError("files", f"{name} in {path} is not a regular file")
            # One byte more than allowed, to detect a file that grows.
            content = b"" if status.st_size > MAX_BYTES[name] else file.read(MAX_BYTES[name] + 1)
    except FileNotFoundError:
        raise BundleError("files", f"{name} is missing in {path}") from None
    except OSError as error:
        # A directory cannot be read; a socket cannot be opened.
        reason = "it is a symbolic link; copy the file" if error.errno == errno.ELOOP else error.strerror
        raise BundleError("files", f"{name} in {path} cannot be read: {reason}") from None
    if max(status.st_size, len(content)) > MAX_BYTES[name]:
        raise BundleError("files", f"{name} in {path} is too large; expected at most {MAX_BYTES[name]:,} bytes")
    return content
