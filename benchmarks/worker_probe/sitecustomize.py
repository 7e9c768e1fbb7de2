"""Reports what a worker has allocated, exactly: resident memory also has what the allocators keep for later.

Python imports this module at the start of each process of the service that ``soak`` measures, because its folder is in
PYTHONPATH. In a worker, a thread waits for a writer of the FIFO ``ask`` in the folder DIGITSERVE_PROBE. For each one it
writes the file ``answer``: allocated blocks of Python's allocator, for objects of up to 512 bytes; allocated bytes of the C
library, for all else.
"""

import ctypes
import gc
import json
import os
import sys
import threading
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _answer(folder: Path) -> None:
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo2
    while True:
        (folder / "ask").read_bytes()  # until the writer closes it
        gc.collect()
        info = library.mallinfo2()
        (folder / "unfinished").write_text(json.dumps([sys.getallocatedblocks(), info.uordblks + info.hblkhd]))
        (folder / "unfinished").rename(folder / "answer")


if "digitserve.worker" in sys.orig_argv:
    threading.Thread(target=_answer, args=(Path(os.environ["DIGITSERVE_PROBE"]),), daemon=True).start()
