"""Arithmetic of the performance targets: how each is computed, and when it is met."""

from math import nan

import pytest

from benchmarks import targets
from benchmarks.targets import SMALL_NETWORK
from benchmarks.targets import targets as targets_of

FIGURES = {
    "image_s": 1e-4, "int8_image_s": 5e-5, "first_image_s": 2e-4, "first_int8_image_s": 1e-4, "single_s": 2e-4, "framing_s": 5e-5,
    "native/ready_s": 0.5, "first release/ready_s": 0.4, "native/memory": 9e7, "first release/memory": 1e8,
    "empty native/single/rate": 40_000.0, "empty native/large/rate": 2000.0, "native/large/rate": 120.0,
    "empty native/single/p50_s": 0.01, "empty native/single/p99_s": 0.02, "empty native/single/cpu_us": 25.0,
    "empty native/large/p50_s": 0.01, "empty native/large/p99_s": 0.02, "empty native/large/cpu_us": 500.0,
    "native/large/p50_s": 0.01, "native/large/p99_s": 0.02, "native/large/cpu_us": 6720.0,
    "native/single/rate": 8300.0, "native int8/single/rate": 12_000.0, "grpc.aio/single/rate": 1500.0,
    "native/single/p50_s": 0.01, "native/single/p99_s": 0.02, "native/single/cpu_us": 110.0,
    "native int8/single/p50_s": 0.01, "native int8/single/p99_s": 0.02, "native int8/single/cpu_us": 80.0,
    "native/single, grpcio/rate": 7470.0, "native/framed/rate": 3600.0, "empty native/framed/rate": 10_000.0,
    "native/single, grpcio/p50_s": 0.01, "native/single, grpcio/p99_s": 0.02, "native/single, grpcio/cpu_us": 120.0,
    "native/framed/p50_s": 0.01, "native/framed/p99_s": 0.02, "native/framed/cpu_us": 250.0,
    "empty native/framed/p50_s": 0.01, "empty native/framed/p99_s": 0.02, "empty native/framed/cpu_us": 100.0,
    "grpc.aio/single/p50_s": 0.04, "grpc.aio/single/p99_s": 0.08, "grpc.aio/single/cpu_us": 600.0,
    "mosec/single/rate": 8301.0, "mosec/single/p50_s": nan, "mosec/single/p99_s": nan, "mosec/single/cpu_us": 80.0,
}  # fmt: skip

PEER = "native, single: rate relative to grpc.aio, single"
READY, MEMORY = (
    "time from start to ready, relative to the first release",
    "memory of a worker, relative to the first release",
)


def rows(figures: dict[str, float], multiply_adds: float = SMALL_NETWORK) -> dict[str, str]:
    """Return the rows of the table by the name of their target."""
    lines = targets.table(targets_of(multiply_adds, [2]), [figures]).splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in lines}


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        # B is 5,000 images/s.
        ("native, single: images/s relative to B", "1.66", "yes"),
        ("native int8, single: images/s relative to B", "2.40", "yes"),
        ("native, large: images/s relative to B", "1.54", "**no**"),
        # The limits are 8,000 and 13,333 requests/s, and 144.9 for 64 images each.
        ("native, single: images/s relative to 1/(1/E + 1/B_new)", "104%", "yes"),
        ("native int8, single: images/s relative to 1/(1/E + 1/B_new)", "90%", "yes"),
        ("native, large: images/s relative to 1/(1/E + 1/B_new)", "83%", "**no**"),
        ("native, large: CPU of an image without the network", "5.0 us", "**no**"),
        ("native, single: CPU of an image without the network", "10.0 us", "yes"),
        ("native, single, grpcio: rate relative to native, single", "90%", "yes"),
        # Such a server answers 4,000 requests/s.
        ("framed: rate relative to 1/(1/E + 1/B_new + framing time)", "90%", "yes"),
        ("native, single: rate relative to mosec, single", "100%", "**no**"),
        (READY, "1.25", "**no**"),
        (MEMORY, "0.90", "yes"),
    ],
)
def test_ratios_of_a_round(name: str, value: str, met: str) -> None:
    """B is that of the first release, for int8 too; B_new that of the network that the server has. A ratio is compared with the
    target before it is rounded.
    """
    row = rows(FIGURES)[name]

    assert f"| {value} | {value} | {met} |" in row


@pytest.mark.parametrize(("rate", "met"), [(1660.0, "yes"), (1661.0, "**no**")])
def test_the_ratio_to_the_peer_is_not_rounded(rate: float, met: str) -> None:
    """The ratio is compared with the target before it is rounded."""
    assert rows(FIGURES | {"grpc.aio/single/rate": rate})[PEER].endswith(f"| {met} |")


def test_large_networks_are_not_compared_with_the_peer() -> None:
    """Above four million multiply-adds the network, not the server, determines the rate."""
    assert PEER in rows(FIGURES)
    assert PEER not in rows(FIGURES, SMALL_NETWORK + 1)


def test_targets_without_figures_have_no_row() -> None:
    """A target whose figures were not measured has no row."""
    assert not any("stream" in name or "workers" in name for name in rows(FIGURES))


def test_every_server_and_load_has_a_row() -> None:
    """Each measured pair has a row with its median rate, latencies if it has any, and CPU time; the floors follow in a sentence."""
    text = targets.rates([FIGURES, FIGURES])

    assert "| native | single | 8,300 | 8,300 | 10.00 ms | 20.00 ms | 110.0 |" in text
    assert "| native | large | 120 | 7,680 | 10.00 ms | 20.00 ms | 105.0 |" in text
    assert "| mosec | single | 8,301 | 8,301 |  |  | 80.0 |" in text
    assert "B is 5,000 images/s, B_new 10,000, in int8 20,000." in targets.floors([FIGURES, FIGURES])
