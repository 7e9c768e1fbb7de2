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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from tests.bench.aio_service import STATS

ROOT = Path(__file__).parents[2]
READY_S = 30.0
"""Longest wait for a server to take requests."""

END_S = 10.0
"""Longest wait for a server to end after SIGTERM; then it is killed."""

QUIET_S = 5.0
"""Longest wait for the counts to stand still after the load has ended."""

STEP_S = 0.05

_CLASSIFY = r'grpc_method="Classify",grpc_service="digitserve\.v1\.DigitService",grpc_type="unary"'


class BenchError(Exception):
    """The benchmark cannot be trusted, or cannot run; the text says why."""


@dataclass(frozen=True)
class Counts:
    """What a server says of itself.

    Attributes:
        ok: requests answered with status OK.
        failed: requests answered with another status, without those that their client cancelled.
        batches: runs of the network.
        images: rows in them.
        open: requests taken on and not ended; 0 where it is not known.
    """

    ok: int
    failed: int
    batches: int
    images: int
    open: int = 0

    def since(self, before: "Counts") -> "Counts":
        """Return what was added after ``before``."""
        return Counts(
            self.ok - before.ok, self.failed - before.failed, self.batches - before.batches, self.images - before.images
        )


class Server:
    """A server process (or several) on its cores, from ``with`` to its end.

    Attributes:
        name: as the table calls it.
        grpc_port: where it listens, on 127.0.0.1.
    """

    name = ""

    def __init__(self, models: Path, cores: str) -> None:
        """Choose a port; nothing runs yet."""
        self._models = models.resolve()
        self._cores = cores
        self._folder = tempfile.TemporaryDirectory()
        self.stats_path = Path(self._folder.name) / "stats"
        self._log_path = Path(self._folder.name) / "log"
        self.grpc_port = free_port()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether it takes requests."""
        return "ready\n" in self._log()

    def counts(self) -> Counts:
        """Ask for its counts."""
        ok, failed, batches, images = (int(value) for value in np.fromfile(self.stats_path, np.float64, len(STATS)))
        return Counts(ok, failed, batches, images)

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

    def quiet_counts(self) -> Counts:
        """Return the counts once they stand still."""
        ends = time.monotonic() + QUIET_S
        before = self.counts()
        while time.monotonic() < ends:
            time.sleep(2 * STEP_S)
            after = self.counts()
            if after == before and not after.open:
                return after
            before = after
        raise BenchError(f"{self.name}: the counts still change {QUIET_S:g} s after the load has ended: {before}")

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used."""
        return sum(_cpu_s(self._process.pid)) / os.sysconf("SC_CLK_TCK")


class Digitserve(Server):
    """The real command with one worker, its supervisor on the same cores."""

    name = "digitserve"

    def __init__(self, models: Path, cores: str) -> None:
        """Choose ports; nothing runs yet."""
        super().__init__(models, cores)
        self._http_port = free_port()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            str(Path(sys.executable).parent / "digitserve"), "serve", "--workers", "1", "--models", str(self._models),
            "--grpc-port", str(self.grpc_port), "--http-port", str(self._http_port),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Return whether ``/readyz`` says so."""
        try:
            return bool(self._get("/readyz"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def counts(self) -> Counts:
        """Read ``/metrics``."""
        text = self._get("/metrics")
        ended = {code: int(float(value)) for code, value in _handled(text)}
        ok, canceled = ended.get("OK", 0), ended.get("Canceled", 0)
        return Counts(
            ok=ok,
            failed=sum(ended.values()) - ok - canceled,
            batches=_sample(text, "digitserve_batch_size_count"),
            images=_sample(text, "digitserve_batch_size_sum"),
            open=_sample(text, r"grpc_server_started_total\{" + _CLASSIFY + r"\}") - sum(ended.values()),
        )

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=5) as response:
            text: str = response.read().decode()
        return text


class Aio(Server):
    """The ``grpc.aio`` service: what has queued when the batching thread looks becomes its batch."""

    name = "grpc.aio"
    flags: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "tests.bench.aio_service", "--models", str(self._models),
            "--port", str(self.grpc_port), "--stats", str(self.stats_path), *self.flags,
        ]  # fmt: skip


class AioWindow(Aio):
    """The same with a timer: worse for an idle service, better for one that is as busy as this one."""

    name = "grpc.aio, window"
    flags = ("--window-ms", "6")


class Empty(Server):
    """The floor E: an empty RPC on the raw completion queue, ten floats back."""

    name = "E: empty RPC"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "tests.bench.floors", "empty", "--port", str(self.grpc_port),
            "--stats", str(self.stats_path),
        ]  # fmt: skip


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _handled(text: str) -> list[tuple[str, str]]:
    pattern = r'^grpc_server_handled_total\{grpc_code="(\w+)",' + _CLASSIFY + r"\} (\S+)$"
    return re.findall(pattern, text, re.MULTILINE)


def _sample(text: str, name: str) -> int:
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if match is None:
        raise BenchError(f"/metrics has no sample that looks like {name}")
    return int(float(match[1]))


def _cpu_s(group: int) -> Iterator[int]:
    """Yield the clock ticks of each process of a group, with those of its children that have ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; what follows it are numbers.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                yield sum(map(int, fields[11:15]))
