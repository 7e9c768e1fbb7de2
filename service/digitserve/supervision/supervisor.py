"""The supervisor: starts, watches and replaces workers, and shows the service to operators.

One process, one thread, one asyncio loop. It holds the port (bound, never listening, so that it stays the service's even
while no worker lives), the memory of all metrics, and the HTTP side. It never touches a request.

    SIGTERM ──▶ not ready ──▶ workers drain ──▶ all gone ──▶ HTTP closes ──▶ exit 0
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from digitserve.errors import RefusalToStart, SettingsError
from digitserve.inference.bundle import Bundle, Manifest, find_bundle, read_bundle
from digitserve.settings import Settings, endpoint
from digitserve.supervision import device
from digitserve.supervision.cpu_budget import cpu_budget
from digitserve.supervision.http import HttpServer, make_app
from digitserve.supervision.restart_policy import START_LIMIT_S, Backoff, Pulse
from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector

if TYPE_CHECKING:
    from digitserve.worker import Worker

TICK_S = 0.1
"""How often the heartbeats are looked at."""

KILL_MARGIN_S = 2.0
"""Beyond the grace, seconds that a worker has to end by itself."""

# Set for workers before anything is imported there.
_WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRPC_VERBOSITY": "ERROR",
}

_log = structlog.get_logger("digitserve.supervision.supervisor")


class WorkerSlot:
    """One of the N places for a worker, and whoever holds it now. Owned by the supervisor's loop.

    Attributes:
        ready_since: monotonic time in seconds, ``None`` while no worker is ready.
        refusal: why the last worker did not start, if it refused.
    """

    def __init__(self, supervisor: "Supervisor", number: int) -> None:
        self._supervisor = supervisor
        self._number = number
        self._backoff = Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self.ready_since: float | None = None
        self.refusal: str | None = None
        self.first_outcome = asyncio.Event()

    async def keep(self) -> None:
        """Keep a worker alive until the supervisor stops."""
        while not self._supervisor.stopping:
            served_s = await self._live()
            self.first_outcome.set()
            # A refusal at the first start ends the service; later it may be mended, so it is tried again.
            if self._supervisor.stopping or (self.refusal and not self._supervisor.started):
                return
            self._supervisor.num_restarts += 1
            delay_s = self._backoff.delay_s(served_s)
            _log.warning(
                "worker ended, starting another", worker=self._number, served_s=round(served_s, 1), delay_s=delay_s
            )
            await self._supervisor.sleep(delay_s)

    async def _live(self) -> float:
        """Run one worker from start to end and return the seconds that it was ready."""
        block = self._supervisor.collector.new_block()
        self._process = process = await self._supervisor.spawn(block)
        if self._supervisor.stopping:
            self.drain()
        watch = asyncio.create_task(self._watch(process, block))
        try:
            async for line in process.stdout:  # type: ignore[union-attr]
                self._hear(json.loads(line))
            code = await process.wait()
        finally:
            watch.cancel()
            self._process = None
            self._supervisor.collector.retire(block)
        served_s = time.monotonic() - self.ready_since if self.ready_since else 0.0
        self.ready_since = None
        if self._supervisor.stopping and code:
            self._supervisor.num_failed_drains += 1
            _log.error("worker failed while it drained", worker=self._number, pid=process.pid, exit_code=code)
        if not self._supervisor.stopping and (self._supervisor.started or not self.refusal):
            _log.error(
                "worker ended unasked", worker=self._number, pid=process.pid, exit_code=code, refusal=self.refusal
            )
        return served_s

    def _hear(self, message: dict[str, str]) -> None:
        if message["event"] == "ready":
            self.ready_since = time.monotonic()
            self.refusal = None
            self._supervisor.provider = message["provider"]
            self.first_outcome.set()
        else:
            self.refusal = message["message"]

    async def _watch(self, process: asyncio.subprocess.Process, block: Block) -> None:
        """Kill a worker that does not become ready, or whose loop stands still."""
        started = time.monotonic()
        while self.ready_since is None:
            await asyncio.sleep(TICK_S)
            if time.monotonic() - started > START_LIMIT_S:
                _log.error("worker did not become ready, killing it", worker=self._number, limit_s=START_LIMIT_S)
                process.kill()
                return
        pulse = Pulse(self._supervisor.settings.stall_s, time.monotonic())
        while not pulse.is_stalled(block.heartbeat, time.monotonic()):  # noqa: ASYNC110 - a heart beats in shared memory
            await asyncio.sleep(TICK_S)
        _log.error(
            "worker's loop stands still, killing it", worker=self._number, stall_s=self._supervisor.settings.stall_s
        )
        process.kill()

    def drain(self) -> None:
        """Ask the worker to answer what it has and end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End the worker at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class InlineSlot:
    """The one worker of ``--workers 0``: a thread of this process, for debuggers; when it fails, the service ends.

    Attributes: as ``WorkerSlot``.
    """

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._worker: Worker | None = None
        self.ready_since: float | None = None
        self.refusal: str | None = None
        self.first_outcome = asyncio.Event()

    async def keep(self) -> None:
        """Run the worker until the supervisor stops."""
        # Only here does onnxruntime come into the supervisor's process.
        from digitserve.worker import Worker  # noqa: PLC0415

        supervisor = self._supervisor
        try:
            bundle = read_bundle(
                find_bundle(supervisor.settings.models, supervisor.manifest.name, supervisor.manifest.version)
            )
            block = supervisor.collector.new_block()
            self._worker = await asyncio.to_thread(Worker, supervisor.settings, bundle, block, supervisor.num_threads)
            self._worker.listen()
            supervisor.provider = self._worker.provider
            self.ready_since = time.monotonic()
            self.first_outcome.set()
            await asyncio.to_thread(self._worker.run)
        except RefusalToStart as error:
            self.refusal = str(error)
        finally:
            self.ready_since = None
            self.first_outcome.set()
            if not supervisor.stopping:
                supervisor.stop()

    def drain(self) -> None:
        """Ask the worker to answer what it has and end."""
        if self._worker is not None:
            self._worker.drain()

    def kill(self) -> None:
        """Nothing can end a thread from outside; the process's end does."""


class Supervisor:
    """The service as an operator sees it: one object, made by ``serve``, run once."""

    def __init__(self, settings: Settings, manifest: Manifest, holder: socket.socket, listener: socket.socket) -> None:
        """Prepare.

        Args:
            settings: with workers and version settled.
            manifest: of the bundle to serve.
            holder: bound to the gRPC port, not listening.
            listener: listening on the HTTP port.
        """
        self.settings = settings
        self.manifest = manifest
        self.provider = ""
        self.num_restarts = 0
        self.num_failed_drains = 0
        self.started = False
        self.stopping = False
        self._hurried = False
        self._stop = asyncio.Event()
        self._holder = holder
        self._listener = listener
        self.collector = ServiceCollector(manifest.labels, self._supervised)
        registry = CollectorRegistry()
        registry.register(self.collector)
        self._http = HttpServer(make_app(self, registry))
        self._slots: Sequence[WorkerSlot | InlineSlot] = [
            WorkerSlot(self, number) for number in range(settings.workers or 0)
        ] or [InlineSlot(self)]
        self._budget = cpu_budget()
        self.num_threads = max(1, int(self._budget) // len(self._slots))

    @property
    def num_ready(self) -> int:
        """Workers that take requests."""
        return sum(slot.ready_since is not None for slot in self._slots)

    @property
    def ready(self) -> bool:
        """Whether requests are being served and will go on being served."""
        return self.num_ready > 0 and not self.stopping

    def status_line(self) -> str:
        """Return one line for people."""
        state = "draining" if self.stopping else "ready" if self.ready else "not ready"
        refusals = {slot.refusal for slot in self._slots if slot.refusal}
        return (
            f"digitserve {state}: {self.manifest.name}/{self.manifest.version} sha256 {self.manifest.sha256[:12]}, "
            f"{self.num_ready} of {len(self._slots)} workers ready"
            + "".join(f"; {refusal}" for refusal in sorted(refusals))
        )

    async def run(self, out: TextIO) -> int:
        """Serve until a signal says stop; return the exit code.

        Raises:
            RefusalToStart: a worker refused at the first start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        http = asyncio.create_task(self._http.run_on(self._listener))
        keepers = [asyncio.create_task(slot.keep()) for slot in self._slots]
        try:
            await self._first_start()
            self.started = True
            if not self.stopping:
                print(self._banner(), file=out, flush=True)
            await self._stop.wait()
            return await self._drain(keepers)
        finally:
            self.stopping = True
            for slot in self._slots:
                slot.kill()
            await asyncio.gather(*keepers, return_exceptions=True)
            self._http.should_exit = True
            await http

    def stop(self) -> None:
        """Begin to drain; the second time, end at once."""
        if self.stopping:
            self._hurried = True
            _log.warning("asked again to stop: ending without waiting for answers")
            for slot in self._slots:
                slot.kill()
        self.stopping = True
        self._stop.set()

    async def sleep(self, delay_s: float) -> None:
        """Wait, but not beyond the order to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)

    async def spawn(self, block: Block) -> asyncio.subprocess.Process:
        """Start a worker process by exec; forking would copy gRPC's threads half-way."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "digitserve.worker", str(block.fd), str(self.num_threads),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=(block.fd,),
            env={**os.environ, **_WORKER_ENVIRONMENT},
        )  # fmt: skip
        process.stdin.write(self.settings.to_json().encode() + b"\n")  # type: ignore[union-attr]
        return process

    async def _first_start(self) -> None:
        """Wait until each worker is ready or has refused."""
        stop = asyncio.create_task(self._stop.wait())
        for slot in self._slots:
            outcome = asyncio.create_task(slot.first_outcome.wait())
            await asyncio.wait([stop, outcome], return_when=asyncio.FIRST_COMPLETED)
            outcome.cancel()
        stop.cancel()
        for slot in self._slots:
            if slot.refusal:
                raise RefusalToStart(slot.refusal)

    async def _drain(self, keepers: list["asyncio.Task[None]"]) -> int:
        _log.info("draining", grace_s=self.settings.grace_s)
        for slot in self._slots:
            slot.drain()
        ended, late = await asyncio.wait(keepers, timeout=self.settings.grace_s + KILL_MARGIN_S)
        for keeper in ended:
            keeper.result()
        if late:
            _log.error("workers did not end within the grace, killing them", num_workers=len(late))
            return 1
        if self._hurried or self.num_failed_drains:
            return 1
        _log.info("drained")
        return 0

    def _banner(self) -> str:
        settings, manifest = self.settings, self.manifest
        # As it was called, so that the command can be copied even where it is not on the path.
        address = endpoint(settings.host, settings.grpc_port)
        program = sys.argv[0] if sys.argv[0].endswith("/digitserve") else "digitserve"
        lines = {
            "gRPC": address,
            "HTTP": f"http://{endpoint(settings.host, settings.http_port)}  (/metrics /livez /readyz)",
            "model": f"{manifest.name}/{manifest.version}  sha256 {manifest.sha256[:12]}  {self.provider}",
            "workers": f"{settings.workers} x {self.num_threads} threads, CPU budget {self._budget:g}",
            "try": f"{program} classify --address {address} FILE.png",
        }
        return "\n".join(["digitserve is ready", *(f"  {name:<8} {text}" for name, text in lines.items())])

    def _supervised(self) -> Iterable[Metric]:
        manifest = self.manifest
        info = GaugeMetricFamily(
            "digitserve_model_info", "The model being served.", labels=("name", "version", "sha256", "provider")
        )
        info.add_metric((manifest.name, str(manifest.version), manifest.sha256, self.provider), 1)
        yield info
        yield GaugeMetricFamily("digitserve_ready_workers", "Workers that take requests.", self.num_ready)
        yield CounterMetricFamily(
            "digitserve_worker_restarts", "Workers started in place of one that ended.", self.num_restarts
        )


def serve(settings: Settings, out: TextIO = sys.stdout) -> int:
    """Serve until a signal says stop.

    Args:
        settings: as the operator gave them.
        out: where the banner goes.

    Returns:
        The exit code: 0 after a drain in which everything admitted was answered.

    Raises:
        RefusalToStart: something asked for cannot be had; the message says what, and what would do.
    """
    bundle = read_bundle(find_bundle(settings.models, settings.model, settings.model_version))
    with reserve(settings.host, settings.grpc_port, "--grpc-port") as holder, listen(settings) as listener:
        settled = replace(
            settings.settled(device.settle(settings), cpu_budget()),
            grpc_port=holder.getsockname()[1],
            http_port=listener.getsockname()[1],
            model_version=bundle.manifest.version,
        )
        return asyncio.run(_supervise(settled, bundle, holder, listener, out))


async def _supervise(
    settings: Settings, bundle: Bundle, holder: socket.socket, listener: socket.socket, out: TextIO
) -> int:
    return await Supervisor(settings, bundle.manifest, holder, listener).run(out)


def reserve(host: str, port: int, flag: str) -> socket.socket:
    """Bind a port so that workers, and nobody else, can listen on it with SO_REUSEPORT.

    Raises:
        SettingsError: the address cannot be bound, most often because the port is in use.
    """
    # A plain bind first: with SO_REUSEPORT, a second service on the same port would succeed in silence.
    with _bind(host, port, flag, reuse_port=False) as probe:
        port = probe.getsockname()[1]
    return _bind(host, port, flag, reuse_port=True)


def listen(settings: Settings) -> socket.socket:
    """Listen on the HTTP port.

    Raises:
        SettingsError: the address cannot be bound.
    """
    listener = _bind(settings.host, settings.http_port, "--http-port", reuse_port=False)
    listener.listen(128)
    return listener


def _bind(host: str, port: int, flag: str, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SettingsError(
            f"--host: got '{host}', which is no address of this machine ({error.strerror}); "
            "expected one such as 127.0.0.1, ::1, or 0.0.0.0"
        ) from None
    bound = socket.socket(family, kind, protocol)
    # Closed connections of a service that just ended must not keep the next one from starting. The holder goes without
    # SO_REUSEADDR: two sockets that both have it and do not listen would share the port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if reuse_port else socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise SettingsError(f"cannot use port {port} on {host}: {error.strerror}; "
                            f"stop what uses it, or choose another with {flag}") from None  # fmt: skip
    return bound
