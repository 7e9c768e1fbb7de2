"""What was measured against what was promised: pure functions from the figures of a round to rows of a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

SMALL_NETWORK = 4_000_000
"""Multiply-adds up to which the network leaves room for the comparison with ``grpc.aio``."""

Figures = Mapping[str, float]
"""The figures of one round by name: ``SERVER/LOAD/rate`` in requests a second, ``.../p50_s``, ``.../p99_s``, and others."""


@dataclass(frozen=True)
class Target:
    """A promise.

    Attributes:
        name: what it is about.
        value: computes it from a round's figures.
        bound: what it must reach, or must not exceed.
        at_least: which of both.
        form: how it is written.
        needs: names of the figures that it is computed from; without them there is no row.
    """

    name: str
    value: Callable[[Figures], float]
    bound: float
    at_least: bool
    form: str
    needs: tuple[str, ...]

    def holds(self, value: float) -> bool:
        """Whether a value keeps the promise."""
        return value >= self.bound if self.at_least else value <= self.bound


def targets(multiply_adds: float, worker_counts: Sequence[int]) -> list[Target]:
    """List what is promised of one server core, for a network of so many multiply-adds."""
    found = [
        _share("single images, unary: of 1/(1/E + 1/B)", "single", ()),
        _share("single images on streams: of 1/(1/E + 1/B)", "stream", ()),
        _share("single 64x64 images, framed: of 1/(1/E + 1/B + framing)", "framed", ("framing_s",)),
        Target(
            "64 images a request: of B", lambda figures: 64 * figures["digitserve/large/rate"] * figures["image_s"],
            0.90, True, "{:.0%}", ("digitserve/large/rate", "image_s"),
        ),
        _most("framing a 64x64 image", lambda figures: figures["framing_s"] * 1e6, 100, "{:.0f} us", "framing_s"),
        _most(
            "one idle client: p50 to that of (empty RPC + network)",
            lambda figures: figures["digitserve/idle/p50_s"] / (figures["empty/idle/p50_s"] + figures["single_s"]),
            1.3, "{:.2f}", "digitserve/idle/p50_s", "empty/idle/p50_s",
        ),
        _most(
            "one idle client: p99 to p50", lambda figures: figures["digitserve/idle/p99_s"] / figures["digitserve/idle/p50_s"],
            3, "{:.2f}", "digitserve/idle/p50_s",
        ),
        *(
            _most(
                f"one client beside another with 1 024 {kind} images a request: p99 in batch times",
                lambda figures, load=load: figures[f"{load}/p99_s"] / figures[f"{load}/batch_s"],
                3, "{:.2f}", f"{load}/p99_s",
            )
            for kind, load in (("plain", "beside"), ("64x64", "beside framed"))
        ),
        _most("health checks beside them: slowest", lambda figures: figures["health_s"] * 1e3, 1000, "{:.0f} ms", "health_s"),
        _most("serve to ready", lambda figures: figures["ready_s"], 2, "{:.2f} s", "ready_s"),
        _most("a worker's memory", lambda figures: figures["worker_bytes"] / 1e6, 130, "{:.0f} MB", "worker_bytes"),
        *(
            Target(
                f"{number} workers: of {number} times one",
                lambda figures, number=number: figures[f"digitserve {number}/large/rate"] / number / figures["digitserve/large/rate"],
                0.9, True, "{:.0%}", (f"digitserve {number}/large/rate", "digitserve/large/rate"),
            )
            for number in worker_counts
        ),
    ]  # fmt: skip
    if multiply_adds <= SMALL_NETWORK:
        rate, peer = "digitserve/single/rate", "grpc.aio/single/rate"
        found.insert(
            1,
            Target(
                "single images, unary: times grpc.aio",
                lambda figures: figures[rate] / figures[peer],
                3,
                True,
                "{:.2f}",
                (rate, peer),
            ),
        )
    return found


def _share(name: str, load: str, beyond: tuple[str, ...]) -> Target:
    """What is reached of a server that does the RPC, the network, and what lies beyond them, and nothing else."""
    ours, empty = f"digitserve/{load}/rate", f"empty/{load}/rate"

    def share(figures: Figures) -> float:
        return figures[ours] * (1 / figures[empty] + figures["image_s"] + sum(figures[name] for name in beyond))

    return Target(name, share, 0.85, True, "{:.0%}", (ours, empty, "image_s", *beyond))


def _most(name: str, value: Callable[[Figures], float], bound: float, form: str, *needs: str) -> Target:
    return Target(name, value, bound, False, form, needs)


def table(promised: Iterable[Target], rounds: Sequence[Figures]) -> str:
    """Write what was reached, round by round, as Markdown."""
    lines = ["| promise | target | by round | median | holds |", "|---|---|---|---|---|"]
    for target in promised:
        if all(name in figures for figures in rounds for name in target.needs):
            values = [target.value(figures) for figures in rounds]
            bound = f"at {'least' if target.at_least else 'most'} {target.form.format(target.bound)}"
            each = ", ".join(target.form.format(value) for value in values)
            holds = "yes" if target.holds(median(values)) else "**no**"
            lines.append(f"| {target.name} | {bound} | {each} | {target.form.format(median(values))} | {holds} |")
    return "\n".join(lines)


def rates(rounds: Sequence[Figures]) -> str:
    """Write every rate and latency that was measured, as Markdown: medians over the rounds."""
    lines = ["| server | load | requests/s | p50 | p99 | CPU us a request |", "|---|---|---|---|---|---|"]
    for name in (name for name in rounds[0] if name.endswith("/rate")):
        server, load, _ = name.split("/")
        rate, p50_s, p99_s, cpu_us = (
            median(figures[f"{server}/{load}/{what}"] for figures in rounds)
            for what in ("rate", "p50_s", "p99_s", "cpu_us")
        )
        lines.append(
            f"| {server} | {load} | {rate:,.0f} | {p50_s * 1e3:.2f} ms | {p99_s * 1e3:.2f} ms | {cpu_us:.0f} |"
        )
    image_s, single_s, framing_s = (
        median(figures[name] for figures in rounds) for name in ("image_s", "single_s", "framing_s")
    )
    lines.append(
        f"\nB: onnxruntime alone, one thread, {1 / image_s:,.0f} images/s in batches of 64; a single image {single_s * 1e6:.0f} us. "
        f"Framing a 64x64 image: {framing_s * 1e6:.0f} us."
    )
    return "\n".join(lines)
