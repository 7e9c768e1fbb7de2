"""Settings for this machine: runs the network in each way that the CPU budget allows, and proposes the best settings.

    serve --tune ──▶ SessionProcesses: N child processes, each with a session ──mean seconds per batch──▶ images/s of all

``cli`` calls ``measure``. The parent measures nothing itself; each child runs ``main``. gRPC adds the same time per request
whatever the settings, so running the network alone is enough to compare them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from digitserve.child_process import Channel, ChannelClosed, Child
from digitserve.errors import StartupError
from digitserve.inference.bundle import parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.inference.selection import Selection
from digitserve.settings import Settings
from digitserve.supervision.vnni import int8_speed
from digitserve.types import IMAGE_SIZE

BATCH_SIZES = {"cpu": (8, 16, 32, 64, 128, 256), "cuda": (64, 256, 1024, 4096)}
"""Values of ``max_batch_size`` to try, by device."""

MEASURED_S = 0.5
"""Seconds to measure each batch size, after one batch to warm up."""

ANSWER_TIMEOUT_S = 120.0
"""Longest wait for a child to open the network, or to measure one batch size."""

MIN_RATE_RATIO = 0.97
"""A smaller batch is preferred if its rate is at least this share of the best one: it is answered sooner."""


@dataclass(frozen=True)
class Trial:
    """One combination of settings, measured on this machine.

    Attributes:
        workers: processes that ran at the same time.
        threads: onnxruntime threads of each process.
        max_batch_size: images in a batch.
        images_per_s: of all processes together.
        batch_s: mean seconds per batch.
    """

    workers: int
    threads: int
    max_batch_size: int
    images_per_s: float
    batch_s: float


def layouts(budget: int) -> list[tuple[int, int]]:
    """List each (workers, threads per worker) whose product is the CPU budget, most workers first."""
    return [(workers, budget // workers) for workers in range(budget, 0, -1) if budget % workers == 0]


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the shortest batch among those that are about as fast as the fastest one."""
    fastest = max(trial.images_per_s for trial in trials)
    fast = [trial for trial in trials if trial.images_per_s >= MIN_RATE_RATIO * fastest]
    return min(fast, key=lambda trial: (trial.batch_s, -trial.images_per_s))


def measure(settings: Settings, budget: int) -> Iterator[Trial]:
    """Measure each layout with each batch size.

    Args:
        settings: resolved; only the choice of the bundle and the device are used.
        budget: CPUs to distribute, at least 1. On CUDA one worker uses the device.

    Raises:
        StartupError: the bundle or the execution provider failed a check, or a child process failed.
    """
    bundle = Selection(settings, int8_speed(settings)).served()
    for workers, threads in layouts(budget if settings.device == "cpu" else 1):
        with SessionProcesses(settings.device, bundle, workers, threads) as processes:
            for size in BATCH_SIZES[settings.device]:
                yield processes.measure(size)


class SessionProcesses:
    """Child processes that run the network at the same time. They run from ``with`` until its end."""

    def __init__(self, device: str, bundle: SealedBundle, workers: int, threads: int) -> None:
        """Prepare; nothing is started."""
        self._device, self._bundle = device, bundle
        self._workers, self._threads = workers, threads
        self._running = ExitStack()
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Start the processes, and wait until each has opened the network. If one fails, all are ended.

        Raises:
            StartupError: a process could not open the network, ended, or did not answer.
        """
        with ExitStack() as stack:
            for _ in range(self._workers):
                fd = self._bundle.fd
                child = stack.enter_context(Child("digitserve.supervision.autotune", pass_fds=[fd]))
                self._children.append(child)
                child.channel.send({"device": self._device, "bundle_fd": fd, "num_threads": self._threads})
            for child in self._children:
                _receive(child, "ready")
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._running.close()

    def measure(self, batch_size: int) -> Trial:
        """Run batches of one size in all processes at the same time.

        Raises:
            StartupError: a process ended or did not answer.
        """
        for child in self._children:
            child.channel.send({"batch_size": batch_size, "duration_s": MEASURED_S})
        batch_s = [float(_receive(child, "measured")["batch_s"]) for child in self._children]
        images_per_s = sum(batch_size / seconds for seconds in batch_s)
        return Trial(self._workers, self._threads, batch_size, images_per_s, sum(batch_s) / len(batch_s))


def _receive(child: Child, event: str) -> dict[str, Any]:
    try:
        message: dict[str, Any] = child.channel.receive(ANSWER_TIMEOUT_S)
    except TimeoutError:
        raise StartupError(
            f"a process that measured the network did not answer within {ANSWER_TIMEOUT_S:g} s"
        ) from None
    except ChannelClosed:
        raise StartupError("a process that measured the network ended; see its output above") from None
    if message["event"] != event:
        raise StartupError(message["message"])
    return message


def table(trials: Sequence[Trial], *, header: bool = True) -> str:
    """Return trials as lines of text, one per trial."""
    lines = ["workers  threads  max batch  images/s  ms per batch"] if header else []
    lines += [
        f"{trial.workers:>7}  {trial.threads:>7}  {trial.max_batch_size:>9}  "
        f"{trial.images_per_s:>8,.0f}  {trial.batch_s * 1e3:>12.2f}"
        for trial in trials
    ]
    return "\n".join(lines)


def proposal(trial: Trial) -> str:
    """Return the command that serves with a trial's settings; ``serve`` computes the threads per worker itself."""
    return f"digitserve serve --workers {trial.workers} --max-batch-size {trial.max_batch_size}"


def main() -> None:
    """Run as a child process: open the network, then answer each request for a measurement until the parent ends."""
    channel = Channel.to_parent()
    with suppress(ChannelClosed):
        _answer(channel)


def _answer(channel: Channel) -> None:
    # Imported here, so that the parent does not load onnxruntime.
    from digitserve.inference.session import Session  # noqa: PLC0415 - loads onnxruntime

    request = channel.receive()
    try:
        bundle = parse_bundle(BundleFiles.unseal(request["bundle_fd"]))
        session = Session(bundle, device=request["device"], num_threads=request["num_threads"])
    except StartupError as error:
        channel.send({"event": "refused", "message": str(error)})
        return
    channel.send({"event": "ready"})
    while True:
        request = channel.receive()
        images = np.zeros((request["batch_size"], IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
        channel.send({"event": "measured", "batch_s": mean_s(partial(session.run, images), request["duration_s"])})


def mean_s(call: Callable[[], object], duration_s: float) -> float:
    """Return the mean seconds of a call.

    Args:
        call: called once to warm up, then repeatedly for the duration.
        duration_s: seconds to measure.
    """
    call()
    num_calls, elapsed_s, started = 0, 0.0, time.perf_counter()
    while elapsed_s < duration_s:
        call()
        num_calls += 1
        elapsed_s = time.perf_counter() - started
    return elapsed_s / num_calls


if __name__ == "__main__":
    main()
