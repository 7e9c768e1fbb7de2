"""Atomic file writing: the only place in the training package that replaces a file.

Used by ``fit.checkpoint``, ``tune.search`` and ``evaluate``. Needs no TensorFlow.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends without an exception.

    The content is flushed to disk before the rename, so ``path`` holds either its old or its new content at any moment.
    If the block raises, ``path`` stays as it was and the temporary file is deleted.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
