"""The servers that are compared: started pinned to given cores, asked for their own counts, always ended.

Each runs in a process group of its own: its CPU time is read, and its end is made, for all its processes at once.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.aio_service import STATS

ROOT = Path(__file__).parents[1]
READY_S = 30.0
"""Longest wait for a server to take requests."""

END_S = 10.0
"""Longest wait for a server to end after SIGTERM; then it is killed."""

STEP_S = 0.05


class BenchError(Exception):
    """The benchmark cannot be trusted, or cannot run; the text says why."""


class Server:
    """A server process (or several) on its cores, from ``with`` to its end.

    Attributes:
        name: as the table calls it.
        grpc_port: where it listens, on 127.0.0.1.
        http_port: where its metrics are, if it has any.
    """

    name = ""

    def __init__(self, models: Path, cores: str) -> None:
        """Choose a port; nothing runs yet."""
        self._models = models.resolve()
        self._cores = cores
        self._folder = tempfile.TemporaryDirectory()
        self.stats_path = Path(self._folder.name) / "stats"
        self._log_path = Path(self._folder.name) / "log"
        self.grpc_port, self.http_port = free_port(), free_port()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether it takes requests."""
        return "ready\n" in self._log()

    def metrics_url(self) -> str:
        """Return where its metrics are; a server without any is asked in vain, and the load says so."""
        return f"http://127.0.0.1:{self.http_port}/metrics"

    def num_ok(self) -> int:
        """Return how many requests, or messages of streams, it has answered with OK, by its own count."""
        return int(np.fromfile(self.stats_path, np.float64, len(STATS))[STATS.index("ok")])

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready."""
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", self._cores, *self.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, by force if need be."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _signal(self, number: int) -> None:
        # The first goes to the leader only, as an operator's would; the last to all that is left of its group.
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def _wait_until_ready(self) -> None:
        ends = time.monotonic() + READY_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > ends:
                raise BenchError(f"{self.name} did not become ready:\n{self._log()}")
            time.sleep(STEP_S)

    def _log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used."""
        return sum(_cpu_s(self._process.pid)) / os.sysconf("SC_CLK_TCK")


class Digitserve(Server):
    """The real command, its supervisor on the same cores: as many workers as there are cores."""

    name = "digitserve"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            str(Path(sys.executable).parent / "digitserve"), "serve", "--models", str(self._models),
            "--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Return whether ``/readyz`` says so of all workers."""
        try:
            return bool(self._get("/readyz")) and "digitserve is ready" in self._log()
        except (urllib.error.URLError, ConnectionError):
            return False

    def num_ok(self) -> int:
        """Count images: all requests of a run have equally many."""
        return int(self.sample("digitserve_images_total"))

    def sample(self, name: str) -> float:
        """Return a sample of ``/metrics`` that has no labels."""
        match = re.search(rf"^{name} (\S+)$", self._get("/metrics"), re.MULTILINE)
        if match is None:
            raise BenchError(f"/metrics has no sample {name}")
        return float(match[1])

    def batch_s(self) -> tuple[float, float]:
        """Return seconds spent on batches, framing included, and how many there were."""
        spent_s = sum(self.sample(f"digitserve_{what}_seconds_sum") for what in ("inference", "preprocess"))
        return spent_s, self.sample("digitserve_batch_size_count")

    def worker_bytes(self) -> int:
        """Return the resident memory of one worker: the smallest."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in children]
        return min(pages) * os.sysconf("SC_PAGE_SIZE")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as response:
            text: str = response.read().decode()
        return text


class Aio(Server):
    """The ``grpc.aio`` service: what has queued when the batching thread looks becomes its batch."""

    name = "grpc.aio"
    flags: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "benchmarks.aio_service", "--models", str(self._models),
            "--port", str(self.grpc_port), "--stats", str(self.stats_path), *self.flags,
        ]  # fmt: skip


class AioWindow(Aio):
    """The same with a timer: worse for an idle service, better for one that is as busy as this one."""

    name = "grpc.aio, window"
    flags = ("--window-ms", "6")


class Empty(Server):
    """The floor E: an empty RPC on the raw completion queue, or an empty message on a stream there."""

    name = "empty"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "benchmarks.floors", "empty", "--port", str(self.grpc_port),
            "--stats", str(self.stats_path),
        ]  # fmt: skip


class EmptyInBulk(Empty):
    """The same under the scheduling policy of a worker (``worker.use_batch_scheduling``), which its threads inherit."""

    name = "empty, in bulk"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return ["chrt", "--batch", "0", *super().command()]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _cpu_s(group: int) -> Iterator[int]:
    """Yield the clock ticks of each process of a group, with those of its children that have ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; what follows it are numbers.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                yield sum(map(int, fields[11:15]))
