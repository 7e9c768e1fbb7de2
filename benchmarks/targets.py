"""Performance targets and whether they are met: pure functions from the figures of a round to Markdown tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
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
        *(
            _maximum(
                f"empty RPC, {load}: CPU", lambda figures, load=load: figures[f"empty native/{load}/cpu_us"],
                bound, "{:.1f} us", f"empty native/{load}/cpu_us",
            )
            # With one call in flight each read and each write has one call only: 8 us more.
            for load, bound in (("single", 8), ("single, grpcio", 12), ("single, grpc-go", 18), ("single, one", 16))
        ),
        *(
            _of_b(server, load, num_images, bound)
            for load, num_images, bounds in (("single", 1, (0.82, 1.45)), ("large", 64, (0.92, 1.70)))
            for server, bound in zip(("native", "native int8"), bounds, strict=True)
        ),
        *(
            _relative(f"{server}/{load}/rate", f"{server}/single/rate", bound)
            for server, bounds in (("native", (0.90, 0.85, 1.0)), ("native int8", (0.85, 0.75, 1.0)))
            for load, bound in zip(("single, grpcio", "single, grpc-go", "stream"), bounds, strict=True)
        ),
        _relative("native tls/h2load/rate", "native/h2load/rate", 0.90),
        _relative("native tls/h2load, one/rate", "native/h2load, one/rate", 0.85),
        _relative("native/single/rate", "mosec/single/rate", 1.0),
        _framed(),
        _maximum("framing time of a 64x64 image", lambda figures: figures["framing_s"] * 1e6, 100, "{:.0f} us", "framing_s"),
        _maximum("idle: p50", lambda figures: figures["native/idle/p50_s"] * 1e3, 0.4, "{:.2f} ms", "native/idle/p50_s"),
        _maximum(
            "idle: p99 relative to p50", lambda figures: figures["native/idle/p99_s"] / figures["native/idle/p50_s"],
            3, "{:.2f}", "native/idle/p50_s",
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
        _maximum("time from start to ready", lambda figures: figures["native/ready_s"], 2, "{:.2f} s", "native/ready_s"),
        _maximum("memory of a worker", lambda figures: figures["worker_bytes"] / 1e6, 130, "{:.0f} MB", "worker_bytes"),
        *(
            Target(
                f"large, {number} workers: rate relative to {number} times that of one",
                lambda figures, number=number: figures[f"{number} workers/large/rate"] / number / figures["native/large/rate"],
                0.9, True, "{:.0%}", (f"{number} workers/large/rate", "native/large/rate"),
            )
            for number in worker_counts
        ),
    ]  # fmt: skip
    if multiply_adds <= SMALL_NETWORK:
        listed.append(_relative("native/single/rate", "grpc.aio/single/rate", 3, "{:.2f}"))
    return listed


def _of_b(server: str, load: str, num_images: int, bound: float) -> Target:
    """Return a target for the images/s of a server relative to B of the network that is served by default."""
    rate = f"{server}/{load}/rate"

    def value(figures: Figures) -> float:
        return num_images * figures[rate] * figures["image_s"]

    return Target(f"{server}, {load}: images/s relative to B", value, bound, True, "{:.2f}", (rate, "image_s"))


def _relative(rate: str, other: str, bound: float, form: str = "{:.0%}") -> Target:
    """Return a target for one rate relative to another."""
    (server, load, _), that = rate.split("/"), other.removesuffix("/rate").replace("/", ", ")
    name = f"{server}, {load}: rate relative to {that}"
    return Target(name, lambda figures: figures[rate] / figures[other], bound, True, form, (rate, other))


def _framed() -> Target:
    """Return a target relative to a server that does only the RPC, the network and framing."""
    ours, empty = "native/framed/rate", "empty native/framed/rate"

    def value(figures: Figures) -> float:
        return figures[ours] * (1 / figures[empty] + figures["image_s"] + figures["framing_s"])

    name = "framed: rate relative to 1/(1/E + 1/B + framing time)"
    return Target(name, value, 0.85, True, "{:.0%}", (ours, empty, "image_s", "framing_s"))


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
        # h2load reports no percentiles.
        p50, p99 = ("" if isnan(value) else f"{value * 1e3:.2f} ms" for value in (p50_s, p99_s))
        lines.append(f"| {server} | {load} | {rate:,.0f} | {p50} | {p99} | {cpu_us:.1f} |")
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
