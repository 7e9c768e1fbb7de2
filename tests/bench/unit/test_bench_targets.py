"""Arithmetic of the performance targets: how each is computed, and when it is met."""

import pytest

from benchmarks import targets
from benchmarks.targets import SMALL_NETWORK
from benchmarks.targets import targets as targets_of

FIGURES = {
    "image_s": 1e-4, "single_s": 2e-4, "framing_s": 5e-5,
    "digitserve/single/rate": 4500.0, "empty/single/rate": 10_000.0, "grpc.aio/single/rate": 1500.0,
    "digitserve/single/p50_s": 0.01, "digitserve/single/p99_s": 0.02, "digitserve/single/cpu_us": 200.0,
    "empty/single/p50_s": 0.005, "empty/single/p99_s": 0.01, "empty/single/cpu_us": 100.0,
    "grpc.aio/single/p50_s": 0.04, "grpc.aio/single/p99_s": 0.08, "grpc.aio/single/cpu_us": 600.0,
}  # fmt: skip


def rows(figures: dict[str, float], multiply_adds: float = SMALL_NETWORK) -> dict[str, str]:
    """Return the rows of the table by the name of their target."""
    lines = targets.table(targets_of(multiply_adds, [2]), [figures]).splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in lines}


def test_rate_relative_to_a_server_of_rpc_and_network_only() -> None:
    """With E = 10,000 RPCs/s and B = 10,000 images/s such a server answers 5,000; 4,500 are 90 % of it."""
    row = rows(FIGURES)["single: rate relative to 1/(1/E + 1/B)"]

    assert "90%" in row
    assert row.endswith("| yes |")


@pytest.mark.parametrize(("rate", "met"), [(1500.0, "yes"), (1501.0, "**no**")])
def test_the_ratio_to_the_peer_is_not_rounded(rate: float, met: str) -> None:
    """The ratio is compared with the target before it is rounded."""
    assert rows(FIGURES | {"grpc.aio/single/rate": rate})["single: rate relative to grpc.aio"].endswith(f"| {met} |")


def test_large_networks_are_not_compared_with_the_peer() -> None:
    """Above four million multiply-adds the network, not the server, determines the rate."""
    assert "single: rate relative to grpc.aio" not in rows(FIGURES, SMALL_NETWORK + 1)


def test_targets_without_figures_have_no_row() -> None:
    """A target whose figures were not measured has no row."""
    assert not any("stream" in name or "workers" in name for name in rows(FIGURES))


def test_every_server_and_load_has_a_row() -> None:
    """Each measured pair has a row with its median rate, latencies and CPU time; the floors follow in a sentence."""
    text = targets.rates([FIGURES, FIGURES])

    assert "| digitserve | single | 4,500 | 10.00 ms | 20.00 ms | 200 |" in text
    assert "10,000 images/s in batches of 64" in targets.floors([FIGURES, FIGURES])
