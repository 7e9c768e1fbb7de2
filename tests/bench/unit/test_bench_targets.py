"""The benchmark's arithmetic: what a target is computed from, and what counts as kept."""

import pytest

from benchmarks import targets
from benchmarks.targets import SMALL_NETWORK
from benchmarks.targets import targets as promised

FIGURES = {
    "image_s": 1e-4, "single_s": 2e-4, "framing_s": 5e-5,
    "digitserve/single/rate": 4500.0, "empty/single/rate": 10_000.0, "grpc.aio/single/rate": 1500.0,
    "digitserve/single/p50_s": 0.01, "digitserve/single/p99_s": 0.02, "digitserve/single/cpu_us": 200.0,
    "empty/single/p50_s": 0.005, "empty/single/p99_s": 0.01, "empty/single/cpu_us": 100.0,
    "grpc.aio/single/p50_s": 0.04, "grpc.aio/single/p99_s": 0.08, "grpc.aio/single/cpu_us": 600.0,
}  # fmt: skip


def rows(figures: dict[str, float], multiply_adds: float = SMALL_NETWORK) -> dict[str, str]:
    """Return the rows of a table by the name of their promise."""
    lines = targets.table(promised(multiply_adds, [2]), [figures]).splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in lines}


def test_the_share_is_of_what_a_server_of_rpc_and_network_alone_would_do() -> None:
    """With E = 10 000 RPCs/s and B = 10 000 images/s such a server answers 5 000; 4 500 are 90 % of it."""
    row = rows(FIGURES)["single images, unary: of 1/(1/E + 1/B)"]

    assert "90%" in row
    assert row.endswith("| yes |")


@pytest.mark.parametrize(("rate", "holds"), [(1500.0, "yes"), (1501.0, "**no**")])
def test_three_times_the_peer_is_three_times(rate: float, holds: str) -> None:
    """The ratio is not rounded before it is judged."""
    assert rows(FIGURES | {"grpc.aio/single/rate": rate})["single images, unary: times grpc.aio"].endswith(
        f"| {holds} |"
    )


def test_large_networks_are_not_compared_with_the_peer() -> None:
    """Above four million multiply-adds the network, not the server, decides."""
    assert "single images, unary: times grpc.aio" not in rows(FIGURES, SMALL_NETWORK + 1)


def test_what_was_not_measured_has_no_row() -> None:
    """A promise without its figures is left out, never judged."""
    assert not any("stream" in name or "workers" in name for name in rows(FIGURES))


def test_figures_are_shown_for_every_server_and_load() -> None:
    """Each pair that was measured is a line with its median rate, latencies and CPU time."""
    text = targets.rates([FIGURES, FIGURES])

    assert "| digitserve | single | 4,500 | 10.00 ms | 20.00 ms | 200 |" in text
    assert "10,000 images/s in batches of 64" in text
