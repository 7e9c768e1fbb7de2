"""The figures of the page's panel, computed by Node.js from pages of metrics."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from digitserve.scrape import Page, parse
from digitserve.top.figures import compare
from digitserve.top.monitor import _is_restarted

PANEL_TESTS = Path(__file__).parents[1] / "web" / "unit" / "panel"


def node() -> str:
    """Return the path of Node.js; skip the test if it is not installed."""
    return shutil.which("node") or pytest.skip("node is not installed")


class PanelFigures:
    """A process of Node.js that computes figures; used by one thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Keep the process."""
        self._process = process

    def compare(self, before: str, after: str, period_s: float) -> dict[str, Any]:
        """Return ``figures`` of the period, whether the service was ``restarted``, and the ``samples`` of the second page.

        Args:
            before: text of the page at the start of the period.
            after: at its end.
            period_s: its length.
        """
        line = json.dumps({"before": before, "after": after, "period_s": period_s})
        self._process.stdin.write(f"{line}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        answer = self._process.stdout.readline()  # type: ignore[union-attr]
        assert answer, "Node.js has ended: see its standard error"
        return dict(json.loads(answer))


@contextmanager
def run_panel_figures() -> Iterator[PanelFigures]:
    """Run the process; it ends with the ``with`` block."""
    command = [node(), str(PANEL_TESTS / "figures_process.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield PanelFigures(process)
        finally:
            process.stdin.close()  # type: ignore[union-attr]


def _samples(page: Page) -> dict[str, list[tuple[list[tuple[str, str]], float]]]:
    return {
        name: sorted((sorted(labels), value) for labels, value in values.items())
        for name, values in page.samples.items()
    }


def _assert_same(ours: object, theirs: object, where: str = "figures") -> None:
    """Compare figures, with numbers as close as two orders of the same additions are."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict) and ours.keys() == theirs.keys(), where
        for name, value in ours.items():
            _assert_same(value, theirs[name], f"{where}.{name}")
    elif isinstance(ours, float):
        assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-12), where
    else:
        assert theirs == ours, where


def assert_panel_agrees(panel: PanelFigures, before: str, after: str, period_s: float) -> dict[str, Any]:
    """Compare what the panel and ``digitserve top`` make of two pages; return the figures of the panel."""
    theirs = panel.compare(before, after, period_s)
    pages = parse(before, ""), parse(after, "")
    assert {
        name: sorted((sorted(one["labels"].items()), one["value"]) for one in values)
        for name, values in theirs["samples"].items()
    } == _samples(pages[1])
    _assert_same(compare(*pages, period_s).as_json(), theirs["figures"])
    assert theirs["restarted"] is _is_restarted(*pages)
    return dict(theirs["figures"])
