"""What ``digitserve bench`` does, behind its flags: run, search, report. Called by ``cli`` on the main thread."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from digitserve.bench import plot, report, slo
from digitserve.bench.fleet import Fleet, Measured
from digitserve.bench.plan import Plan

FIRST_RATE = 500.0
"""Where the search for a rate begins unless --rate says."""

PROGRESS_S = 0.2


@dataclass(frozen=True)
class Order:
    """What is wanted beside the plan.

    Attributes:
        metrics_url: the service's /metrics page.
        slo_s: search for the highest rate whose p99 is at most so long; None to run the plan as it is.
        as_json: print JSON.
        plot: where to write a picture, or None.
    """

    metrics_url: str
    slo_s: float | None = None
    as_json: bool = False
    plot: Path | None = None


@dataclass
class Outcome:
    """How it ended.

    Attributes:
        best: the run that is reported: the only one, or the one at the highest rate that held.
        probes: of a search: rate, p99 in seconds or None, and whether it held.
        stopped: by Ctrl-C.
    """

    best: Measured | None
    probes: list[dict[str, object]]
    stopped: bool

    @property
    def good(self) -> bool:
        """Whether something was answered with OK, and no answer was wrong."""
        return self.best is not None and self.best.counts.codes[report.OK] > 0 and not self.best.counts.wrong


def run(plan: Plan, order: Order, out: TextIO, errors: TextIO) -> Outcome:
    """Run a plan, or search with it, and print the report.

    Args:
        plan: the load.
        order: what to do with it.
        out: for the report.
        errors: for the probes of a search and, on a terminal, the progress.

    Raises:
        Unreachable: nobody answers at the address.
        LoadFailed: a process of the load generator ended by itself, or hangs.
        CannotPlot: matplotlib is missing, or the picture cannot be written.
    """
    if order.plot is not None:
        plot.require()
    outcome = asyncio.run(_Bench(plan, order, errors).run())
    _print(outcome, order, out)
    if order.plot is not None and outcome.best is not None:
        plot.write(outcome.best, order.plot)
    return outcome


class _Bench:
    def __init__(self, plan: Plan, order: Order, errors: TextIO) -> None:
        self._plan = plan
        self._order = order
        self._errors = errors
        self._progress = _progress_line(errors) if errors.isatty() else _no_progress
        self._fleet: Fleet | None = None
        self._stopped = False

    async def run(self) -> Outcome:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._stop)
        if self._order.slo_s is None:
            return Outcome(await self._measure(self._plan), [], self._stopped)
        return await self._search(self._order.slo_s)

    def _stop(self) -> None:
        self._stopped = True
        # Whoever presses it again means it.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        if self._fleet is not None:
            self._fleet.stop()

    async def _measure(self, plan: Plan) -> Measured:
        self._fleet = Fleet(plan, self._order.metrics_url, self._progress)
        if self._stopped:
            self._fleet.stop()
        try:
            return await self._fleet.run()
        finally:
            self._fleet = None
            if self._progress is not _no_progress:
                self._errors.write("\r\x1b[K")

    async def _search(self, slo_s: float) -> Outcome:
        outcome = Outcome(None, [], stopped=False)
        search = slo.search(self._plan.rate or FIRST_RATE)
        rate = next(search)
        while not self._stopped:
            measured = await self._measure(replace(self._plan, rate=rate))
            if measured.stopped:
                break
            held = report.holds(measured, slo_s)
            outcome.probes.append({"rate": rate, "p99_s": report.latencies(measured)["p99"], "held": held})
            self._tell(measured, held=held)
            outcome.best = measured if held else outcome.best
            try:
                rate = search.send(held)
            except StopIteration:
                break
        outcome.stopped = self._stopped
        return outcome

    def _tell(self, measured: Measured, *, held: bool) -> None:
        p99_s = report.latencies(measured)["p99"]
        shown = "nothing answered" if p99_s is None else f"p99 {p99_s * 1e3:.2f} ms"
        errors = f", {measured.counts.errors:,} errors" if measured.counts.errors else ""
        limit = " (the load generator was the limit)" if report.was_the_limit(measured) else ""
        rate = measured.plan.rate or 0.0
        self._errors.write(
            f"{rate:>12,.1f} requests/s: {shown}{errors}, {'holds' if held else 'does not hold'}{limit}\n"
        )
        self._errors.flush()


def _no_progress(_measured: Measured, _left_s: float) -> None:
    """Nobody looks."""


def _progress_line(terminal: TextIO) -> Callable[[Measured, float], None]:
    shown_s = 0.0

    def show(measured: Measured, left_s: float) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s < PROGRESS_S:
            return
        shown_s = time.monotonic()
        p99_s = report.latencies(measured)["p99"]
        p99 = "" if p99_s is None else f", p99 {p99_s * 1e3:.2f} ms"
        errors = measured.counts.errors
        terminal.write(
            f"\r\x1b[K{report.rate(measured):,.0f} requests/s{p99}, {errors:,} errors, {max(0.0, left_s):.0f} s left"
        )
        terminal.flush()

    return show


def _print(outcome: Outcome, order: Order, out: TextIO) -> None:
    best = outcome.best
    if order.as_json:
        run = {} if best is None else report.as_json(best)
        searched = {} if order.slo_s is None else {
            "slo_s": order.slo_s, "highest_rate": None if best is None else best.plan.rate, "probes": outcome.probes,
        }  # fmt: skip
        out.write(json.dumps(run | searched) + "\n")
        return
    if order.slo_s is not None:
        limit = f"p99 within {order.slo_s * 1e3:g} ms"
        rate = None if best is None else best.plan.rate
        found = (
            f"no rate was found with {limit}"
            if rate is None
            else f"{rate:,.1f} requests/s is the highest rate with {limit}"
        )
        out.write(f"{'found':<12} {found}{' so far' * outcome.stopped}\n")
    if best is not None:
        out.write(report.as_text(best) + "\n")
