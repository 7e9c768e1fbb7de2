"""Replacement of workers with scripted worker processes: whatever the new version does, each slot keeps a worker that serves."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from digitserve.settings import Settings
from digitserve.supervision import reload
from digitserve.supervision.reload import Reloader
from digitserve.supervision.slots import WorkerSlot
from digitserve.supervision.worker_process import WorkerPlan
from digitserve.telemetry.collector import ServiceCollector
from support.bundles import LABELS
from support.child_modules import child_processes, open_descriptors
from support.log_lines import capture_logs
from support.scripted_workers import Script, echo_bundle
from support.serving import PATIENCE_S

SERVE = "ready()\nwait_for_drain()\n"
SECOND_NEVER_READY = "if version == 2: wait_for_drain()\nelse:\n    ready()\n    wait_for_drain()"


@pytest.fixture(autouse=True)
def _short_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "PROVE_S", 0.05)
    monkeypatch.setattr(reload, "RETRY_S", 0.001)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After each test as many processes and descriptors exist as before."""
    echo_bundle(1), echo_bundle(2), echo_bundle(3), echo_bundle(1, 2.0, "digits-int8")
    descriptors, processes = open_descriptors(), child_processes()
    yield
    assert open_descriptors() <= descriptors
    assert child_processes() <= processes


class Service:
    """The slots and the reloader of a service; receives the slots' events.

    Attributes:
        least_ready: smallest number of ready slots since all were ready.
        most_workers: largest number of processes at an event.
        failures: events that would change the exit code.
        num_restarts: restarts after an unexpected end.
    """

    def __init__(self, num_slots: int) -> None:
        collector = ServiceCollector(LABELS, list)
        settings = Settings(stall_s=60.0)
        plans = [WorkerPlan(number, settings, 1, None, None, collector) for number in range(num_slots)]
        self.slots = [WorkerSlot(plan, echo_bundle(1), self) for plan in plans]
        self.reloader = Reloader(self.slots, echo_bundle(1))
        self.least_ready = num_slots
        self.most_workers = 0
        self.failures: list[str] = []
        self.num_restarts = 0
        self._started = False

    @property
    def versions(self) -> list[int]:
        """Version of each slot."""
        return [slot.bundle.manifest.version for slot in self.slots]

    @property
    def num_ready(self) -> int:
        return sum(slot.is_ready for slot in self.slots)

    @property
    def num_workers(self) -> int:
        """Number of workers whose end the slots have not handled yet: that comes after the end of the process."""
        return sum(len(slot._workers) for slot in self.slots)

    def _observe(self) -> None:
        if self._started:
            self.least_ready = min(self.least_ready, self.num_ready)
        self.most_workers = max(self.most_workers, len(child_processes()))

    def worker_started(self) -> None:
        self._observe()

    def worker_ready(self, provider: str) -> None:
        self._observe()

    def worker_draining(self) -> None:
        self._observe()

    def worker_restarting(self) -> None:
        self.num_restarts += 1
        self._observe()

    def drain_failed(self) -> None:
        self.failures.append("drain failed")

    def requests_unanswered(self, num_requests: int) -> None:
        self.failures.append(f"{num_requests} unanswered")

    async def run(self, interact: Callable[["Service"], Awaitable[object]]) -> None:
        """Run ``interact`` once all slots are ready; then drain them and wait for their end."""
        slots = [asyncio.create_task(slot.run()) for slot in self.slots]
        task = asyncio.create_task(self.reloader.run())
        async with asyncio.timeout(PATIENCE_S):
            await until(lambda: self.num_ready == len(self.slots))
            self._started = True
            try:
                await interact(self)
            finally:
                self._started = False
                task.cancel()
                for slot in self.slots:
                    slot.drain()
                await asyncio.gather(*slots)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    while not condition():  # noqa: ASYNC110 - processes and slots are observed from outside
        await asyncio.sleep(0.005)


def run(interact: Callable[[Service], Awaitable[object]], num_slots: int = 2) -> Service:
    """Run a service; return it after its end."""

    async def main() -> Service:
        service = Service(num_slots)
        await service.run(interact)
        return service

    return asyncio.run(main())


def test_workers_are_replaced_one_by_one(script: Script) -> None:
    """All slots get the new version; each always has a ready worker, and at most one process more than usual exists."""
    script(SERVE)

    async def interact(service: Service) -> None:
        for version in (2, 1, 3):
            service.reloader.activate(echo_bundle(version))
            await until(lambda version=version: service.reloader.active is echo_bundle(version))
            assert service.versions == [version, version]

    service = run(interact)
    assert (service.least_ready, service.most_workers, service.num_restarts) == (2, 3, 0)
    assert (service.reloader.num_completed, service.reloader.num_failed, service.failures) == (3, 0, [])


FAULTS = {
    "refuses": "channel.send({'event': 'refused', 'message': 'check failed'})\nsys.exit(3)",
    "crashes": "ready()\nos._exit(9)",
    "drains": "ready()\nchannel.send({'event': 'draining'})",
    "sends nonsense": "ready()\nchannel.send('nonsense')\nwait_for_drain()",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_whose_first_worker_fails_is_refused(script: Script, fault: str) -> None:
    """The version is refused with one log line; the old workers continue, and all slots were ready all the time."""
    fails = "\n".join(f"    {line}" for line in FAULTS[fault].splitlines())
    script(f"if version == 2:\n{fails}\nelse:\n    ready()\n    wait_for_drain()")

    async def interact(service: Service) -> None:
        workers = child_processes()
        service.reloader.activate(echo_bundle(2))
        await until(lambda: service.reloader.refusal)
        assert child_processes() == workers

    with capture_logs() as lines:
        service = run(interact)
    assert [line["event"] for line in lines].count("the version that was activated cannot be served") == 1
    assert (service.versions, service.least_ready, service.num_restarts) == ([1, 1], 2, 0)
    assert (service.reloader.num_completed, service.reloader.num_failed, service.failures) == (0, 1, [])


@pytest.mark.parametrize("fault", ["refuses", "crashes"])
def test_a_version_that_fails_later_is_taken_back(script: Script, fault: str) -> None:
    """If a later worker of the new version fails, slots that have the new version already get the old one back."""
    fails = "\n".join(f"    {line}" for line in FAULTS[fault].splitlines())
    script(f"if version == 2 and number > 3:\n{fails}\nready()\nwait_for_drain()")

    async def interact(service: Service) -> None:
        service.reloader.activate(echo_bundle(2))
        await until(lambda: service.reloader.refusal)
        await until(lambda: service.versions == [1, 1] and service.num_ready == service.num_workers == 2)
        await until(lambda: len(child_processes()) == 2)

    service = run(interact)
    assert service.reloader.active is echo_bundle(1)
    assert (service.reloader.num_completed, service.reloader.num_failed, service.failures) == (0, 1, [])


def test_the_last_activation_wins(script: Script) -> None:
    """If another version is activated while a worker of the first one starts, that worker is ended."""
    script(SECOND_NEVER_READY)

    async def interact(service: Service) -> None:
        service.reloader.activate(echo_bundle(2))
        await until(lambda: len(child_processes()) == 3)
        service.reloader.activate(echo_bundle(3))
        await until(lambda: service.reloader.active is echo_bundle(3))

    service = run(interact)
    assert service.versions == [3, 3]
    assert (service.reloader.num_completed, service.reloader.num_failed) == (1, 0)


def test_the_version_that_is_served_ends_a_reload(script: Script) -> None:
    """If the version that is served is activated again during a reload, nothing changes, and nothing has failed."""
    script(SECOND_NEVER_READY)

    async def interact(service: Service) -> None:
        service.reloader.activate(echo_bundle(2))
        await until(lambda: len(child_processes()) == 3)
        service.reloader.activate(echo_bundle(1))
        await until(lambda: len(child_processes()) == 2)

    service = run(interact)
    assert (service.versions, service.num_restarts, service.reloader.num_failed) == ([1, 1], 0, 0)


def test_a_service_that_stops_during_a_reload_ends(script: Script) -> None:
    """Workers that start are ended with the others; nothing counts as a failure."""
    script(SECOND_NEVER_READY)

    async def interact(service: Service) -> None:
        service.reloader.activate(echo_bundle(2))
        await until(lambda: len(child_processes()) == 3)

    assert run(interact).failures == []


def test_a_worker_that_crashes_during_a_reload_is_replaced(script: Script, tmp_path: Path) -> None:
    """While the new version starts, the old worker crashes: another one of the old version starts, and then the new version
    replaces that one.
    """
    crash, go = tmp_path / "crash", tmp_path / "go"
    script(f"""
import select
if version == 2:
    while not Path({str(go)!r}).exists(): time.sleep(0.005)
ready()
while number == 1 and not select.select([channel], [], [], 0.005)[0]:
    if Path({str(crash)!r}).exists(): os._exit(9)
wait_for_drain()
""")

    async def interact(service: Service) -> None:
        service.reloader.activate(echo_bundle(2))
        await until(lambda: len(child_processes()) == 2)
        crash.touch()
        await until(lambda: service.num_restarts == 1 and service.num_ready == 1)
        go.touch()
        await until(lambda: service.reloader.active is echo_bundle(2))

    service = run(interact, num_slots=1)
    assert service.versions == [2]


def test_a_version_is_never_changed(script: Script) -> None:
    """Other files under the number of the version that is served are refused; the same files change nothing."""
    script(SERVE)
    changed = echo_bundle.__wrapped__(1, 5.0)

    async def interact(service: Service) -> None:
        service.reloader.activate(changed)
        assert "has other files" in str(service.reloader.refusal)
        service.reloader.activate(echo_bundle(1))
        assert service.reloader.refusal is None

    service = run(interact, num_slots=1)
    assert (service.reloader.num_completed, service.reloader.num_failed) == (0, 1)


def test_the_same_version_in_another_precision_is_another_bundle(script: Script) -> None:
    """If digits/1 is served and digits-int8/1 is activated, because it was added later, the workers are replaced."""
    script(SERVE)
    int8 = echo_bundle(1, 2.0, "digits-int8")

    async def interact(service: Service) -> None:
        service.reloader.activate(int8)
        await until(lambda: service.reloader.num_completed)

    service = run(interact, num_slots=1)
    assert [str(slot.bundle) for slot in service.slots] == ["digits-int8/1"]
