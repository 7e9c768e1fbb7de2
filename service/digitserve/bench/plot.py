"""Plot of a run: latency by percentile, and answers over time. Called by ``command`` after ``require``."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from digitserve.bench.coordinator import Measurement
from digitserve.bench.counts import SLOT_S
from digitserve.bench.report import describe, timeline
from digitserve.errors import DigitserveError

_MAX_NINES = 4


class CannotPlot(DigitserveError):
    """matplotlib is missing, or the file cannot be written."""


def require() -> None:
    """Check that matplotlib is installed.

    Raises:
        CannotPlot: it is not; the message states what to install.
    """
    if find_spec("matplotlib") is None:
        raise CannotPlot("--plot needs matplotlib: pip install 'digitserve[plot]'")


def write(measurement: Measurement, path: Path) -> None:
    """Write a PNG.

    Raises:
        CannotPlot: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - needed for --plot only

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_percentile, over_time = figure.subplots(1, 2)
    figure.suptitle(describe(measurement.plan), fontsize=9)

    # The x axis is linear in the number of nines: 0 %, 90 %, 99 %, ...
    nines = np.linspace(0, _MAX_NINES, 200)
    histogram = measurement.counts.latencies_and_waits()
    by_percentile.plot(nines, [histogram.percentile_s(1 - 10.0**-nine) * 1e3 for nine in nines])
    by_percentile.set_xticks(range(_MAX_NINES + 1), ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"])
    by_percentile.set(xlabel="percentile", ylabel="latency, ms", yscale="log")
    by_percentile.grid(visible=True, which="both", alpha=0.3)

    requests = np.array(timeline(measurement))
    over_time.plot((np.arange(len(requests)) + 0.5) * SLOT_S, requests / SLOT_S)
    over_time.set(xlabel="time, s", ylabel="OK answers/s")
    over_time.set_ylim(bottom=0)
    over_time.grid(visible=True, alpha=0.3)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise CannotPlot(f"cannot write {path}: {error.strerror}") from None
