"""Servers to measure: each is started on given cores, reports its own counters, and is always stopped.

digitserve is here, all others are in ``peers``. Each server runs in its own session, so that its CPU time includes all its
processes: workers have process groups of their own.
"""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from benchmarks.aio_service import STATS
from benchmarks.bundles import FLOAT32_MODEL, INT8_MODEL
from benchmarks.installation import BenchError, Installation

READY_S = 30.0
"""Longest wait until a server is ready."""

STOP_S = 10.0
"""Longest wait for a server to stop after SIGTERM; then it is killed."""

POLL_S = 0.05

UNVERIFIED = ssl.create_default_context()
"""For pages of servers with a certificate of ``make_certificate``, which names no address."""
UNVERIFIED.check_hostname, UNVERIFIED.verify_mode = False, ssl.CERT_NONE


class Scheduling(NamedTuple):
    """How the kernel schedules a process.

    Attributes:
        policy: such as ``os.SCHED_BATCH``.
        niceness: -20 to 19.
        cores: on which it may run.
    """

    policy: int
    niceness: int
    cores: frozenset[int]


class Server:
    """A server of one or more processes on its cores. Runs from the start to the end of a ``with`` statement.

    Attributes:
        name: for tables.
        int8: whether it has the int8 network.
        own_models: folder of its networks, if it has others than most servers.
        grpc_port: port of its gRPC service on 127.0.0.1.
        http_port: port of its metrics page, if it has one.
        scheme: ``https`` with TLS.
    """

    name = ""
    int8 = False
    own_models: Path | None = None
    scheme = "http"

    def __init__(self, models: Path, cores: str, installation: Installation | None = None) -> None:
        """Choose ports; the server is not started yet.

        Args:
            models: folder of the bundles, unless it has ``own_models``.
            cores: for ``taskset``, such as ``0,2-3``.
            installation: the installation to run; that of this process by default.
        """
        self._models = (self.own_models or models).resolve()
        self._cores = cores
        self._installation = installation or Installation()
        self._folder = tempfile.TemporaryDirectory()
        self.stats_path = Path(self._folder.name) / "stats"
        self._log_path = Path(self._folder.name) / "log"
        self.grpc_port, self.http_port = free_port(), free_port()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether it is ready for requests."""
        return "ready\n" in self._log()

    def metrics_url(self) -> str:
        """Return the URL of its metrics page; servers without one do not listen there."""
        return f"http://127.0.0.1:{self.http_port}/metrics"

    def num_images(self) -> int:
        """Return how many images it has classified, by its own counter."""
        return int(np.fromfile(self.stats_path, np.float64, len(STATS))[STATS.index("images")])

    @property
    def model_flags(self) -> list[str]:
        """Flags that select its network."""
        model = INT8_MODEL if self.int8 else self.own_models and FLOAT32_MODEL
        return ["--models", str(self._models), *(["--model", model] if model else [])]

    @property
    def pid(self) -> int:
        """The process that answers."""
        return self._process.pid

    def __enter__(self) -> Self:
        """Start the server, and wait until it is ready."""
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", self._cores, *self.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=self._installation.source, env=self._installation.environment,
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
        """Stop the server; kill it if it does not stop in time."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _signal(self, number: int) -> None:
        # SIGTERM goes to the first process only, as from an operator; SIGKILL to all remaining processes of the group.
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def _wait_until_ready(self) -> None:
        end_s = time.monotonic() + READY_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise BenchError(f"{self.name} did not become ready:\n{self._log()}")
            time.sleep(POLL_S)

    def _log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used."""
        return sum(_cpu_s(self._process.pid)) / os.sysconf("SC_CLK_TCK")

    def scheduling(self) -> Scheduling:
        """Return how the kernel schedules the process that answers."""
        pid = self.pid
        priority = os.getpriority(os.PRIO_PROCESS, pid)
        return Scheduling(os.sched_getscheduler(pid), priority, frozenset(os.sched_getaffinity(pid)))

    def memory_bytes(self) -> int:
        """Return the resident memory of the process that answers."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class WorkerState:
    """Resources of a worker process.

    Attributes:
        memory_bytes: resident.
        num_descriptors: open files and sockets.
        num_threads: of the process.
    """

    memory_bytes: int
    num_descriptors: int
    num_threads: int


class Digitserve(Server):
    """The real command of an installation: one worker per core, and the supervisor on the same cores."""

    name = "digitserve"
    flags: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            self._installation.program, "serve", *self.model_flags,
            "--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port), *self.flags,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Return whether all workers are ready: ``/readyz`` is OK and the banner is printed."""
        try:
            return "digitserve is ready" in self._log() and bool(self._get("/readyz"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def num_images(self) -> int:
        """Return the number of classified images."""
        return int(self.sample("digitserve_images_total"))

    @property
    def pid(self) -> int:
        """The first worker."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return min(map(int, children))

    def sample(self, name: str) -> float:
        """Return a sample of ``/metrics`` that has no labels."""
        match = re.search(rf"^{name} (\S+)$", self._get("/metrics"), re.MULTILINE)
        if match is None:
            raise BenchError(f"/metrics has no sample {name}")
        return float(match[1])

    def batch_s(self) -> tuple[float, float]:
        """Return the seconds spent on batches, framing included, and the number of batches."""
        spent_s = sum(self.sample(f"digitserve_{what}_seconds_sum") for what in ("inference", "preprocess"))
        return spent_s, self.sample("digitserve_batch_size_count")

    def total(self, name: str) -> int:
        """Return the sum of all samples of ``/metrics`` with a name."""
        return sum(self.totals(name).values())

    def totals(self, name: str, label: str = "") -> dict[str, int]:
        """Return the samples with a name, added up by the value of a label."""
        totals: Counter[str] = Counter()
        for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self._get("/metrics"), re.MULTILINE):
            found = re.search(rf'{label}="([^"]*)"', labels) if label else None
            totals[found[1] if found else ""] += int(float(value))
        return dict(totals)

    def worker_state(self) -> WorkerState:
        """Return the resources of the first worker."""
        worker = Path("/proc") / str(self.pid)
        threads, descriptors = (len(list((worker / what).iterdir())) for what in ("task", "fd"))
        return WorkerState(self.memory_bytes(), descriptors, threads)

    def _get(self, path: str) -> str:
        # With a certificate the banner shows https; older versions have no TLS on this port.
        url = f"{'https' if 'https://' in self._log() else 'http'}://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(url, timeout=5, context=UNVERIFIED) as response:
            text: str = response.read().decode()
        return text


class Native(Digitserve):
    """The service on its own HTTP/2 transport."""

    name = "native"
    flags = ("--transport", "native")


class NativeTls(Native):
    """The native transport with TLS and a certificate on P-256."""

    name = "native tls"
    scheme = "https"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [*super().command(), *make_certificate(Path(self._folder.name))]


class Grpcio(Digitserve):
    """The service on gRPC core."""

    name = "grpcio"
    flags = ("--transport", "grpcio")


class NativeInt8(Native):
    """The int8 network on the native transport."""

    name = "native int8"
    int8 = True


class GrpcioInt8(Grpcio):
    """The int8 network on gRPC core."""

    name = "grpcio int8"
    int8 = True


def make_certificate(folder: Path) -> list[str]:
    """Make a self-signed certificate in a folder; return the flags of a server that uses it."""
    certificate, key = str(folder / "server.pem"), str(folder / "server.key")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return ["--tls-certificate", certificate, "--tls-key", key]


def free_port() -> int:
    """Return a port of 127.0.0.1 that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _cpu_s(session: int) -> Iterator[int]:
    """Yield the clock ticks of each process of a session, including its children that have ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The process name in parentheses may contain anything; only numbers follow it.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield sum(map(int, fields[11:15]))
