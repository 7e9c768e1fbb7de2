"""The state of the service's processes, from /proc, and its log."""

import contextlib
import fcntl
import json
import os
import select
import threading
from pathlib import Path
from typing import NamedTuple

from support.serving import sockets

MAX_WORKER_BYTES = 384_000_000
"""Promise of the native transport, whatever clients do."""

MAX_GROWTH_BYTES = 48_000_000
"""Largest difference between an idle process that has just started and one that is idle again: memory that the allocator keeps
for later, measured after floods; see docs/reliability.md."""


NUM_TABLES = 5
"""Number of times the kernel's table of connections is read."""


class ProcessState(NamedTuple):
    """What a process uses.

    Attributes:
        memory_bytes: resident.
        peak_bytes: largest ``memory_bytes`` since its start.
        num_descriptors: open file descriptors.
        num_threads: threads.
    """

    memory_bytes: int
    peak_bytes: int
    num_descriptors: int
    num_threads: int

    def excess(self, idle: "ProcessState", *, num_descriptors: int = 0) -> list[str]:
        """Return what this idle process uses in excess of an earlier one, apart from so many descriptors."""
        idle = idle._replace(num_descriptors=idle.num_descriptors + num_descriptors)
        found = [
            f"{what}: {getattr(idle, what)} at the start, {getattr(self, what)} at the end"
            for what in ("num_descriptors", "num_threads")
            if getattr(self, what) > getattr(idle, what)
        ]
        if self.memory_bytes > idle.memory_bytes + MAX_GROWTH_BYTES:
            found.append(
                f"memory: {idle.memory_bytes / 1e6:.0f} MB at the start, {self.memory_bytes / 1e6:.0f} at the end"
            )
        return found


def process_state(pid: int) -> ProcessState:
    """Read the state of a process.

    Raises:
        OSError: it has ended.
    """
    folder = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return ProcessState(memory, peak, len(list((folder / "fd").iterdir())), int(fields["Threads"]))


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def client_ports(pid: int, address: str) -> frozenset[int]:
    """Return the clients' ports of the connections that a stopped worker has accepted."""
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(link.readlink().name)
    # A table that changes while it is read may lack entries.
    tables = [sockets(address) for _ in range(NUM_TABLES)]
    found = {one.client: one.inode for table in tables for one in table}
    return frozenset(int(name.rpartition(":")[2], 16) for name, inode in found.items() if f"socket:[{inode}]" in held)


class LogPipe:
    """The reader of a named pipe that is the standard error of a service; it can stop reading, or close its end.

    Attributes:
        path: of the pipe.
        lines: that were read.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.lines: list[str] = []
        self._rest = b""
        self._fd = -1
        self._reading = threading.Event()
        self._ended = threading.Event()
        self.open()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def open(self) -> None:
        """Open the pipe again, and read."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._reading.set()

    def fill(self) -> None:
        """Stop reading, and fill the pipe, so that no line fits."""
        self._reading.clear()
        # The smallest pipe has one page.
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, 4096)
        try:
            while True:
                os.write(self._fd, b"\n" * 512)
        except BlockingIOError:
            return

    def resume(self) -> None:
        """Read again."""
        self._reading.set()

    def close(self) -> None:
        """Close this end: writing fails."""
        self._reading.clear()
        fd, self._fd = self._fd, -1
        os.close(fd)

    def end(self) -> None:
        """Stop the reader."""
        self._ended.set()
        self._reading.set()
        self._thread.join()
        if self._fd >= 0:
            self.close()

    def faults(self) -> list[str]:
        """Return the lines that are not JSON, or that report an internal error."""
        found = []
        for line in self.lines:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
            except ValueError:
                found.append(f"not JSON: {line[:200]}")
                continue
            if "exception" in event:
                found.append(line[:2000])
        return found

    def _read(self) -> None:
        while not self._ended.is_set():
            self._reading.wait()
            try:
                if not select.select([self._fd], [], [], 0.1)[0]:
                    continue
                self._rest += os.read(self._fd, 1 << 16)
            except (OSError, ValueError):
                # Closed, or not readable.
                continue
            *lines, self._rest = self._rest.split(b"\n")
            self.lines += [line.decode(errors="replace") for line in lines]
