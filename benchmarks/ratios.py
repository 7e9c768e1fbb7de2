"""Ratios of two servers under the same loads, round by round. Pure functions; called by ``against`` and ``compare``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median

THIS, THAT = "this", "that"
"""Names of the two servers in the figures of a round: ``this/LOAD/rate`` is compared with ``that/LOAD/rate``."""

Figures = Mapping[str, float]
"""The figures of one round by name."""

COLUMNS = {"rate": "requests/s", "p50_s": "p50", "p99_s": "p99", "cpu_us": "CPU per request"}


@dataclass(frozen=True)
class Spread:
    """A ratio over all rounds.

    Attributes:
        median: of the ratios of the rounds; not the ratio of the medians.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the spread as ``1.02 (0.99 to 1.05)``; nothing if it is unknown, as percentiles of h2load are."""
        if isnan(self.median):
            return ""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def order(round_number: int) -> tuple[str, str]:
    """Return which server is measured first in a round: A B, B A, A B, ..., so that a drift of the machine cancels out.

    Args:
        round_number: counted from 1.
    """
    return (THIS, THAT) if round_number % 2 else (THAT, THIS)


def spread(rounds: Sequence[Figures], load: str, metric: str, this: str = THIS, that: str = THAT) -> Spread:
    """Return this/that of a metric under a load, compared only within rounds; ``this`` and ``that`` are names of servers."""
    ratios = [figures[f"{this}/{load}/{metric}"] / figures[f"{that}/{load}/{metric}"] for figures in rounds]
    return Spread(median(ratios), min(ratios), max(ratios))


def table(rounds: Sequence[Figures], loads: Sequence[str], this: str = THIS, that: str = THAT) -> str:
    """Return the ratios of all metrics as a Markdown table, one row per load."""
    lines = [f"| load | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for load in loads:
        spreads = [str(spread(rounds, load, metric, this, that)) for metric in COLUMNS]
        lines += [f"| {load} | {' | '.join(spreads)} |"]
    return "\n".join(lines)
