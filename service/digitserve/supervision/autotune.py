"""What suits this machine: runs the network as workers would, in every way the CPU budget allows, and proposes settings.

    serve --tune ──▶ Team: N processes by exec, a session each ──batch size, seconds──▶ images/s of all at once

Called by ``cli``. The parent measures nothing itself; ``main`` is what each process runs. What gRPC adds to a request is
the same for all ways, so the network alone decides.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from digitserve.errors import RefusalToStart
from digitserve.inference.bundle import find_bundle, read_bundle
from digitserve.settings import Settings
from digitserve.types import IMAGE_SIZE

BATCH_SIZES = {"cpu": (8, 16, 32, 64, 128, 256), "cuda": (64, 256, 1024, 4096)}
"""Tried for ``max_batch_size``, by device."""

MEASURED_S = 0.5
"""Of each batch size, after one batch to warm up."""

PATIENCE_S = 120.0
"""For a process to open the network, or to run one batch size."""

GOOD_ENOUGH = 0.97
"""Share of the best rate that a smaller batch must reach to be preferred: it answers sooner."""


@dataclass(frozen=True)
class Trial:
    """One way to run the network on this machine.

    Attributes:
        workers: processes.
        threads: onnxruntime's, in each.
        max_batch_size: images in a batch.
        images_per_s: of all processes together.
        batch_s: mean seconds of a batch.
    """

    workers: int
    threads: int
    max_batch_size: int
    images_per_s: float
    batch_s: float


def ways(budget: int) -> list[tuple[int, int]]:
    """List the ways to part a CPU budget: workers, and threads of each, all the budget used, most workers first."""
    return [(workers, budget // workers) for workers in range(budget, 0, -1) if budget % workers == 0]


def best(trials: Sequence[Trial]) -> Trial:
    """Choose the fastest, or what is nearly as fast and answers a batch sooner."""
    fastest = max(trial.images_per_s for trial in trials)
    good = [trial for trial in trials if trial.images_per_s >= GOOD_ENOUGH * fastest]
    return min(good, key=lambda trial: (trial.batch_s, -trial.images_per_s))


def measure(settings: Settings, budget: int) -> Iterator[Trial]:
    """Try every way, each with every batch size.

    Args:
        settings: models, model, version and device, which is settled, are used.
        budget: CPUs to part, at least 1; on CUDA one worker holds the device.

    Raises:
        RefusalToStart: the bundle or the execution provider failed a check.
    """
    for workers, threads in ways(budget if settings.device == "cpu" else 1):
        with Team(settings, workers, threads) as team:
            for size in BATCH_SIZES[settings.device]:
                yield team.measure(size)


class Team:
    """Processes that run the network at the same time, from ``with`` to its end."""

    def __init__(self, settings: Settings, workers: int, threads: int) -> None:
        """Nothing runs yet."""
        self._settings = settings
        self._workers, self._threads = workers, threads
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start them, and wait until each has opened the network; where one does not, none is left.

        Raises:
            RefusalToStart: one could not, ended, or hangs.
        """
        command = [sys.executable, "-m", "digitserve.supervision.autotune", str(self._threads)]
        with ExitStack() as stack:
            for _ in range(self._workers):
                # Without a buffer: what an ended process did not take must not come up again when its pipe is closed.
                process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                self._processes.append(stack.enter_context(process))
                # Before Popen waits for its end: one that hangs would not hear that its input has ended.
                stack.callback(process.kill)
                self._tell(process, self._settings.to_json())
            for process in self._processes:
                self._hear(process)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._stack.close()

    def measure(self, batch_size: int) -> Trial:
        """Let all run batches of a size at once."""
        for process in self._processes:
            self._tell(process, json.dumps([batch_size, MEASURED_S]))
        heard = [self._hear(process) for process in self._processes]
        images_per_s = sum(batch_size / seconds for seconds in heard)
        return Trial(self._workers, self._threads, batch_size, images_per_s, sum(heard) / len(heard))

    @staticmethod
    def _tell(process: subprocess.Popen[str], line: str) -> None:
        # Where it has ended, that is heard next.
        with suppress(BrokenPipeError):
            process.stdin.write(line + "\n")  # type: ignore[union-attr] # a pipe

    @staticmethod
    def _hear(process: subprocess.Popen[str]) -> float:
        # A process says one line at a time, in one write, so none waits in a buffer of ours.
        if not select.select([process.stdout], [], [], PATIENCE_S)[0]:  # type: ignore[type-var] # a pipe
            raise RefusalToStart(f"a process that ran the network hangs: it said nothing for {PATIENCE_S:g} s")
        line = process.stdout.readline()  # type: ignore[union-attr]
        heard = json.loads(line) if line else "a process that ran the network ended; its last words are above"
        if isinstance(heard, str):
            raise RefusalToStart(heard)
        return float(heard)


def table(trials: Sequence[Trial], *, header: bool = True) -> str:
    """Render trials for people."""
    lines = ["workers  threads  max batch  images/s  ms a batch"] if header else []
    lines += [
        f"{trial.workers:>7}  {trial.threads:>7}  {trial.max_batch_size:>9}  "
        f"{trial.images_per_s:>8,.0f}  {trial.batch_s * 1e3:>10.2f}"
        for trial in trials
    ]
    return "\n".join(lines)


def proposal(trial: Trial) -> str:
    """Say what to serve with; ``serve`` works the threads of each worker out by itself."""
    return f"digitserve serve --workers {trial.workers} --max-batch-size {trial.max_batch_size}"


def main() -> None:
    """Run as a process of a team: settings on the first line of standard input, then a batch size and seconds a line."""
    # Only here does onnxruntime come in.
    from digitserve.inference.session import Session  # noqa: PLC0415

    settings = Settings.from_json(sys.stdin.readline())
    try:
        bundle = read_bundle(find_bundle(settings.models, settings.model, settings.model_version))
        session = Session(bundle, device=settings.device, num_threads=int(sys.argv[1]))
    except RefusalToStart as error:
        _say(str(error))
        return
    _say(0.0)
    for line in sys.stdin:
        batch_size, seconds = json.loads(line)
        images = np.zeros((batch_size, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
        _say(mean_s(partial(session.run, images), seconds))


def mean_s(call: Callable[[], object], seconds: float) -> float:
    """Return the mean seconds of a call, made once to warm up and then again and again for so many seconds."""
    call()
    num_calls, elapsed_s, started = 0, 0.0, time.perf_counter()
    while elapsed_s < seconds:
        call()
        num_calls += 1
        elapsed_s = time.perf_counter() - started
    return elapsed_s / num_calls


def _say(what: float | str) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - standard output is the line to the parent


if __name__ == "__main__":
    main()
