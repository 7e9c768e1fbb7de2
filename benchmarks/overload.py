"""Goodput under overload beside what one core can reach at most: a table for ``docs/benchmarks.md``.

    python -m benchmarks.overload --models models

Let S be the CPU time of an answered request and R that of a rejected one, and m the load in multiples of the capacity. Answering g
of the capacity and rejecting the rest takes g S + (m - g) R, so g is at most (1 - m R/S) / (1 - R/S). S and R are
measured with the same server: closed loops of calls that are all answered, and of calls that are all too late. The capacity is
measured right before each load.
``open_loop`` on another core offers the load. Called by ``compare``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import bundles
from benchmarks.installation import ROOT, BenchError
from benchmarks.load import add_cores
from benchmarks.runs import print_progress
from benchmarks.servers import Digitserve, Native, NativeInt8
from digitserve.protocol.names import Code

GOAL = 0.9
"""Goodput as a share of the bound."""

FLOOR = 0.2
"""Goodput as a share of the capacity, where rejections alone would take more than ``MAX_REFUSING`` of the time."""

MAX_REFUSING = 0.8

AFTER = 0.8
"""Load in multiples of the capacity right after the overload."""

GENERATOR_LIMIT = 0.9
"""CPU share of the load generator above which a figure is not reliable."""

DEADLINES_MS = (50, 250, None)

COLUMNS = (
    "server", "requests", "offered", "deadline", "goodput", "bound", "of the bound", "met", "rejected at once", "late or expired",
    "unsent", "p50", "p99", "OK right after", "memory", "load generator",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Requests of one size.

    Attributes:
        name: for the table.
        images: per request.
        loads: offered, in multiples of the capacity, with deadlines in milliseconds.
        closed: flags of the closed loop that measures S.
        rejected_in_flight: calls of a connection in the loop that measures R.
    """

    name: str
    images: int
    loads: tuple[tuple[float, int | None], ...]
    closed: tuple[str, ...]
    rejected_in_flight: int


SINGLE = Kind(
    "single",
    1,
    (*product((1.2, 2, 3), DEADLINES_MS), (5, 50), (10, 50)),
    ("--connections", "64", "--in-flight", "4"),
    64,
)
LARGE = Kind("64 images", 64, tuple(product((2, 5), DEADLINES_MS)), ("--connections", "16", "--in-flight", "2"), 4)


@dataclass(frozen=True)
class Cell:
    """The result of one load.

    Attributes:
        server: its name.
        kind: of the requests.
        multiple: offered load, in multiples of the capacity.
        deadline_ms: of the calls; None for none.
        capacity: requests/s.
        served_us: S.
        rejected_us: R.
        report: of ``open_loop``.
        worker_bytes: resident memory of the worker afterwards.
    """

    server: str
    kind: Kind
    multiple: float
    deadline_ms: int | None
    capacity: float
    served_us: float
    rejected_us: float
    report: dict[str, Any]
    worker_bytes: int

    @property
    def ratio(self) -> float:
        """R/S."""
        return self.rejected_us / self.served_us

    @property
    def bound(self) -> float:
        """Largest possible goodput as a share of the capacity; ``FLOOR`` where the load must stay with the clients."""
        if self.multiple * self.ratio > MAX_REFUSING:
            return FLOOR
        return (1 - self.multiple * self.ratio) / (1 - self.ratio)

    @property
    def goodput(self) -> float:
        """Calls answered with OK in time, as a share of the capacity."""
        return self.share(Code.OK.label)

    @property
    def is_met(self) -> bool:
        """Whether the goodput reaches the goal."""
        goal = 1 if self.bound == FLOOR else GOAL
        return self.goodput >= goal * self.bound

    def share(self, outcome: str) -> float:
        """Return the calls with an outcome as a share of the capacity."""
        num_calls: int = self.report["outcomes"].get(outcome, 0)
        return num_calls / self.report["seconds"] / self.capacity

    def recovered(self) -> float:
        """Return the share of the calls of the second after the overload that were answered with OK in time."""
        after = self.report["after"]
        return float(after.get(Code.OK.label, 0) / max(1, sum(after.values())))


class Overload:
    """Measures a server, which runs while this object is used."""

    def __init__(self, server: Digitserve, kind: Kind, load_cores: str, seconds: float) -> None:
        """Measure S and R."""
        self._server, self._kind, self._load_cores, self._seconds = server, kind, load_cores, seconds
        print_progress(f"overload: {server.name}, {kind.name}, S and R")
        _, self._served_us = self._measure(*kind.closed)
        _, self._rejected_us = self._measure(
            "--expired", "--connections", "64", "--in-flight", str(kind.rejected_in_flight)
        )

    def cell(self, multiple: float, deadline_ms: int | None) -> Cell:
        """Measure one load; before it the capacity, because the speed of the machine changes within minutes."""
        print_progress(
            f"overload: {self._server.name}, {self._kind.name}, {multiple} times, deadline {deadline_ms or 'none'}"
        )
        closed, _ = self._measure(*self._kind.closed)
        capacity = closed["outcomes"][Code.OK.label] / closed["seconds"]
        deadline = ["--deadline-ms", str(deadline_ms)] if deadline_ms else []
        report, _ = self._measure(
            "--connections", "64", "--rate", str(multiple * capacity), "--after-rate", str(AFTER * capacity), *deadline
        )
        return Cell(
            self._server.name, self._kind, multiple, deadline_ms, capacity, self._served_us, self._rejected_us,
            report, self._server.memory_bytes(),
        )  # fmt: skip

    def _measure(self, *flags: str) -> tuple[dict[str, Any], float]:
        """Return the report of ``open_loop``, and the server's CPU time per call in microseconds."""
        cpu_s = self._server.cpu_s()
        command = [
            "taskset", "-c", self._load_cores, sys.executable, "-m", "benchmarks.open_loop", "--port",
            str(self._server.grpc_port), "--images", str(self._kind.images), "--seconds", str(self._seconds), *flags,
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=self._seconds + 60, cwd=ROOT
        )
        if done.returncode:
            raise BenchError(f"open_loop ended with exit code {done.returncode}: {done.stderr}")
        report: dict[str, Any] = json.loads(done.stdout)
        num_calls = sum(sum(report[phase].values()) for phase in ("warm_up", "outcomes", "after"))
        return report, (self._server.cpu_s() - cpu_s) * 1e6 / num_calls


def measure(models: Path, cores: str, load_cores: str, seconds: float) -> list[Cell]:
    """Measure all loads: float32 with both kinds of requests, int8 with single images."""
    cells = []
    kinds: list[tuple[type[Digitserve], tuple[Kind, ...]]] = [(Native, (SINGLE, LARGE))]
    if (models / bundles.INT8_MODEL).exists():
        kinds.append((NativeInt8, (SINGLE,)))
    for server_kind, request_kinds in kinds:
        with server_kind(models, cores) as server:
            for kind in request_kinds:
                overload = Overload(server, kind, load_cores, seconds)
                cells += [overload.cell(multiple, deadline_ms) for multiple, deadline_ms in kind.loads]
    return cells


def table(cells: Sequence[Cell]) -> str:
    """Return the cells as a Markdown table."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for cell in cells:
        report, floor = cell.report, cell.bound == FLOOR
        late = sum(cell.share(outcome) for outcome in ("late", "expired", "lost"))
        rejected = sum(cell.share(code.label) for code in (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED))
        busy = f"{report['cpu']:.0%}" + " (limit)" * (report["cpu"] > GENERATOR_LIMIT)
        lines.append(
            f"| {cell.server} | {cell.kind.name} | {cell.multiple:g} | "
            f"{f'{cell.deadline_ms} ms' if cell.deadline_ms else 'none'} | {cell.goodput:.0%} | "
            f"{'floor ' * floor}{cell.bound:.0%} | {'' if floor else f'{cell.goodput / cell.bound:.0%}'} | "
            f"{'yes' if cell.is_met else '**no**'} | {rejected:.0%} | {late:.0%} | {cell.share('unsent'):.0%} | "
            f"{report['p50_s'] * 1e3:.0f} ms | {report['p99_s'] * 1e3:.0f} ms | {cell.recovered():.0%} | "
            f"{cell.worker_bytes / 1e6:.0f} MB | {busy} |"
        )
    return "\n".join(lines)


def describe(cells: Sequence[Cell]) -> str:
    """Return the section of ``docs/benchmarks.md``."""
    sizes: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        sizes.setdefault((cell.server, cell.kind.name), []).append(cell)
    measured = "; ".join(
        f"{server}, {kind}: capacity {min(cell.capacity for cell in same):,.0f} to {max(cell.capacity for cell in same):,.0f} "
        f"requests/s, S {same[0].served_us:.1f} us, R {same[0].rejected_us:.1f} us"
        for (server, kind), same in sizes.items()
    )
    return "\n\n".join((
        "## Overload",
        (
            "All columns from goodput to unsent are shares of the capacity, which is measured right before each load. Offered: calls that an open loop starts on 64 "
            "connections, in multiples of the capacity. Goodput: answered with OK before the deadline. Bound: "
            "(1 - m R/S) / (1 - R/S) of the capacity, where S is the CPU time of an answered call, R that of a rejected one, and m "
            f"the offered load; the target is {GOAL:.0%} of it. If m R exceeds {MAX_REFUSING} S, the target is {FLOOR:.0%} of "
            "the capacity instead: then connections are paused, and unsent calls end in their clients. p50 and p99: from "
            f"sending to the answer. Right after: share of OK in the second after the overload, at {AFTER:g} times the capacity; "
            "calls without a deadline that wait in their clients by then are served first. "
            f"Load generator: its share of a core. {measured}."
        ),
        table(cells),
    ))  # fmt: skip


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=3.0, help="per load (default 3)")
    add_cores(parser)
    options = parser.parse_args()
    try:
        cells = measure(options.models, options.cores, options.load_cores, options.seconds)
    except BenchError as error:
        print_progress(f"overload: {error}")
        return 1
    sys.stdout.write(describe(cells) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
