"""The command ``digitserve bench`` without its flags: run or search, then report. Called by ``cli`` on the main thread."""

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from digitserve.bench import plot, report, slo
from digitserve.bench.coordinator import Coordinator, Measurement
from digitserve.bench.plan import Plan
from digitserve.progress import Progress

FIRST_RATE = 500.0
"""First rate of a search without --rate, in requests/s."""


@dataclass(frozen=True)
class Options:
    """Options of the command that are not part of the plan.

    Attributes:
        metrics_url: the service's /metrics page.
        slo_s: search for the highest rate whose p99 is within this limit; None to run the plan once.
        as_json: whether to print JSON.
        plot: where to write a plot, or None.
    """

    metrics_url: str
    slo_s: float | None = None
    as_json: bool = False
    plot: Path | None = None


@dataclass
class Outcome:
    """The result of the command.

    Attributes:
        best: the measurement to report: the only one, or that at the highest rate that met the limit.
        probes: of a search: rate, p99 in seconds or None, and whether the limit was met.
        stopped: whether Ctrl-C stopped the command.
    """

    best: Measurement | None
    probes: list[dict[str, object]]
    stopped: bool

    @property
    def good(self) -> bool:
        """Whether a request was answered with OK, no answer was wrong, and the service was reachable until the end."""
        best = self.best
        return best is not None and best.counts.num_ok > 0 and not best.counts.wrong and not report.is_gone(best)


def run(plan: Plan, options: Options, print_line: Callable[[str], None], errors: TextIO) -> Outcome:
    """Run a plan, or search with it, and print the report.

    Args:
        plan: the load.
        options: what to do with it.
        print_line: prints the report.
        errors: receives the probes of a search, that the service has ended, and the progress.

    Raises:
        Unreachable: no server answers at the address.
        LoadFailed: a load generator process exited unexpectedly, or hangs.
        CannotPlot: matplotlib is missing, or the plot cannot be written.
    """
    if options.plot is not None:
        plot.require()
    outcome = asyncio.run(_Bench(plan, options, errors).run())
    _print(outcome, options, print_line)
    if outcome.best is not None and report.is_gone(outcome.best):
        errors.write(
            "digitserve: the service has ended or cannot be reached any more: no connection was left at the end\n"
        )
    if options.plot is not None and outcome.best is not None:
        plot.write(outcome.best, options.plot)
    return outcome


class _Bench:
    """One invocation of the command. At most one coordinator exists at a time."""

    def __init__(self, plan: Plan, options: Options, errors: TextIO) -> None:
        self._plan = plan
        self._options = options
        self._errors = errors
        self._coordinator: Coordinator | None = None
        self._stopped = False

    async def run(self) -> Outcome:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._stop)
        if self._options.slo_s is None:
            return Outcome(await self._measure(self._plan), [], self._stopped)
        return await self._search(self._options.slo_s)

    def _stop(self) -> None:
        self._stopped = True
        # The second Ctrl-C ends the command immediately.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        if self._coordinator is not None:
            self._coordinator.stop()

    async def _measure(self, plan: Plan) -> Measurement:
        total_s = plan.warm_up_s + plan.duration_s
        with Progress(self._errors) as progress:

            def show(measurement: Measurement, left_s: float) -> None:
                progress.update(total_s - max(0.0, left_s), total_s, lambda: _describe(measurement))

            self._coordinator = Coordinator(plan, self._options.metrics_url, show)
            if self._stopped:
                self._coordinator.stop()
            try:
                return await self._coordinator.run()
            finally:
                self._coordinator = None

    async def _search(self, slo_s: float) -> Outcome:
        outcome = Outcome(None, [], stopped=False)
        search = slo.search(self._plan.rate or FIRST_RATE)
        rate = next(search)
        while not self._stopped:
            measurement = await self._measure(replace(self._plan, rate=rate))
            if measurement.stopped:
                break
            met = report.meets_slo(measurement, slo_s)
            outcome.probes.append({"rate": rate, "p99_s": report.latencies(measurement)["p99"], "met": met})
            self._print_probe(measurement, met=met)
            outcome.best = measurement if met else outcome.best
            try:
                rate = search.send(met)
            except StopIteration:
                break
        outcome.stopped = self._stopped
        return outcome

    def _print_probe(self, measurement: Measurement, *, met: bool) -> None:
        p99_s = report.latencies(measurement)["p99"]
        p99 = "no answers" if p99_s is None else f"p99 {p99_s * 1e3:.2f} ms"
        errors = f", {measurement.counts.errors:,} errors" if measurement.counts.errors else ""
        limit = " (the load generator was the limit)" if report.is_saturated(measurement) else ""
        rate = measurement.plan.rate or 0.0
        self._errors.write(f"{rate:>12,.1f} requests/s: {p99}{errors}, limit {'met' if met else 'exceeded'}{limit}\n")
        self._errors.flush()


def _describe(measurement: Measurement) -> str:
    """Return the figures so far, for the progress."""
    p99_s = report.latencies(measurement)["p99"]
    p99 = "" if p99_s is None else f", p99 {p99_s * 1e3:.2f} ms"
    return f"{report.rate(measurement):,.0f} requests/s{p99}, {measurement.counts.errors:,} errors"


def _print(outcome: Outcome, options: Options, print_line: Callable[[str], None]) -> None:
    best = outcome.best
    if options.as_json:
        run = {} if best is None else report.as_json(best)
        searched = {} if options.slo_s is None else {
            "slo_s": options.slo_s, "highest_rate": None if best is None else best.plan.rate, "probes": outcome.probes,
        }  # fmt: skip
        print_line(json.dumps(run | searched))
        return
    if options.slo_s is not None:
        limit = f"p99 within {options.slo_s * 1e3:g} ms"
        rate = None if best is None else best.plan.rate
        found = f"no rate with {limit}" if rate is None else f"{rate:,.1f} requests/s is the highest rate with {limit}"
        print_line(f"{'search':<12} {found}{' (stopped before its end)' * outcome.stopped}")
    if best is not None:
        print_line(report.as_text(best))
