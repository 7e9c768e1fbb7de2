"""Worker slots and the supervisor with scripted worker processes: every failure is reported, and nothing is left behind."""

import asyncio
import errno
import os
import pkgutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digitserve.errors import StartupError
from digitserve.file_watch import FileWatch
from digitserve.inference.active_file import write_active
from digitserve.settings import Settings
from digitserve.supervision import ports, supervisor, worker_process
from digitserve.supervision.http import HttpServer
from digitserve.supervision.slots import WorkerSlot
from digitserve.supervision.supervisor import EXIT_FAULT, EXIT_INCOMPLETE
from digitserve.supervision.worker_process import WorkerPlan
from digitserve.telemetry.collector import ServiceCollector
from support.bundles import LABELS
from support.child_modules import child_processes, open_descriptors
from support.log_lines import capture_logs
from support.scripted_workers import Script, echo_bundle


class Recorder:
    """Records the events of a slot, and stops the slot when an event occurs for the given time."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ready: list[bool] = []
        self.slot: WorkerSlot
        self.drain_after: tuple[str, int] = ("", 0)

    def _record(self, event: str) -> None:
        self.events.append(event)
        self.ready.append(self.slot.is_ready)
        kind, times = self.drain_after
        if event == kind and self.events.count(event) == times:
            self.slot.drain()

    def worker_started(self) -> None:
        """Not recorded: each worker starts once."""

    def worker_ready(self, provider: str) -> None:
        self._record(f"ready {provider}")

    def worker_draining(self) -> None:
        self._record("draining")

    def worker_restarting(self) -> None:
        self._record("restarting")

    def drain_failed(self) -> None:
        self._record("drain failed")

    def requests_unanswered(self, num_requests: int) -> None:
        self._record(f"{num_requests} unanswered")


def run_slot(drain_after: tuple[str, int] = ("", 0), listener: socket.socket | None = None, **changes: Any) -> Recorder:
    """Run a slot until it ends without ``drain``, or until it has drained after the n-th event of a kind."""
    recorder = Recorder()
    recorder.drain_after = drain_after
    run_recorded(recorder, listener, **changes)
    return recorder


def run_recorded(recorder: Recorder, listener: socket.socket | None = None, **changes: Any) -> None:
    """Run a slot that reports to a recorder, until it ends."""
    bundle = echo_bundle()

    async def run() -> None:
        collector = ServiceCollector(LABELS, list)
        recorder.slot = WorkerSlot(WorkerPlan(0, Settings(**changes), 1, listener, None, collector), bundle, recorder)
        await recorder.slot.run()

    asyncio.run(run())


READY = "ready Scripted"


def test_a_worker_becomes_ready_and_drains(script: Script) -> None:
    """The ready event has the provider of the worker; a worker that drains with exit code 0 causes no other event."""
    script("ready()\nwait_for_drain()")
    recorder = run_slot(drain_after=(READY, 1))
    assert recorder.events == [READY]
    assert not recorder.slot.is_ready


def test_the_worker_gets_settings_memory_and_threads(script: Script) -> None:
    """The first message has the settings, the descriptor of the metrics' memory, which is open, and the threads."""
    script("""
import os
ok = order["settings"]["grpc_port"] == 123 and order["num_threads"] == 1 and os.fstat(order["block_fd"]).st_size
if ok:
    ready()
wait_for_drain()
""")
    assert run_slot(drain_after=(READY, 1), grpc_port=123).events == [READY]


def test_each_worker_inherits_the_slots_socket(script: Script) -> None:
    """Each worker of a slot accepts on the same listening socket; a connection waits while the worker is replaced."""
    script("""
import socket
listener = socket.socket(fileno=order["listener_fd"])
listener.accept()[0].send(b"%d" % number)
ready()
if number == 2:
    wait_for_drain()
""")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as first,
        socket.create_connection(listener.getsockname()) as second,
    ):
        assert run_slot((READY, 2), listener).events == [READY, "restarting", READY]
        assert (first.recv(1), second.recv(1)) == (b"1", b"2")


def test_a_worker_that_drains_by_itself_is_replaced(script: Script) -> None:
    """The slot is not ready from the event on, so that new connections go to other workers; the next worker is ready."""
    script("ready()\nif number == 1: channel.send({'event': 'draining'})\nelse: wait_for_drain()")
    recorder = run_slot(drain_after=(READY, 2))
    assert recorder.events == [READY, "draining", "restarting", READY]
    assert recorder.ready == [True, False, False, True]


def test_only_failures_delay_the_next_worker(script: Script) -> None:
    """A worker that drained by itself is replaced at once, each time; one that failed while it drained is a failure."""
    script("""
ready()
if number > 5:
    wait_for_drain()
channel.send({"event": "draining"})
sys.exit(number > 3)
""")
    with capture_logs() as lines:
        run_slot(drain_after=(READY, 6))
    delays = [line["delay_s"] for line in lines if line["event"] == "starting another worker"]
    assert delays == [0.0, 0.0, 0.0, 0.0, 0.001]
    assert [line["exit_code"] for line in lines if line["event"] == "worker ended unexpectedly"] == [1, 1]


def test_output_of_a_worker_is_no_message(script: Script) -> None:
    """A worker may print anything at any time."""
    script("print('hello', flush=True)\nready()\nprint('{}', flush=True)\nwait_for_drain()")
    assert run_slot(drain_after=(READY, 1)).events == [READY]


def test_a_worker_that_ends_is_replaced(script: Script) -> None:
    """An unexpected end is reported before the next worker starts."""
    script("ready()\nif number == 3: wait_for_drain()")
    recorder = run_slot(drain_after=(READY, 3))
    assert recorder.events == [READY, "restarting", READY, "restarting", READY]


def test_a_refusal_of_the_first_worker_ends_the_slot(script: Script) -> None:
    """Its reason is the message of the error."""
    script("channel.send({'event': 'refused', 'message': 'check failed'})\nsys.exit(3)")
    with pytest.raises(StartupError, match="check failed"):
        run_slot()


def test_a_first_worker_that_crashes_ends_the_slot(script: Script) -> None:
    """A worker that ends before it is ready, without a reason, is a refusal to start with its exit code."""
    script("os._exit(9)")
    with pytest.raises(StartupError, match="ended with exit code 9 before it was ready"):
        run_slot()


def test_a_first_worker_that_hangs_ends_the_slot(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not become ready in time is killed; that is a refusal to start."""
    monkeypatch.setattr(worker_process, "START_LIMIT_S", 0.01)
    script("time.sleep(600)")
    with pytest.raises(StartupError, match=r"did not become ready within 0\.01 s"):
        run_slot()


def test_a_refusal_of_a_later_worker_is_retried(script: Script) -> None:
    """The cause may go away: the reason is shown until a worker is ready again."""
    script("""
if number == 2:
    channel.send({"event": "refused", "message": "bundle damaged"})
    sys.exit(3)
ready()
if number == 3:
    wait_for_drain()
""")
    with capture_logs() as lines:
        recorder = run_slot(drain_after=(READY, 2))
    assert recorder.events == [READY, "restarting", "restarting", READY]
    assert [line["refusal"] for line in lines if line["event"] == "worker ended unexpectedly"] == [
        None,
        "bundle damaged",
    ]
    assert recorder.slot.refusal is None


def test_a_worker_that_fails_while_it_drains_is_reported(script: Script) -> None:
    """An exit code other than 0 after ``drain`` means that answers may be missing."""
    script("ready()\nwait_for_drain()\nsys.exit(1)")
    assert run_slot(drain_after=(READY, 1)).events == [READY, "drain failed"]


LACKS = [
    ("digitserve.child_process.socket.socketpair", OSError(errno.EMFILE, "Too many open files")),
    ("digitserve.child_process.os.pidfd_open", OSError(errno.EMFILE, "Too many open files")),
    ("digitserve.child_process.subprocess.Popen", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
    ("digitserve.child_process.asyncio.open_unix_connection", OSError(errno.ENOMEM, "Cannot allocate memory")),
    ("digitserve.telemetry.block.os.memfd_create", OSError(errno.EMFILE, "Too many open files")),
    ("digitserve.telemetry.block.mmap.mmap", MemoryError()),
    ("digitserve.child_process._encode", RuntimeError("a fault")),
]


@pytest.mark.parametrize(("function", "error"), LACKS)
def test_a_worker_is_replaced_whatever_the_supervisor_lacks(
    script: Script, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    """If the supervisor has no descriptor, memory or process for the next worker, or has an internal fault, it tries again
    until it succeeds. Until then it reports the reason, and no process or descriptor is left open.
    """
    script("ready()\nif number > 1: wait_for_drain()")
    recorder = Recorder()
    recorder.drain_after = (READY, 2)
    refusals: list[str | None] = []
    owner, _, name = function.rpartition(".")
    original = getattr(pkgutil.resolve_name(owner), name)

    def lacking(*arguments: Any, **options: Any) -> Any:
        # The first worker runs, then two starts fail.
        if recorder.events.count("restarting") in {1, 2}:
            refusals.append(recorder.slot.refusal)
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(f"{owner}.{name}", lacking)
    processes = child_processes()
    run_recorded(recorder)
    assert recorder.events == [READY, *["restarting"] * 3, READY]
    assert refusals[0] is None
    assert str(error) in str(refusals[-1]) or "internal fault" in str(refusals[-1])
    assert recorder.slot.refusal is None
    assert child_processes() == processes


def test_a_first_worker_that_the_system_cannot_start_ends_the_slot(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system has no resources for the first worker, the service does not start, and reports the reason."""
    script("ready()")

    def lacking(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("digitserve.telemetry.block.os.memfd_create", lacking)
    with pytest.raises(StartupError, match="cannot start a worker: .*Too many open files"):
        run_slot()


def failure_of_slot() -> list[type[Exception]]:
    """Run a slot that fails, and return the types of its exceptions."""
    try:
        run_slot()
    except ExceptionGroup as failures:
        # json's and unicode's errors are subclasses.
        return [ValueError if isinstance(error, ValueError) else type(error) for error in failures.exceptions]
    return []


@pytest.mark.parametrize(
    "nonsense",
    [
        "channel._socket.sendall(b'no JSON\\n')",
        "channel.send(['ready'])",
        "channel.send({'event': 'ready'})",
        "channel.send({'event': 'unknown'})",
    ],
)
def test_a_worker_that_sends_nonsense_is_an_error(script: Script, nonsense: str) -> None:
    """The slot fails with the error, ends the worker and closes all descriptors: it does not wait for a valid message."""
    script(f"{nonsense}\ntime.sleep(600)")
    descriptors, processes = open_descriptors(), child_processes()
    assert failure_of_slot() == [ValueError]
    assert open_descriptors() <= descriptors
    assert child_processes() <= processes


def test_replaced_workers_leave_no_process_and_no_descriptor(script: Script) -> None:
    """After many restarts as many descriptors are open, and as many children exist, as after one."""
    script("ready()\nif number % 6 == 0: wait_for_drain()")
    run_slot(drain_after=(READY, 6))
    descriptors, processes = open_descriptors(), child_processes()
    recorder = run_slot(drain_after=(READY, 6))
    assert recorder.events.count("restarting") == 5
    assert open_descriptors() <= descriptors
    assert child_processes() <= processes


def serve(models: Path, on_banner: Callable[[], object] = lambda: None, **changes: Any) -> tuple[int, str, list[Any]]:
    """Run the whole service in this process; return exit code, banner and log."""
    banners: list[str] = []

    def print_banner(text: str) -> None:
        banners.append(text)
        on_banner()

    settings = Settings(**{"models": models, "grpc_port": 0, "http_port": 0, "workers": 2, **changes})
    with capture_logs() as lines:
        code = supervisor.serve(settings, print_banner)
    return code, "".join(banners), lines


def test_nonsense_from_a_worker_ends_the_service_with_an_error(models: Path, script: Script) -> None:
    """A slot that fails during the start is logged with its exception; the exit code is that of a fault, and no banner was
    shown.
    """
    script("channel.send({'event': 'unknown'})\nwait_for_drain()")
    code, banner, lines = serve(models)
    assert (code, banner) == (EXIT_FAULT, "")
    failures = [line for line in lines if line["event"] == "a task of the supervisor failed, ending the service"]
    assert failures
    assert all(isinstance(line["exc_info"], ExceptionGroup) for line in failures)


def test_nonsense_after_the_start_replaces_the_worker(script: Script) -> None:
    """A worker that was ready and sends an invalid message is ended and replaced; the exception is logged."""
    script("ready()\nif number == 1: channel.send('nonsense')\nwait_for_drain()")
    with capture_logs() as lines:
        recorder = run_slot(drain_after=(READY, 2), stall_s=1.0)
    assert recorder.events == [READY, "restarting", READY]
    assert "a worker was ended because of an internal fault" in [line["event"] for line in lines]


def test_a_worker_that_crashes_during_the_start_is_a_refusal(models: Path, script: Script) -> None:
    """The service does not show its banner and does not restart the worker for ever."""
    script("os._exit(9)")
    with pytest.raises(StartupError, match="ended with exit code 9 before it was ready"):
        serve(models)


def test_requests_left_at_the_end_of_the_grace_period_are_reported(models: Path, script: Script) -> None:
    """The log has the number of requests that were not answered, and the exit code is not 0."""
    script("ready()\nwait_for_drain()\nchannel.send({'event': 'unanswered', 'num_requests': number + 2})")
    code, _, lines = serve(models, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert code == EXIT_INCOMPLETE
    (line,) = [line for line in lines if line["event"] == "requests were not answered within the grace period"]
    assert line["num_requests"] == 7


def test_new_connections_avoid_a_worker_that_has_crashed(
    models: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a slot waits for its next worker, new connections go to the others; then to all again."""
    started = tmp_path / "started"
    script(f"""
ready()
if number == 1:
    while not Path({str(started)!r}).exists():
        time.sleep(0.01)
    sys.exit(1)
wait_for_drain()
""")
    accepting: list[int] = []

    def direct(_: object, slots: list[int]) -> None:
        accepting.append(len(slots))
        if accepting == [1, 2, 1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ports.SlotListeners, "direct", direct)
    serve(models, started.touch, transport="native")
    assert accepting[:4] == [1, 2, 1, 2]


def test_the_reason_of_a_delayed_restart_is_shown(script: Script) -> None:
    """While a worker that crashes repeatedly waits for its restart, the status shows the reason."""
    script("ready()\nif number < 3: os._exit(9)\nwait_for_drain()")
    recorder = Recorder()
    recorder.drain_after = (READY, 3)
    refusals: list[str | None] = []
    restarting = recorder.worker_restarting

    def restart() -> None:
        refusals.append(recorder.slot.refusal)
        restarting()

    recorder.worker_restarting = restart  # type: ignore[method-assign]
    run_recorded(recorder)
    # The first restart has no delay.
    assert refusals == [None, "a worker ended with exit code 9; the next one starts after 0.001 s"]
    assert recorder.slot.refusal is None


class ShortLivedSlot:
    """A slot whose first worker dies as soon as it is ready; the second one serves until ``drain``."""

    def __init__(self, *arguments: Any) -> None:
        self._events = arguments[-1]
        self._drain = asyncio.Event()
        self.was_started = True
        self.is_ready = self.was_ready = False
        self.refusal = None
        self.lame_duck = self.drain = self.kill = self._drain.set

    async def run(self) -> None:
        for dies in (True, False):
            self.is_ready = self.was_ready = True
            self._events.worker_ready("Scripted")
            if dies:
                self.is_ready = False
                # The supervisor may handle the event.
                for _ in range(10):
                    await asyncio.sleep(0)
        await self._drain.wait()


def test_the_banner_waits_for_a_worker_that_serves(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was ready and has died does not count: at the time of the banner a worker is ready."""
    monkeypatch.setattr(supervisor, "WorkerSlot", ShortLivedSlot)
    num_ready: list[int] = []
    run = supervisor.Supervisor.run

    def run_and_count(self: supervisor.Supervisor, print_banner: Callable[[str], None]) -> Any:
        def count(text: str) -> None:
            num_ready.append(self.num_ready)
            print_banner(text)

        return run(self, count)

    monkeypatch.setattr(supervisor.Supervisor, "run", run_and_count)
    code, _, _ = serve(models, lambda: os.kill(os.getpid(), signal.SIGTERM), workers=1)
    assert (code, num_ready) == (0, [1])


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_version_ignores_the_active_file(
    models: Path, script: Script, monkeypatch: pytest.MonkeyPatch, *, fixed: bool
) -> None:
    """With ``--model-version`` nothing watches the active file, and the log says so once. Without it, the file is watched."""
    script("ready()\nwait_for_drain()")
    write_active(models / "digits" / "active", 1)
    started: list[bool] = []

    class Watch(FileWatch):
        def start(self) -> None:
            started.extend(True for _ in self._watched)

    monkeypatch.setattr("digitserve.supervision.supervisor.FileWatch", Watch)
    version = 1 if fixed else None
    code, _, lines = serve(models, lambda: os.kill(os.getpid(), signal.SIGTERM), workers=1, model_version=version)
    ignored = [line for line in lines if line["event"].startswith("the active file is ignored")]
    assert (code, len(ignored), started) == (0, *((1, []) if fixed else (0, [True])))


def test_a_failure_of_the_http_server_ends_the_service(
    models: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of any task of the supervisor is logged and ends the service; it is never only silent."""

    async def fail(*_: object) -> None:
        raise OSError("no HTTP")

    monkeypatch.setattr(HttpServer, "run_on", fail)
    script("ready()\nwait_for_drain()")
    code, _, lines = serve(models)
    assert code == EXIT_FAULT
    assert [str(line["exc_info"]) for line in lines if line["log_level"] == "error"] == ["no HTTP"]
