"""A chaos run: starts the service, runs the episodes of the plan, checks each, and returns what was found."""

import contextlib
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from digitserve.client import Client
from digitserve.protocol.names import OPEN_INFERENCE_SERVICE, SERVICE, Code
from digitserve.supervision.activation import activate
from support.chaos import checker, plan
from support.chaos.checker import Counts, Episode, Violation
from support.chaos.faults import ACTIONS, CONDITIONS, FAULTS, NUM_WORKERS, STALL_S, Site
from support.chaos.history import FaultWindow, History
from support.chaos.images import Images
from support.chaos.library_traffic import AsyncCalls, LibraryCalls
from support.chaos.models import NAME, write_models
from support.chaos.oracle import Oracle
from support.chaos.state import MAX_WORKER_BYTES, LogPipe, process_state
from support.chaos.traffic import TIMEOUT_S, BlockingCalls, BlockingStreams, Driver, Pages, Traffic
from support.chaos.wire_traffic import WireCalls
from support.serving import PATIENCE_S, Service, run_service, wait_until

MAX_CONNECTION_AGE_S = 20.0
"""``--max-connection-age-s`` of the service: connections end by age several times in a run."""

FIRST_VERSION = 4
BETWEEN_S = 1.5
"""Time with traffic before and after each action."""

SETTINGS = (
    "--workers", str(NUM_WORKERS), "--stall-s", str(STALL_S), "--lame-duck-s", "0.3", "--grace-s", "10",
    "--max-connection-age-s", str(MAX_CONNECTION_AGE_S),
)  # fmt: skip

_NAMES = {code.label: code.name for code in Code}


@dataclass
class FaultFigures:
    """What is known of a kind of fault.

    Attributes:
        count: how often it was injected.
        num_requests: requests in the episodes with it.
        explained: failures that it explains, by client and code.
        recovery_s: seconds until all workers were ready.
    """

    count: int = 0
    num_requests: int = 0
    explained: Counter[tuple[str, str]] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)


@dataclass
class Findings:
    """The result of a run.

    Attributes:
        seed: of the plan.
        seconds: of traffic.
        num_episodes: that were checked.
        outcomes: by kind and code.
        by_client: by client and code.
        faults: by name.
        num_images: images that were answered and compared.
        num_inputs: RPCs that the service counted, those of floods among them, and requests that its transport refused.
        num_frames: of floods.
        rates: requests per second of each episode without a fault.
        num_restarts: workers that were replaced.
        peak_bytes: largest memory of a worker.
        num_cpus: of the machine.
        violations: of promises.
    """

    seed: int
    seconds: float = 0.0
    num_episodes: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_client: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[str, FaultFigures] = field(default_factory=lambda: defaultdict(FaultFigures))
    num_images: int = 0
    num_inputs: int = 0
    num_frames: int = 0
    rates: list[float] = field(default_factory=list)
    num_restarts: int = 0
    peak_bytes: int = 0
    num_cpus: int = field(default_factory=lambda: os.cpu_count() or 1)
    violations: list[Violation] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        """Requests in the history."""
        return sum(counts.total() for counts in self.outcomes.values())


class ChaosRun:
    """The state of a run; used by one thread."""

    def __init__(self, seed: int, folder: Path) -> None:
        """Prepare a run that keeps its files in ``folder``."""
        self._models = folder / "models"
        self._folder = folder
        self._seed = seed
        self._images = Images(seed)
        self._oracle = Oracle(self._images, write_models(self._models))
        self.findings = Findings(seed)

    def run(self, seconds: float) -> Findings:
        """Run episodes for about this time, but each fault at least once."""
        log = LogPipe(self._folder / "log")
        activate(self._models, NAME, FIRST_VERSION)
        with contextlib.ExitStack() as stack:
            stack.callback(log.end)
            first = stack.enter_context(run_service(self._models, log.path, *SETTINGS))
            site = Site(self._models, first, log, str(FIRST_VERSION))
            try:
                self._run_all(site, time.monotonic() + seconds, stack)
            except (AssertionError, OSError) as error:
                # Nothing more can be checked.
                self._add("recovery", [f"the service does not answer: {error}"])
        self._add("log", log.faults())
        if self.findings.violations:
            sys.stdout.writelines(f"{line}\n" for line in log.lines if '"digitserve.requests"' not in line)
        self.findings.peak_bytes, self.findings.num_frames = site.peak_bytes, site.num_frames
        return self.findings

    def _run_all(self, site: Site, ends: float, stack: contextlib.ExitStack) -> None:
        """Run all episodes; replace the service by one on a full disk, and stop that at the end."""
        with self._drivers(site) as drivers:
            for number, episode in enumerate(plan.episodes(self._seed)):
                if number >= plan.NUM_FIRST and time.monotonic() > ends:
                    break
                self._run_episode(site, drivers, episode)
        self._check_settled(site)
        self.findings.num_restarts += site.num_restarts
        with self._drivers(site) as drivers:
            second = self._replace_killed_supervisor(site, drivers, stack)
            for episode in plan.disk_episodes(self._seed):
                self._run_episode(site, drivers, episode, "full disk")
        self._check_settled(site)
        self.findings.num_restarts += site.num_restarts
        with self._drivers(site) as drivers:
            self._stop_under_load(site, drivers)
        self._check_end(second)

    def _add(self, promise: str, texts: list[str]) -> None:
        for text in texts:
            sys.stdout.write(f"  VIOLATION of '{promise}': {text}\n")
            self.findings.violations.append(Violation(promise, text))

    @contextlib.contextmanager
    def _drivers(self, site: Site) -> Iterator[list[Driver]]:
        """Open all clients, and close them at the end of the ``with`` block."""
        service = site.service
        client = Client(service.grpc_address, num_connections=4, timeout_s=TIMEOUT_S)
        drivers: list[Driver] = [
            BlockingCalls(service, retries=False), BlockingCalls(service, retries=False),
            BlockingCalls(service, retries=True), BlockingCalls(service, retries=True),
            BlockingStreams(service), BlockingStreams(service),
            LibraryCalls(client), LibraryCalls(client), LibraryCalls(client),
            AsyncCalls(service, 2), WireCalls(service), WireCalls(service), WireCalls(service), Pages(service),
        ]  # fmt: skip
        try:
            yield drivers
        finally:
            for driver in drivers:
                driver.close()

    @contextlib.contextmanager
    def _traffic(self, drivers: list[Driver], seed: int) -> Iterator[Traffic]:
        """Run all traffic during the ``with`` block, and wait for the end of every request."""
        traffic = Traffic(History(), self._images)
        threads = [
            threading.Thread(
                target=driver.run,
                args=(traffic, random.Random(f"{seed} {number}")),
                name=type(driver).__name__,
                daemon=True,
            )
            for number, driver in enumerate(drivers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield traffic
        finally:
            traffic.stopping.set()
            ends = time.monotonic() + PATIENCE_S
            for thread in threads:
                thread.join(max(0.0, ends - time.monotonic()))
            self._add("one outcome", [f"{thread.name} waits for ever" for thread in threads if thread.is_alive()])

    def _run_episode(self, site: Site, drivers: list[Driver], episode: plan.EpisodePlan, *conditions: str) -> None:
        """Run one episode of the plan, and check it."""
        rng = random.Random(episode.seed)
        start_s = time.monotonic()
        before = self._settle_counts(site)
        with self._traffic(drivers, episode.seed) as traffic:
            try:
                with contextlib.ExitStack() as stack:
                    time.sleep(BETWEEN_S)
                    if episode.condition:
                        stack.enter_context(CONDITIONS[episode.condition](site, episode.seed))
                    for action in episode.actions:
                        ACTIONS[action](site, rng)
                        time.sleep(BETWEEN_S)
                time.sleep(BETWEEN_S)
            except AssertionError as error:
                self._add("recovery", [str(error)])
        site.windows += [FaultWindow(name, start_s, time.monotonic()) for name in conditions]
        counts = self._settle_counts(site).since(before)
        self._check(site, traffic, start_s, counts, " + ".join((*conditions, episode.title)))
        self._check_service(site)

    def _check(self, site: Site, traffic: Traffic, start_s: float, counts: Counts | None, title: str) -> None:
        requests, windows, findings = traffic.history.requests, site.windows, self.findings
        seconds = max(request.end_s for request in requests) - start_s
        found = list(checker.check(Episode(requests, windows, site.versions, counts), self._oracle, FAULTS))
        codes: Counter[str] = Counter()
        for name in {window.name for window in windows}:
            findings.faults[name].count += sum(window.name == name for window in windows)
            findings.faults[name].num_requests += len(requests)
            findings.faults[name].recovery_s += site.recovery_s.pop(name, [])
        for request in requests:
            code = request.outcome.code if request.outcome else "none"
            codes[code] += 1
            findings.outcomes[request.kind][code] += 1
            findings.by_client[request.client][code] += 1
            findings.num_images += len(request.images) * (code == checker.OK)
            if code not in checker.KINDS[request.kind].codes:
                for name in checker.explanations(request, windows, FAULTS)[:1]:
                    findings.faults[name].explained[request.client, code] += 1
        findings.num_inputs += sum(counts.started.values()) + counts.refused if counts else len(requests)
        findings.num_episodes += 1
        findings.seconds += seconds
        if not windows:
            findings.rates.append(len(requests) / seconds)
        sys.stdout.write(f"{title}: {len(requests)} requests in {seconds:.1f} s: {dict(codes.most_common())}\n")
        for violation in found:
            self._add(violation.promise, [violation.text])
        if found:
            sys.stdout.write(f"  faults {windows}, connections closed {counts.closed if counts else None}\n")
        sys.stdout.flush()
        site.windows = []

    def _settle_counts(self, site: Site) -> Counts:
        """Wait until all started RPCs are handled and none has started since the last look; return the counts.

        The service may still read what a flood has sent, and the metrics of several workers are not read at one moment.
        """
        looks = [read_counts(site.service)]

        def settled() -> bool:
            looks.append(read_counts(site.service))
            return _all_handled(looks[-1]) and looks[-1].started == looks[-2].started

        with contextlib.suppress(AssertionError):
            wait_until(settled, "all started RPCs are handled")
        return looks[-1]

    def _check_service(self, site: Site) -> None:
        """Check the state of the service between two episodes."""
        service = site.service
        try:
            wait_until(site.is_ready, "all workers are ready")
            wait_until(lambda: not service.total("digitserve_pending_images"), "no image waits")
            wait_until(lambda: service.get("/readyz")[0] == 200, "/readyz is 200")
            with Client(service.grpc_address, num_connections=NUM_WORKERS) as client:
                wait_until(client.healthy, "health is SERVING")
        except AssertionError as error:
            self._add("recovery", [str(error)])
        restarts = int(service.total("digitserve_worker_restarts_total"))
        if restarts != site.num_restarts:
            self._add("restarts", [f"{restarts} restarts, {site.num_restarts} injected"])
            site.num_restarts = restarts
        for pid in service.workers():
            state = process_state(pid)
            site.read_peak(state)
            if state.peak_bytes > MAX_WORKER_BYTES:
                self._add("memory", [f"worker {pid} had {state.peak_bytes / 1e6:.0f} MB"])

    def _check_settled(self, site: Site) -> None:
        """Check that nothing is left of all clients, after they have closed their connections."""

        def excess() -> list[str]:
            found = [
                f"worker {pid}: {text}"
                for pid in site.service.workers()
                for text in process_state(pid).excess(site.idle_workers[0])
            ]
            supervisor = process_state(site.service.process.pid)
            # After a reload the files of the first version stay open.
            left = supervisor.excess(site.idle_supervisor, num_descriptors=1)
            return found + [f"supervisor: {text}" for text in left]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not excess(), "all processes are idle")
        left = excess()
        self._add("memory", [text for text in left if "memory:" in text])
        self._add("resources", [text for text in left if "memory:" not in text])

    def _replace_killed_supervisor(self, site: Site, drivers: list[Driver], stack: contextlib.ExitStack) -> Service:
        """Kill the supervisor under load, and start a service with a full disk for its log on the same ports."""
        start_s = time.monotonic()
        old = site.service
        ports = [address.rpartition(":")[2] for address in (old.grpc_address, old.http_url)]
        with self._traffic(drivers, self._seed) as traffic:
            time.sleep(BETWEEN_S)
            fault_s = time.monotonic()
            old.process.kill()
            old.process.wait()
            second = stack.enter_context(
                run_service(
                    self._models, Path("/dev/full"), *SETTINGS, "--grpc-port", ports[0], "--http-port", ports[1]
                )
            )
            site.use(second, None)
            site.recovery_s["killed supervisor"].append(time.monotonic() - fault_s)
            ready_s = time.monotonic()
            # A channel that was refused connects again after a backoff of some seconds.
            wait_until(
                lambda: _answered_since(traffic, ready_s) == set(checker.CLIENTS), "all clients have answers again"
            )
            site.note("killed supervisor", fault_s)
            time.sleep(BETWEEN_S)
        self._check(site, traffic, start_s, None, "killed supervisor")
        return second

    def _stop_under_load(self, site: Site, drivers: list[Driver]) -> None:
        """Stop the service under load."""
        start_s = time.monotonic()
        with self._traffic(drivers, self._seed + 1) as traffic:
            time.sleep(BETWEEN_S)
            fault_s = time.monotonic()
            exit_code = site.service.stop()
            site.note("stop", fault_s)
            self._add("end", [f"exit code {exit_code}"] if exit_code else [])
            time.sleep(BETWEEN_S)
            traffic.stopping.set()
            site.windows[-1] = FaultWindow("stop", fault_s, float("inf"))
            for driver in drivers:
                # The client library waits for a service that has answered before.
                if isinstance(driver, LibraryCalls | AsyncCalls):
                    driver.abort()
        self._check(site, traffic, start_s, None, "stop")

    def _check_end(self, service: Service) -> None:
        for address in (service.grpc_address, service.http_url):
            port = int(address.rpartition(":")[2])
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError as error:
                self._add("end", [f"port {port} is in use: {error}"])


def _answered_since(traffic: Traffic, start_s: float) -> set[str]:
    """Return the clients that sent a request after this time and got an answer."""
    return {
        request.client
        for request in list(traffic.history.requests)
        if request.start_s > start_s and request.outcome and request.outcome.code == checker.OK
    }


def read_counts(service: Service) -> Counts:
    """Read the counters of a service."""
    metrics = service.metrics()
    started: Counter[str] = Counter()
    handled: Counter[tuple[str, str]] = Counter()
    for labels, value in metrics["grpc_server_started_total"].items():
        started[_method(dict(labels))] += int(value)
    for labels, value in metrics["grpc_server_handled_total"].items():
        named = dict(labels)
        handled[_method(named), _NAMES[named["grpc_code"]]] += int(value)
    refused = int(sum(metrics["digitserve_streams_refused_total"].values()))
    closed: Counter[str] = Counter()
    for labels, value in metrics["digitserve_connections_closed_total"].items():
        closed[dict(labels)["reason"]] += int(value)
    num_images = int(sum(metrics["digitserve_images_total"].values()))
    return Counts(started, handled, num_images, refused, closed)


def _method(labels: dict[str, str]) -> str:
    name, service = labels["grpc_method"], labels["grpc_service"]
    return name if service in {SERVICE, OPEN_INFERENCE_SERVICE} else f"{service}/{name}"


def _all_handled(counts: Counts) -> bool:
    return sum(counts.started.values()) == sum(counts.handled.values())


def run_chaos(seconds: float, seed: int) -> Findings:
    """Run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return ChaosRun(seed, Path(folder)).run(seconds)
