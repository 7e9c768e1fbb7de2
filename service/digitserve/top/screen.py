"""What ``digitserve top`` shows, as lines of text: they fit 80 columns and 24 lines, and narrower terminals.

    Monitor ──▶ render ──▶ command: the whole screen each second, or one table

Used on the main thread.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from digitserve.terminal import BOLD, CYAN, DIM, GREEN, RED, YELLOW, Block, Terminal, flow, join, num_columns, printable
from digitserve.top.figures import QUANTILES, Count, Figures
from digitserve.top.monitor import Monitor

RESTART_SHOWN_S = 10.0
"""Time for which the screen says that the service was restarted."""

MAX_ROWS = 5
"""Most codes, reasons, verdicts and HTTP answers in each list."""

MAX_LABELS = 16
"""Labels of a larger model are not shown: they would need too much room."""

NARROW = 60
"""Below this width mean and p90 are not shown."""

_SELDOM = {
    "Check",
    "Watch",
    "List",
    "GetModel",
    "ModelMetadata",
    "ModelReady",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
}
"""Methods that are shown only while they are called."""

_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII_LEVELS = " .:-=+*#%"

Line = list[tuple[str, str]]
"""Texts, each with the parameters of its colour."""


def render(monitor: Monitor, url: str, now_s: float, terminal: Terminal) -> Iterator[str]:
    """Yield the lines of the whole screen, none wider than the terminal.

    Args:
        monitor: what is known.
        url: of the page.
        now_s: in the time of the monitor.
        terminal: to show it on.
    """

    def line(*parts: tuple[str, str]) -> str:
        return join(((printable(text), colour) for text, colour in parts), terminal, terminal.width)[1].rstrip()

    state, colour = _state(monitor, now_s)
    room = max(0, terminal.width - num_columns(state) - 1)
    yield line((printable(url)[:room].ljust(room + 1), BOLD), (state, colour))
    if monitor.failure:
        yield line((monitor.failure, RED))
    if (figures := monitor.figures) is None:
        return
    service = [
        Block(num_columns(text), [join([(text, colour)], terminal, terminal.width)])
        for text, colour in _service(figures)
    ]
    yield from flow(service, terminal.width)
    yield ""
    for parts in _load(figures, monitor.rates, terminal):
        yield line(*parts)
    yield ""
    for parts in _latencies(figures, terminal.width):
        yield line(*parts)
    yield ""
    yield from flow([_list(title, rows, terminal) for title, rows in _lists(figures)], terminal.width)
    if 0 < len(figures.labels) <= MAX_LABELS:
        yield line(*_labels(figures.labels, terminal))


def _state(monitor: Monitor, now_s: float) -> tuple[str, str]:
    """Return how the service is, and the colour for it."""
    if monitor.failure:
        return f"no metrics for {now_s - monitor.failing_since_s:.0f} s", RED
    figures = monitor.figures
    if figures is None:
        return "connecting", DIM
    if monitor.restarted_s is not None and now_s - monitor.restarted_s < RESTART_SHOWN_S:
        return f"restarted {now_s - monitor.restarted_s:.0f} s ago", YELLOW
    if not figures.ready_workers:
        return "not ready", RED
    return ("ready", GREEN) if figures.ready_workers >= figures.workers else ("workers missing", YELLOW)


def _service(figures: Figures) -> Line:
    memory = sum(figures.memory_bytes.values())
    parts = [
        (figures.model or "no model", ""),
        (figures.provider.removesuffix("ExecutionProvider"), DIM),
        (figures.precision, DIM),
        (f"shadow {figures.shadow}" if figures.shadow else "", DIM),
        (
            f"workers {figures.ready_workers}/{figures.workers}",
            YELLOW if figures.ready_workers < figures.workers else "",
        ),
        (f"restarts {figures.restarts.total:.0f}", YELLOW if figures.restarts.per_s else ""),
        (f"{memory / 1e6:,.0f} MB" if memory else "", ""),
        (f"{figures.cpus:.2f} CPUs" if figures.period_s else "", ""),
    ]
    return [(printable(text), colour) for text, colour in parts if text]


def _load(figures: Figures, rates: Sequence[float], terminal: Terminal) -> Iterator[Line]:
    errors_per_s = sum(count.per_s for count in figures.errors.values())
    known = figures.period_s > 0
    images, requests = (number(count.per_s) if known else "-" for count in (figures.images, figures.requests))
    pending = f" ({seconds(figures.pending_s)})" if figures.pending_images and figures.pending_s is not None else ""
    start = f"{'images/s':<10}  {images:>8}  "
    yield [(start, ""), (sparkline(rates, max(0, terminal.width - len(start)), unicode=terminal.unicode), CYAN)]
    yield [
        (f"{'requests/s':<10}  {requests:>8}  ", ""),
        (f"errors/s {number(errors_per_s)}", RED if errors_per_s else ""),
        (f"  pending {figures.pending_images:,}{pending}  connections {figures.connections:,}", ""),
    ]


def _latencies(figures: Figures, width: int) -> Iterator[Line]:
    titles = ["mean", *(f"p{share * 100:g}" for share in QUANTILES)]
    shown = [titles.index("p50"), titles.index("p99")] if width < NARROW else range(len(titles))
    period = f"last {figures.period_s:.0f} s" if figures.period_s else ""
    yield [(_row(period, "per s", *(titles[index] for index in shown)), DIM)]
    rows = [(name, one, seconds) for name, one in figures.latencies_s.items() if one.per_s or name not in _SELDOM]
    for name, one, show in (*rows, ("batch size", figures.batch_size, lambda size: f"{size:,.3g}")):
        values = (one.mean, *one.quantiles)
        cells = ("-" if (value := values[index]) is None else show(value) for index in shown)
        yield [(_row(name, number(one.per_s), *cells), "")]


def _row(name: str, *cells: str) -> str:
    return f"{name[:12]:<12}" + "".join(f"{cell:>9}" for cell in cells)


def _lists(figures: Figures) -> Iterator[tuple[str, Line]]:
    """Yield titles and rows of verdicts, errors, rejected requests and, if there were any, answers of the HTTP API."""
    predictions = sum(count.total for count in figures.verdicts.values())
    yield "verdicts", _rows(figures.verdicts, lambda count: f"{count.total / predictions:.1%}", "")
    yield "errors", _rows(figures.errors, _rate_and_total, RED)
    yield "rejected", _rows(figures.rejected, _rate_and_total, YELLOW)
    if figures.http_requests:
        yield "HTTP API", _rows(figures.http_requests, _rate_and_total, "")


def _rows(counts: Mapping[str, Count], show: Callable[[Count], str], colour: str) -> Line:
    shown = [*counts.items()][:MAX_ROWS]
    margin = max((len(name) for name, _ in shown), default=0)
    rows = [(f"{name:<{margin}} {show(count)}", colour if count.per_s else "") for name, count in shown]
    return rows or [("none", "")]


def _rate_and_total(count: Count) -> str:
    return f"{number(count.per_s)}/s {count.total:,.0f}"


def _list(title: str, rows: Line, terminal: Terminal) -> Block:
    lines = [join([(printable(text), colour)], terminal, terminal.width) for text, colour in ((title, DIM), *rows)]
    # One more column separates the lists.
    return Block(max(columns for columns, _ in lines) + 1, lines)


def _labels(labels: Mapping[str, Count], terminal: Terminal) -> Line:
    """Return one line: each label with the height of its share."""
    names = sorted(labels)
    heights = sparkline([labels[label].total for label in names], len(names), unicode=terminal.unicode)
    bars = [part for label, height in zip(names, heights, strict=True) for part in ((label, ""), (f"{height} ", CYAN))]
    return [("labels  ", DIM), *bars]


def sparkline(values: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """Return the last ``width`` values as one character each; the highest one is full, and only 0 is empty."""
    shown = [*values][-width:] if width else []
    levels = _LEVELS if unicode else _ASCII_LEVELS
    highest = max(shown, default=0.0)
    if not highest:
        return levels[0] * len(shown)
    return "".join(levels[min(8, max(value > 0, math.ceil(8 * value / highest)))] for value in shown)


def number(value: float) -> str:
    """Return a number with about three digits: 0, 0.25, 12.5, 1,234."""
    if not value:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"  # noqa: PLR2004


def seconds(value: float) -> str:
    """Return a time in the unit that fits: 250 us, 1.25 ms, 2.5 s."""
    if value < 1e-3:  # noqa: PLR2004 - 1 ms
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
