"""Performance targets and whether they are met: pure functions from the figures of a round to Markdown tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

SMALL_NETWORK = 4_000_000
"""Networks with more multiply-adds are not compared with ``grpc.aio``: the network, not the server, determines the rate."""

Figures = Mapping[str, float]
"""The figures of one round by name: ``SERVER/LOAD/METRIC`` with the metrics of ``runs``, and others."""


@dataclass(frozen=True)
class Target:
    """A performance target.

    Attributes:
        name: what is measured.
        value: computes it from the figures of a round.
        bound: the minimum or maximum.
        at_least: whether the bound is a minimum.
        form: format of the value.
        needs: names of the figures that it is computed from; without them the table has no row for it.
    """

    name: str
    value: Callable[[Figures], float]
    bound: float
    at_least: bool
    form: str
    needs: tuple[str, ...]

    def is_met(self, value: float) -> bool:
        """Return whether a value meets the target."""
        return value >= self.bound if self.at_least else value <= self.bound


def targets(multiply_adds: float, worker_counts: Sequence[int]) -> list[Target]:
    """Return the targets for one server core, and for each number of workers in ``worker_counts``."""
    listed = [
        _relative_rate("single: rate relative to 1/(1/E + 1/B)", "single", ()),
        _relative_rate("stream: rate relative to 1/(1/E + 1/B)", "stream", ()),
        _relative_rate("framed: rate relative to 1/(1/E + 1/B + framing time)", "framed", ("framing_s",)),
        Target(
            "large: images/s relative to B", lambda figures: 64 * figures["digitserve/large/rate"] * figures["image_s"],
            0.90, True, "{:.0%}", ("digitserve/large/rate", "image_s"),
        ),
        _maximum("framing time of a 64x64 image", lambda figures: figures["framing_s"] * 1e6, 100, "{:.0f} us", "framing_s"),
        _maximum(
            "idle: p50 relative to (p50 of an empty RPC + network time)",
            lambda figures: figures["digitserve/idle/p50_s"] / (figures["empty/idle/p50_s"] + figures["single_s"]),
            1.3, "{:.2f}", "digitserve/idle/p50_s", "empty/idle/p50_s",
        ),
        _maximum(
            "idle: p99 relative to p50", lambda figures: figures["digitserve/idle/p99_s"] / figures["digitserve/idle/p50_s"],
            3, "{:.2f}", "digitserve/idle/p50_s",
        ),
        *(
            _maximum(
                f"idle, beside requests of 1,024 {kind} images: p99 relative to the mean batch time",
                lambda figures, load=load: figures[f"{load}/p99_s"] / figures[f"{load}/batch_s"],
                3, "{:.2f}", f"{load}/p99_s",
            )
            for kind, load in (("28x28", "beside"), ("64x64", "beside framed"))
        ),
        _maximum("slowest health check beside these requests", lambda figures: figures["health_s"] * 1e3, 1000, "{:.0f} ms", "health_s"),
        _maximum("time from start to ready", lambda figures: figures["ready_s"], 2, "{:.2f} s", "ready_s"),
        _maximum("memory of a worker", lambda figures: figures["worker_bytes"] / 1e6, 130, "{:.0f} MB", "worker_bytes"),
        *(
            Target(
                f"large, {number} workers: rate relative to {number} times that of one",
                lambda figures, number=number: figures[f"digitserve {number}/large/rate"] / number / figures["digitserve/large/rate"],
                0.9, True, "{:.0%}", (f"digitserve {number}/large/rate", "digitserve/large/rate"),
            )
            for number in worker_counts
        ),
    ]  # fmt: skip
    if multiply_adds <= SMALL_NETWORK:
        rate, peer = "digitserve/single/rate", "grpc.aio/single/rate"
        listed.insert(
            1,
            Target(
                "single: rate relative to grpc.aio",
                lambda figures: figures[rate] / figures[peer],
                3,
                True,
                "{:.2f}",
                (rate, peer),
            ),
        )
    return listed


def _relative_rate(name: str, load: str, other_steps: tuple[str, ...]) -> Target:
    """Return a target relative to a server that only does the RPC, the network and the steps in ``other_steps``."""
    ours, empty = f"digitserve/{load}/rate", f"empty/{load}/rate"

    def value(figures: Figures) -> float:
        return figures[ours] * (1 / figures[empty] + figures["image_s"] + sum(figures[name] for name in other_steps))

    return Target(name, value, 0.85, True, "{:.0%}", (ours, empty, "image_s", *other_steps))


def _maximum(name: str, value: Callable[[Figures], float], bound: float, form: str, *needs: str) -> Target:
    return Target(name, value, bound, False, form, needs)


def table(listed: Iterable[Target], rounds: Sequence[Figures]) -> str:
    """Return the targets with the values of each round as a Markdown table."""
    lines = ["| measured | target | per round | median | met |", "|---|---|---|---|---|"]
    for target in listed:
        if all(name in figures for figures in rounds for name in target.needs):
            values = [target.value(figures) for figures in rounds]
            bound = f"at {'least' if target.at_least else 'most'} {target.form.format(target.bound)}"
            each = ", ".join(target.form.format(value) for value in values)
            met = "yes" if target.is_met(median(values)) else "**no**"
            lines.append(f"| {target.name} | {bound} | {each} | {target.form.format(median(values))} | {met} |")
    return "\n".join(lines)


def rates(rounds: Sequence[Figures]) -> str:
    """Return rates, latencies and CPU times of each server and load as a Markdown table: medians of all rounds."""
    lines = ["| server | load | requests/s | p50 | p99 | CPU us per request |", "|---|---|---|---|---|---|"]
    for name in (name for name in rounds[0] if name.endswith("/rate")):
        server, load, _ = name.split("/")
        rate, p50_s, p99_s, cpu_us = (
            median(figures[f"{server}/{load}/{what}"] for figures in rounds)
            for what in ("rate", "p50_s", "p99_s", "cpu_us")
        )
        lines.append(
            f"| {server} | {load} | {rate:,.0f} | {p50_s * 1e3:.2f} ms | {p99_s * 1e3:.2f} ms | {cpu_us:.0f} |"
        )
    return "\n".join(lines)


def floors(rounds: Sequence[Figures]) -> str:
    """Return a sentence on the floors: medians of all rounds."""
    image_s, single_s, framing_s = (
        median(figures[name] for figures in rounds) for name in ("image_s", "single_s", "framing_s")
    )
    return (
        f"B: onnxruntime alone, one thread, {1 / image_s:,.0f} images/s in batches of 64. Network time of a single image: "
        f"{single_s * 1e6:.0f} us. Framing time of a 64x64 image: {framing_s * 1e6:.0f} us."
    )
