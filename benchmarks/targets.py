"""Performance targets and whether they are met: pure functions from the figures of a round to Markdown tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from statistics import median

from benchmarks.load import LOADS

DEFINITIONS = (
    "B: images/s of onnxruntime alone with the float32 network of the first release. B_new: the same with the network that the "
    "server has. E: empty RPCs of the same transport and load per second of the server's CPU time, under the same scheduling policy; "
    "their rate is lower, because the load generator needs longer for them."
)

SERVED = ("native", "native int8")
"""Servers of this release, with the float32 and the int8 network."""

B = "first_image_s"
"""Name of the figure that holds 1/B: the seconds per image of onnxruntime alone with the float32 network of the first release."""

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
    listed = [*_throughput(), *_latency_and_memory(), *map(_scaling, worker_counts)]
    if multiply_adds <= SMALL_NETWORK:
        for server, peer, bound in zip(SERVED, ("grpc.aio", "grpc.aio int8"), (5, 7), strict=True):
            listed.append(_relative(f"{server}/single/rate", f"{peer}/single/rate", bound, "{:.2f}"))
    return listed


def _throughput() -> list[Target]:
    """Return the targets for rates, and for the CPU time that determines them."""
    return [
        *(
            _maximum(
                f"empty RPC, {load}: CPU", lambda figures, load=load: figures[f"empty native/{load}/cpu_us"],
                bound, "{:.1f} us", f"empty native/{load}/cpu_us",
            )
            # With one call in flight each read and each write has one call only: 8 us more.
            for load, bound in (("single", 8), ("single, grpcio", 12), ("single, grpc-go", 18), ("single, one", 16))
        ),
        *(
            _of_b(server, load, bound)
            for load, bounds in (("large", (1.6, 2.6)), ("single", (1.3, 2.0)), ("stream", (1.4, 2.2)))
            for server, bound in zip(SERVED, bounds, strict=True)
        ),
        *(
            _of_limit(server, load, bound)
            for load in ("large", "single", "stream")
            for server, bound in zip(SERVED, (0.85, 0.80), strict=True)
        ),
        *(
            _without_network(server, load, bound) for load, bound in (("large", 4), ("single", 14)) for server in SERVED
        ),
        *(
            _relative(f"{server}/{load}/rate", f"{server}/single/rate", bound)
            for server, bounds in (("native", (0.90, 0.85, 1.0)), ("native int8", (0.85, 0.75, 1.0)))
            for load, bound in zip(("single, grpcio", "single, grpc-go", "stream"), bounds, strict=True)
        ),
        _relative("native tls/h2load/rate", "native/h2load/rate", 0.90),
        _relative("native tls/h2load, one/rate", "native/h2load, one/rate", 0.85),
        *(
            _relative(f"{server}/{load}/rate", f"{other}/{load}/rate", 1.0)
            for load in ("single", "large")
            for server, other in zip(SERVED, ("mosec", "mosec int8"), strict=True)
        ),
        _framed(),
        _maximum("framing time of a 64x64 image", lambda figures: figures["framing_s"] * 1e6, 40, "{:.0f} us", "framing_s"),
    ]  # fmt: skip


def _latency_and_memory() -> list[Target]:
    """Return the targets for latency, for the start and for memory."""
    return [
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
        _no_more("time from start to ready", "ready_s"),
        _maximum("memory of a worker", lambda figures: figures["native/memory"] / 1e6, 130, "{:.0f} MB", "native/memory"),
        _no_more("memory of a worker", "memory"),
    ]  # fmt: skip


def _scaling(num_workers: int) -> Target:
    """Return the target for a number of workers on as many cores."""
    rate, of_one = f"{num_workers} workers/large/rate", "native/large/rate"
    name = f"large, {num_workers} workers: rate relative to {num_workers} times that of one"
    return Target(
        name, lambda figures: figures[rate] / num_workers / figures[of_one], 0.9, True, "{:.0%}", (rate, of_one)
    )


def network_s(server: str) -> str:
    """Return the name of the figure that holds the seconds per image of onnxruntime alone with the network of a server."""
    return "int8_image_s" if "int8" in server else "image_s"


def _of_b(server: str, load: str, bound: float) -> Target:
    """Return a target for the images/s of a server relative to B."""
    rate, num_images = f"{server}/{load}/rate", LOADS[load].images

    def value(figures: Figures) -> float:
        return num_images * figures[rate] * figures[B]

    return Target(f"{server}, {load}: images/s relative to B", value, bound, True, "{:.2f}", (rate, B))


def _of_limit(server: str, load: str, bound: float) -> Target:
    """Return a target relative to a server that does only the RPC and the network."""
    rate, empty_us, image_s = f"{server}/{load}/rate", f"empty native/{load}/cpu_us", network_s(server)
    num_images = LOADS[load].images

    def value(figures: Figures) -> float:
        return figures[rate] * (figures[empty_us] / 1e6 + num_images * figures[image_s])

    name = f"{server}, {load}: images/s relative to 1/(1/E + 1/B_new)"
    return Target(name, value, bound, True, "{:.0%}", (rate, empty_us, image_s))


def _without_network(server: str, load: str, bound: float) -> Target:
    """Return a target for the CPU time of an image except for the network."""
    cpu_us, image_s, num_images = f"{server}/{load}/cpu_us", network_s(server), LOADS[load].images

    def value(figures: Figures) -> float:
        return figures[cpu_us] / num_images - figures[image_s] * 1e6

    return _maximum(
        f"{server}, {load}: CPU of an image without the network", value, bound, "{:.1f} us", cpu_us, image_s
    )


def _no_more(what: str, metric: str) -> Target:
    """Return the target that something takes no more than in the first release."""
    ours, theirs = f"native/{metric}", f"first release/{metric}"
    name = f"{what}, relative to the first release"
    return _maximum(name, lambda figures: figures[ours] / figures[theirs], 1, "{:.2f}", ours, theirs)


def _relative(rate: str, other: str, bound: float, form: str = "{:.0%}") -> Target:
    """Return a target for one rate relative to another."""
    (server, load, _), that = rate.split("/"), other.removesuffix("/rate").replace("/", ", ")
    name = f"{server}, {load}: rate relative to {that}"
    return Target(name, lambda figures: figures[rate] / figures[other], bound, True, form, (rate, other))


def _framed() -> Target:
    """Return a target relative to a server that does only the RPC, the network and framing."""
    ours, empty_us = "native/framed/rate", "empty native/framed/cpu_us"

    def value(figures: Figures) -> float:
        return figures[ours] * (figures[empty_us] / 1e6 + figures["image_s"] + figures["framing_s"])

    name = "framed: rate relative to 1/(1/E + 1/B_new + framing time)"
    return Target(name, value, 0.85, True, "{:.0%}", (ours, empty_us, "image_s", "framing_s"))


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
    lines = [
        "| server | load | requests/s | images/s | p50 | p99 | CPU s per million images |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in rounds[0] if name.endswith("/rate")):
        server, load, _ = name.split("/")
        num_images = LOADS[load].images
        rate, p50_s, p99_s, cpu_us = (
            median(figures[f"{server}/{load}/{what}"] for figures in rounds)
            for what in ("rate", "p50_s", "p99_s", "cpu_us")
        )
        # h2load reports no percentiles.
        p50, p99 = ("" if isnan(value) else f"{value * 1e3:.2f} ms" for value in (p50_s, p99_s))
        # A microsecond per image is a second per million images.
        cpu_s = cpu_us / num_images
        lines.append(f"| {server} | {load} | {rate:,.0f} | {rate * num_images:,.0f} | {p50} | {p99} | {cpu_s:.1f} |")
    return "\n".join(lines)


def floors(rounds: Sequence[Figures]) -> str:
    """Return a sentence on the floors: medians of all rounds."""
    b_s, image_s, int8_s, single_s, framing_s = (
        median(figures.get(name, inf) for figures in rounds)
        for name in (B, "image_s", "int8_image_s", "single_s", "framing_s")
    )
    int8 = "" if int8_s == inf else f", in int8 {1 / int8_s:,.0f}"
    return (
        f"onnxruntime alone, one thread, in batches of 64: B is {1 / b_s:,.0f} images/s, B_new {1 / image_s:,.0f}{int8}. "
        f"Network time of a single image: {single_s * 1e6:.0f} us. Framing time of a 64x64 image: {framing_s * 1e6:.0f} us."
    )
