"""The supervisor: starts, monitors and replaces workers, and shows the state of the service to operators.

One process, one thread, one asyncio event loop. It holds the gRPC port (so that it stays reserved while no worker runs),
the listening sockets that native workers inherit, the shared memory of all metrics, and the HTTP endpoints. It passes requests
of the HTTP API on to workers; it never classifies.

    serve ──▶ Supervisor ──▶ one slot per worker (``slots``)
                         ──▶ replacement of the workers when another version is activated (``reload``)
                         ──▶ /metrics, /livez, /readyz, the page and the HTTP API (``http_port``), loaded while the workers start

    SIGTERM ──▶ not ready ──▶ lame duck time ends, HTTP API accepts no more ──▶ its open requests are received and answered
            ──▶ workers drain, each closes the last copy of its socket ──▶ all workers ended ──▶ HTTP closes ──▶ exit

A slot replaces its worker whatever fails. If another task of the supervisor ends, or a slot's, the service drains and ends with
``EXIT_FAULT``: the platform then starts it again with a clean state, which is safer than to continue with half of it.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric

from digitserve.errors import SettingsError, StartupError
from digitserve.file_watch import FileWatch
from digitserve.inference.bundle import NAME_RULE, is_name
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.inference.selection import Selection
from digitserve.log import get_logger
from digitserve.passed_sockets import Passing, Secret
from digitserve.settings import Settings, endpoint
from digitserve.supervision import descriptors, device
from digitserve.supervision.cpu_budget import cpu_budget
from digitserve.supervision.http_access import HttpAccess
from digitserve.supervision.ports import SlotListeners, listen, reserve
from digitserve.supervision.reload import ActiveFileWatcher, Reloader
from digitserve.supervision.resident_memory import resident_bytes
from digitserve.supervision.slots import InlineSlot, WorkerSlot
from digitserve.supervision.vnni import int8_speed
from digitserve.supervision.worker_process import WorkerPlan
from digitserve.telemetry.collector import ServiceCollector
from digitserve.telemetry.supervisor_metrics import metric

if TYPE_CHECKING:
    from digitserve.supervision.http_port import HttpPort
    from digitserve.web.api import Api

KILL_MARGIN_S = 2.0
"""Seconds after the grace period before a worker that still runs is killed."""

HTTP_SHARE = 0.75
"""Part of the grace period in which accepted requests of the HTTP API can be received and decoded. By default 5 s are left, the longest time
for the answer of a worker."""

HTTP_MARGIN_S = 1.0
"""Time in which the supervisor passes on the last answers, after the workers have ended."""

EXIT_INCOMPLETE = 1
"""Exit code if requests may not have been answered."""

EXIT_FAULT = 70
"""Exit code after an internal fault; as EX_SOFTWARE of sysexits.h, and as a worker that crashes."""

_log = get_logger("digitserve.supervision.supervisor")


def serve(settings: Settings, print_banner: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: as the operator gave them.
        print_banner: called once each slot has had a ready worker, and while at least one is ready.

    Returns:
        The exit code: 0 if all admitted requests were answered, ``EXIT_INCOMPLETE`` if not, ``EXIT_FAULT`` after an
        internal fault.

    Raises:
        StartupError: a setting cannot be used; the message states which one, and which values are accepted.
    """
    if settings.served_name is not None and not is_name(settings.served_name):
        raise SettingsError(f"--served-name: got {settings.served_name!r}; expected {NAME_RULE}")
    settings = replace(settings, device=device.resolve(settings))
    selection = Selection(settings, int8_speed(settings))
    bundle = selection.served()
    shadow = selection.shadow()
    access = HttpAccess(settings)  # checks certificate and tokens
    num_descriptors = descriptors.raise_limit(settings.connection_limit)
    with (
        reserve(settings.host, settings.grpc_port, "--grpc-port") as grpc_socket,
        listen(settings.host, settings.http_port, "--http-port") as http_socket,
    ):
        resolved = replace(
            settings.resolve(settings.device, cpu_budget()),
            served_name=selection.name_for_clients,
            grpc_port=grpc_socket.getsockname()[1],
            http_port=http_socket.getsockname()[1],
        )
        # gRPC core cannot listen on a socket that another process has opened.
        native = resolved.transport == "native"
        with SlotListeners(grpc_socket, resolved.workers or 1) if native else contextlib.nullcontext() as listeners:
            left = descriptors.num_left(num_descriptors, resolved.workers or 1)
            # uvicorn needs up to two per connection, while it closes those beyond the limit.
            max_http_connections = max(1, min(settings.max_http_connections, left // 2))
            supervisor = Supervisor(
                resolved, selection, bundle, shadow, listeners, http_socket, max_http_connections, access
            )
            return asyncio.run(supervisor.run(print_banner))


class Supervisor:
    """The service as an operator sees it. ``serve`` makes one and runs it once.

    It receives the events of its slots (``SlotEvents``).
    """

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        bundle: SealedBundle,
        shadow: SealedBundle | None,
        listeners: SlotListeners | None,
        http_socket: socket.socket,
        max_http_connections: int,
        access: HttpAccess,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            settings: resolved: with device, workers and ports decided. Port ``grpc_port`` is reserved.
            selection: reads the versions that are activated later.
            bundle: to serve at first.
            shadow: of ``--shadow``.
            listeners: one per slot; None if workers bind the port. Closed as soon as the service drains.
            http_socket: listens on the HTTP port.
            max_http_connections: most open connections of the HTTP port.
            access: who may read what on the HTTP port, and its TLS.
        """
        self.settings = settings
        self._selection = selection
        self._provider = ""
        self._num_restarts = 0
        self._refusal: StartupError | None = None
        self._exit_code = 0
        self._num_unanswered = 0
        self._signalled = False
        self._worker_changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._listeners = listeners
        self._http_socket = http_socket
        self._max_http_connections = max_http_connections
        self._http: HttpPort | None = None
        self._shadow = shadow
        self._collector = collector = ServiceCollector(bundle.manifest.labels, self._service_metrics)
        self._access = access
        self._cpu_budget = cpu_budget()
        num_workers = settings.workers or 1
        self._num_threads = num_threads = max(1, int(self._cpu_budget) // num_workers)
        self._connectors = connectors = [Passing() if listeners else Secret() for _ in range(num_workers)]
        plans = [
            WorkerPlan(
                number,
                settings,
                num_threads,
                listeners[number] if listeners else None,
                shadow,
                collector,
                access.last_valid,
                connectors[number],
            )
            for number in range(num_workers)
        ]
        slot_type = WorkerSlot if settings.workers else InlineSlot
        self._slots: Sequence[WorkerSlot | InlineSlot] = [slot_type(plan, bundle, self) for plan in plans]
        self._reloader = Reloader(self._slots, bundle)

    @property
    def num_ready(self) -> int:
        """Number of workers that accept requests."""
        return sum(slot.is_ready for slot in self._slots)

    @property
    def ready(self) -> bool:
        """Whether at least one worker accepts requests and the service is not about to stop."""
        return self.num_ready > 0 and not self._stop.is_set()

    def status_line(self) -> str:
        """Return the state of the service as one line of text."""
        state = "draining" if self._stop.is_set() else "ready" if self.ready else "not ready"
        active, target = self._reloader.active, self._reloader.target
        details = {slot.refusal for slot in self._slots if slot.refusal}
        if target is not active:
            details.add(f"replacing the workers by {target}")
        if self._reloader.refusal is not None:
            details.add(f"the version that was activated is refused: {self._reloader.refusal}")
        return (
            f"digitserve {state}: {active} sha256 {active.manifest.sha256[:12]}, "
            f"{self.num_ready} of {len(self._slots)} workers ready"
            + "".join(f"; {detail}" for detail in sorted(details))
        )

    async def run(self, print_banner: Callable[[str], None]) -> int:
        """Serve until a signal, and return the exit code.

        Args:
            print_banner: see ``serve``.

        Raises:
            StartupError: the first worker of a slot did not become ready.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle_signal)
        slots = [self._start_task(f"slot {number}", slot.run()) for number, slot in enumerate(self._slots)]
        reload = self._start_task("reload", self._reloader.run())
        watch = FileWatch([self._watcher(loop)])
        tasks = [reload, *slots]
        try:
            await self._wait_until(lambda: all(slot.was_started for slot in self._slots))
            http = self._http = self._new_http_port()
            tasks.append(self._start_task("HTTP server", http.run(self._http_socket)))
            await self._wait_until(lambda: self.num_ready > 0 and all(slot.was_ready for slot in self._slots))
            # As in workers; a full collection would delay all requests of the HTTP port by tens of milliseconds every few seconds.
            gc.freeze()
            gc.enable()
            if not self._stop.is_set():
                print_banner(self._banner())
                watch.start()
            await self._stop.wait()
            reload.cancel()
            if self._refusal is not None:
                raise self._refusal
            await self._drain(http, slots)
        finally:
            self._stop.set()
            reload.cancel()
            watch.stop()
            for slot in self._slots:
                slot.kill()
            self._close_listeners()
            if self._http is not None:
                self._http.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._http is not None:
                await self._http.api.close()
            for connector in self._connectors:
                connector.close()
        if self._shadow is not None:
            self._log_shadow(self._shadow)
        return self._exit_code

    def _watcher(self, loop: asyncio.AbstractEventLoop) -> ActiveFileWatcher | None:
        """Return a watcher of the active file, unless the version is fixed."""
        settings = self.settings
        if settings.model_version is not None:
            if self._selection.active_signature:
                _log.warning("the active file is ignored because --model-version is set", path=str(self._selection.active_path),
                             model_version=settings.model_version)  # fmt: skip
            return None

        def post(callback: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(callback, *arguments)

        reloader = self._reloader
        return ActiveFileWatcher(
            self._selection,
            on_activated=partial(post, reloader.activate), on_refused=partial(post, reloader.refuse), on_removed=partial(post, reloader.keep),
        )  # fmt: skip

    def worker_started(self) -> None:
        """Continue to start, if this was the last slot without a worker."""
        self._worker_changed.set()

    def worker_ready(self, provider: str) -> None:
        """Note the execution provider that the banner and the metrics show."""
        self._provider = provider
        self._direct_connections()
        self._worker_changed.set()

    def worker_draining(self) -> None:
        """Assign new connections to the other workers."""
        self._direct_connections()

    def worker_restarting(self) -> None:
        """Count a restart, and assign new connections to the other workers."""
        self._num_restarts += 1
        self._direct_connections()

    def drain_failed(self) -> None:
        """Note that requests may not have been answered."""
        self._fail(EXIT_INCOMPLETE)

    def requests_unanswered(self, num_requests: int) -> None:
        """Count requests that were not answered within the grace period."""
        self._num_unanswered += num_requests
        self._fail(EXIT_INCOMPLETE)

    def _fail(self, exit_code: int) -> None:
        """Set the exit code, unless a fault has already set a higher one."""
        self._exit_code = max(self._exit_code, exit_code)

    def _start_task(self, name: str, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        """End the service when one of its tasks fails: the exception of a task is silent until the task is awaited."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StartupError):
            self._refusal = self._refusal or error
        elif error is not None or not self._stop.is_set():
            self._fail(EXIT_FAULT)
            _log.error("a task of the supervisor failed, ending the service", task=task.get_name(), exc_info=error)
        self._stop.set()

    def _handle_signal(self) -> None:
        """Start to drain. The second signal ends the service without waiting for answers."""
        if self._signalled:
            self._fail(EXIT_INCOMPLETE)
            _log.warning("second signal to stop: ending without waiting for answers")
            for slot in self._slots:
                slot.kill()
        self._signalled = True
        self._stop.set()

    def _new_http_port(self) -> "HttpPort":
        """Import and build the HTTP port. The workers start meanwhile, and need about as long."""
        from digitserve.supervision.http_port import HttpPort  # noqa: PLC0415 - after the workers have started

        return HttpPort(self.settings, self, self._slots, self._collector, self._access, self._max_http_connections)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true, or until the service stops. It is checked after each event of a worker's start."""
        stop = asyncio.create_task(self._stop.wait())
        while not (stop.done() or condition()):
            self._worker_changed.clear()
            changed = asyncio.create_task(self._worker_changed.wait())
            await asyncio.wait([changed, stop], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        stop.cancel()

    async def _drain(self, http: "HttpPort", slots: Sequence["asyncio.Task[None]"]) -> None:
        _log.info("draining", grace_s=self.settings.grace_s)
        http.drain()
        for slot in self._slots:
            slot.lame_duck()
        # Each worker has the last copy of its socket now: clients are refused as soon as it has closed that.
        self._close_listeners()
        for connector in self._connectors:
            connector.drain()
        workers = self._start_task("drain", self._drain_workers(http.api))
        _, late = await asyncio.wait(slots, timeout=self.settings.grace_s + KILL_MARGIN_S)
        workers.cancel()
        await http.api.wait_until_idle(HTTP_MARGIN_S)
        if http.api.num_open:
            self.requests_unanswered(http.api.num_open)
        if late:
            self._fail(EXIT_INCOMPLETE)
            _log.error("workers did not end within the grace period, killing them", num_workers=len(late))
        elif self._num_unanswered:
            _log.error("requests were not answered within the grace period", num_requests=self._num_unanswered)
        elif not self._exit_code:
            _log.info("drained")

    async def _drain_workers(self, api: "Api") -> None:
        """After the lame duck time, accept no more requests of the HTTP API. Drain the workers once the accepted ones are answered."""
        settings = self.settings
        lame_duck_s = min(settings.lame_duck_s, settings.grace_s)
        await asyncio.sleep(lame_duck_s)
        api.drain()
        await api.wait_until_idle(HTTP_SHARE * settings.grace_s - lame_duck_s)
        for slot in self._slots:
            slot.drain()

    def _log_shadow(self, shadow: SealedBundle) -> None:
        """Log the counts of the shadow version, summed over all workers."""
        totals = {spec.name: rows for spec, rows in self._collector.totals()}
        results = {values[0]: int(cells[0]) for values, cells in totals["digitserve_shadow_images"].items()}
        skipped = totals["digitserve_shadow_skipped_images"][()]
        _log.info("images compared with the shadow version", shadow=str(shadow), compared=sum(results.values()),
                  skipped=int(skipped[0]), **{f"result_{name}": count for name, count in results.items()})  # fmt: skip

    def _direct_connections(self) -> None:
        if self._listeners is not None:
            self._listeners.direct([number for number, slot in enumerate(self._slots) if slot.is_ready])

    def _close_listeners(self) -> None:
        if self._listeners is not None:
            self._listeners.close()

    def _banner(self) -> str:
        settings, active = self.settings, self._reloader.active
        # The command as it was typed, so that it can be copied even if it is not on the PATH.
        program = sys.argv[0] if sys.argv[0].endswith("/digitserve") else "digitserve"
        address = endpoint(settings.host, settings.grpc_port)
        tls = settings.tls_certificate
        access = (
            " --ca CA.pem" * bool(tls)
            + " --client-certificate CERTIFICATE.pem --client-key KEY.pem" * bool(settings.tls_client_ca)
            + " --token-file TOKEN" * bool(settings.token_file)
        )
        lines = {
            "gRPC": address if tls is None else f"{address}  TLS",
            "HTTP": f"{'http' if tls is None else 'https'}://{endpoint(settings.host, settings.http_port)}  (/ to draw a digit, /v1/classify, /metrics, /livez, /readyz)",
            "model": f"{active}  sha256 {active.manifest.sha256[:12]}  {self._provider}{_precision(active)}"
            + (f"  shadow {self._shadow}" if self._shadow else ""),
            "workers": f"{settings.workers} x {self._num_threads} threads, CPU budget {self._cpu_budget:g}",
            "try": f"{program} classify --address {address}{access} FILE.png",
        }
        return "\n".join(["digitserve is ready", *(f"  {name:<8} {text}" for name, text in lines.items())])

    def _service_metrics(self) -> Iterable[Metric]:
        reloader = self._reloader
        manifest = reloader.active.manifest
        served = (manifest.name, str(manifest.version), manifest.sha256, self._provider, manifest.precision)
        yield metric("digitserve_model_info", {served: 1})
        if self._shadow is not None:
            shadow = self._shadow.manifest
            yield metric("digitserve_shadow_info", {(shadow.name, str(shadow.version), shadow.sha256): 1})
        yield metric("digitserve_workers", len(self._slots))
        yield metric("digitserve_ready_workers", self.num_ready)
        yield metric("digitserve_worker_restarts", self._num_restarts)
        pids = [pid for slot in self._slots for pid in slot.pids]
        yield metric(
            "digitserve_resident_memory_bytes",
            {
                ("supervisor",): resident_bytes([os.getpid()]),
                ("workers",): resident_bytes(pids),
                ("decoders",): resident_bytes([] if self._http is None else self._http.api.pids),
            },
        )
        yield from self._access.metrics()
        if self._http is not None:
            yield from self._http.metrics()
        yield metric("digitserve_reloads", {("completed",): reloader.num_completed, ("failed",): reloader.num_failed})


def _precision(bundle: SealedBundle) -> str:
    """Return the part of the banner about the precision."""
    parts = (bundle.manifest.precision, bundle.choice and f"({bundle.choice})")
    return "".join(f"  {part}" for part in parts if part)
