"""The faults of the chaos run: what each explains, and how it is injected.

An action happens at one time; a condition lasts while actions happen. ``Site`` is what they act on.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.chaos.checker import BUSY, CANCELLED, LATE, LOST, STREAM, Fault
from support.chaos.history import FaultWindow, VersionWindow
from support.chaos.models import DAMAGED, NAME, NETWORK
from support.chaos.state import LogPipe, ProcessState, client_ports, is_stopped, process_state
from support.serving import Service, command, wait_until

ROOT = Path(__file__).parents[3]
NUM_WORKERS = 2
STALL_S = 6.0
"""``--stall-s`` of the service: a worker on a busy machine may get no time for some seconds."""

PAUSE_S = 1.0
"""Time for which a worker is paused; much shorter than ``STALL_S``."""

AFTERMATH_S = 1.0
"""Time after a worker's end within which its clients notice that: until then they send calls on its connections."""

FLOOD_S = 2.0
BUSIEST = 0.8
"""How often a fault hits the worker with most connections."""

_LOST, _DRAIN = frozenset({LOST}), {STREAM: frozenset({LOST}), "": frozenset({"NOT_SERVING"})}
_END = {"": frozenset({LOST, LATE, CANCELLED, "CLOSED", "NOT_SERVING", "RESET 8"})}
_OVERLOAD = {"": frozenset({BUSY, LATE})}

FAULTS: dict[str, Fault] = {
    "kill": Fault(
        "a worker is killed", "SIGKILL",
        "only calls in flight on its connections fail, as UNAVAILABLE", {"": _LOST}, counts_differ=True,
    ),
    "stall": Fault(
        "a worker stops for good", "SIGSTOP, until the supervisor kills the worker",
        "the same, within `--stall-s`", {"": _LOST}, counts_differ=True,
    ),
    "pause": Fault(
        "a worker stops for a second", "SIGSTOP, then SIGCONT", "no call fails, no worker is replaced",
    ),
    "terminate": Fault(
        "a worker is terminated", "SIGTERM to the worker",
        "no call fails, with or without retries; a stream on a grpcio channel ends as UNAVAILABLE", _DRAIN,
    ),
    "rolling": Fault(
        "each worker is terminated in turn", "SIGTERM to one worker after another", "the same", _DRAIN,
    ),
    "reload": Fault(
        "another version of the model is activated", "`digitserve models activate`",
        "the same; answers state the old version or the new one, and only the new one once all workers are replaced", _DRAIN,
    ),
    "damaged version": Fault(
        "a version with a damaged network is activated", "its number is written to the active file",
        "it is refused, the old one continues, and no call fails",
    ),
    "changed files": Fault(
        "the files of the active version are overwritten, and a worker is killed", "write, SIGKILL",
        "the next worker serves the bytes that were verified; calls fail as with a killed worker", {"": _LOST},
        counts_differ=True,
    ),
    "faulty clients": Fault(
        "clients send random faulty requests and disconnect at random points", "`benchmarks/faulty_clients.py`, 12 threads",
        "other clients are not affected, except that a full queue may reject calls", {"": frozenset({BUSY})},
        counts_differ=True,
    ),
    "resets": Fault(
        "calls are opened and reset at once", "3 connections without pause", "other clients are not affected",
        counts_differ=True,
    ),
    "control frames": Fault(
        "floods of PING, SETTINGS, PRIORITY or CONTINUATION", "3 connections without pause", "the same", counts_differ=True,
    ),
    "held connections": Fault(
        "clients leave connections, header blocks, messages and streams open, or do not read answers", "450 connections",
        "the same, within the memory limit", counts_differ=True,
    ),
    "overload": Fault(
        "clients send calls with deadlines of 250 ms faster than they are answered", "3 connections without pause",
        "other calls are answered or rejected before their deadlines", _OVERLOAD, counts_differ=True,
    ),
    "full log": Fault(
        "standard error is a pipe that nobody reads", "a full pipe", "the service is not affected: log lines are lost",
    ),
    "closed log": Fault(
        "standard error is a pipe whose reader has ended", "the reading end is closed", "the same",
    ),
    "full disk": Fault(
        "standard error cannot be written", "`2>/dev/full`, for a whole service", "the same",
    ),
    "killed supervisor": Fault(
        "the supervisor is killed", "SIGKILL, then a new service on the same ports",
        "workers end, the new service starts at once, and clients continue with it", _END, counts_differ=True,
    ),
    "stop": Fault(
        "the service stops under load", "SIGTERM to the supervisor",
        "each call ends with its answer, or fails as a call without a service does", _END, counts_differ=True,
    ),
}  # fmt: skip


class Site:
    """The service that faults act on, and what is known of them. Used by the thread of the run.

    Attributes:
        models: folder of the models.
        service: that runs now.
        log: its standard error; None if that is not a pipe.
        windows: of the faults of this episode.
        versions: of the model that could be served, and when.
        num_restarts: workers that had to be replaced since the start of the service.
        idle_workers: state of the first workers, before any client.
        idle_supervisor: of their supervisor.
        recovery_s: seconds until all workers were ready again, by fault.
        num_frames: that floods have sent.
        peak_bytes: largest memory of a worker.
    """

    def __init__(self, models: Path, service: Service, log: LogPipe | None, version: str) -> None:
        self.models = models
        self.windows: list[FaultWindow] = []
        self.versions = [VersionWindow(version, 0.0, float("inf"))]
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        self.peak_bytes = self.num_frames = 0
        self.use(service, log)
        self.idle_workers = [process_state(pid) for pid in service.workers()]
        self.idle_supervisor = process_state(service.process.pid)

    def use(self, service: Service, log: LogPipe | None) -> None:
        """Continue with another service."""
        self.service, self.log = service, log
        self.num_restarts = 0
        wait_until(self.is_ready, "the service is ready")

    def is_ready(self) -> bool:
        """Return whether all workers are ready."""
        return self.service.total("digitserve_ready_workers") == len(self.service.workers()) == NUM_WORKERS

    def note(self, name: str, start_s: float, connections: frozenset[int] | None = None) -> None:
        """Record a fault whose effect ends now, apart from its aftermath."""
        self.windows.append(FaultWindow(name, start_s, time.monotonic() + AFTERMATH_S, connections))

    def await_recovery(self, name: str, start_s: float) -> None:
        """Wait until all workers are ready, and record how long that took."""
        wait_until(self.is_ready, f"all workers are ready after '{name}'")
        self.recovery_s[name].append(time.monotonic() - start_s)

    @property
    def active_version(self) -> str:
        """The version that was activated last."""
        return self.versions[-1].version

    def activate(self, version: str) -> None:
        """Activate a version with the command."""
        arguments = command("models", "activate", f"{NAME}/{version}", "--models", str(self.models))
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    def num_reloads(self, result: str) -> float:
        """Return how many reloads were completed, or failed."""
        return self.service.total("digitserve_reloads_total", result=result)

    def choose_worker(self, rng: random.Random) -> int:
        """Return the process id of the worker with most connections, mostly, after reading its peak memory."""
        pids = self.service.workers()
        busiest = max(pids, key=lambda pid: len(client_ports(pid, self.service.grpc_address)))
        pid = busiest if rng.random() < BUSIEST else rng.choice(pids)
        self.read_peak(process_state(pid))
        return pid

    def read_peak(self, state: ProcessState) -> None:
        """Record the peak memory of a worker."""
        self.peak_bytes = max(self.peak_bytes, state.peak_bytes)


def _end_worker(site: Site, name: str, rng: random.Random, number: signal.Signals = signal.SIGKILL) -> None:
    pid = site.choose_worker(rng)
    start_s = time.monotonic()
    # While it is stopped, it does not accept connections.
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), f"worker {pid} has stopped")
    connections = client_ports(pid, site.service.grpc_address)
    if number == signal.SIGKILL:
        os.kill(pid, number)
    wait_until(lambda: pid not in site.service.workers(), f"worker {pid} has ended")
    site.note(name, start_s, connections)
    site.num_restarts += 1
    site.await_recovery(name, start_s)


def kill(site: Site, rng: random.Random) -> None:
    """Kill a worker."""
    _end_worker(site, "kill", rng)


def stall(site: Site, rng: random.Random) -> None:
    """Stop a worker until the supervisor replaces it."""
    _end_worker(site, "stall", rng, signal.SIGSTOP)


def pause(site: Site, rng: random.Random) -> None:
    """Stop a worker and let it continue."""
    pid, start_s = site.choose_worker(rng), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(PAUSE_S)
    os.kill(pid, signal.SIGCONT)
    site.note("pause", start_s)
    site.await_recovery("pause", start_s)


def terminate(site: Site, rng: random.Random, name: str = "terminate", pid: int | None = None) -> None:
    """Terminate a worker, which drains."""
    pid = pid or site.choose_worker(rng)
    start_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: pid not in site.service.workers(), f"worker {pid} has drained")
    site.note(name, start_s)
    site.num_restarts += 1
    site.await_recovery(name, start_s)


def rolling(site: Site, rng: random.Random) -> None:
    """Terminate all workers in turn."""
    for pid in site.service.workers():
        terminate(site, rng, "rolling", pid)


def reload(site: Site, rng: random.Random) -> None:
    """Activate the other version."""
    start_s, old = time.monotonic(), site.versions[-1]
    completed = site.num_reloads("completed")
    site.versions.append(VersionWindow("5" if old.version == "4" else "4", start_s, float("inf")))
    site.activate(site.active_version)
    wait_until(lambda: site.num_reloads("completed") > completed, "the reload is complete")
    site.await_recovery("reload", start_s)
    # The processes of the old version have ended.
    site.versions[-2] = old._replace(end_s=time.monotonic())
    site.note("reload", start_s)


def damaged_version(site: Site, rng: random.Random) -> None:
    """Activate a damaged version, and then the one that is served."""
    start_s, failed = time.monotonic(), site.num_reloads("failed")
    (site.models / NAME / "active").write_text(f"{DAMAGED}\n")
    wait_until(lambda: site.num_reloads("failed") > failed, "the damaged version is refused")
    site.activate(site.active_version)
    site.note("damaged version", start_s)
    site.await_recovery("damaged version", start_s)


def changed_files(site: Site, rng: random.Random) -> None:
    """Overwrite the network that is served, and kill a worker."""
    path = site.models / NAME / site.active_version / NETWORK
    content = path.read_bytes()
    path.write_bytes(rng.randbytes(len(content)))
    try:
        _end_worker(site, "changed files", rng)
    finally:
        path.write_bytes(content)


ACTIONS: dict[str, Callable[[Site, random.Random], None]] = {
    "kill": kill, "stall": stall, "pause": pause, "terminate": terminate, "rolling": rolling,
    "reload": reload, "damaged version": damaged_version, "changed files": changed_files,
}  # fmt: skip


@contextmanager
def process(site: Site, name: str, *arguments: str) -> Iterator[None]:
    """Run a process of hostile clients until the end of the ``with`` block, but for a while at least."""
    start_s = time.monotonic()
    port = site.service.grpc_address.rpartition(":")[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), *sys.path])}
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--port", port],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        time.sleep(FLOOD_S)
        yield
        assert running.poll() is None, f"{arguments[0]} has ended"
    finally:
        running.terminate()
        try:
            output, _ = running.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            output, _ = running.communicate()
        site.num_frames += int(output or 0)
        site.note(name, start_s)
        site.await_recovery(name, time.monotonic())


@contextmanager
def log_fault(
    site: Site, name: str, begin: Callable[[LogPipe], None], end: Callable[[LogPipe], None]
) -> Iterator[None]:
    """Impair the reader of the log, and repair it at the end."""
    assert site.log is not None
    start_s = time.monotonic()
    begin(site.log)
    yield
    end(site.log)
    site.note(name, start_s)


def _flood(name: str, kind: str) -> Callable[[Site, int], contextlib.AbstractContextManager[None]]:
    return lambda site, seed: process(site, name, "support.chaos.floods", "--kind", kind, "--seed", str(seed))


CONDITIONS: dict[str, Callable[[Site, int], contextlib.AbstractContextManager[None]]] = {
    "full log": lambda site, _: log_fault(site, "full log", LogPipe.fill, LogPipe.resume),
    "closed log": lambda site, _: log_fault(site, "closed log", LogPipe.close, LogPipe.open),
    "faulty clients": lambda site, seed: process(
        site, "faulty clients", "benchmarks.faulty_clients", "--seed", str(seed)
    ),
    "resets": _flood("resets", "resets"),
    "control frames": _flood("control frames", "control"),
    "held connections": _flood("held connections", "held"),
    "overload": _flood("overload", "calls"),
}
"""Faults that last while actions happen, and need a log that is a pipe or a process."""

LOG_FAULTS = {"full log", "closed log"}
