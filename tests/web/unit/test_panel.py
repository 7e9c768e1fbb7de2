"""The figures of the page's panel against those of ``digitserve top``."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector
from digitserve.telemetry.supervisor_metrics import metric
from support.panel import PanelFigures, assert_panel_agrees, run_panel_figures

LABELS = ("0", "1", 'a "quoted" \\ label\nof two lines')
HTTP = st.dictionaries(
    st.tuples(st.sampled_from(["/v1/classify", "/v1/model"]), st.sampled_from(["200", "400", "499"])),
    st.integers(0, 99),
)


@pytest.fixture(scope="module")
def panel() -> Iterator[PanelFigures]:
    with run_panel_figures() as running:
        yield running


def fill(block: Block, seed: int, most: int) -> None:
    """Add random counts to most cells; cells of gauges are set."""
    random = np.random.default_rng(seed)
    for spec in block.specs:
        cells = block.cells[spec.name]
        added = random.integers(0, most + 1, cells.shape) * (random.random(cells.shape) < 0.7)
        if spec.kind == "gauge":
            cells[:] = added
        else:
            cells += added * (1.0 if spec.kind == "counter" else 0.25 if most % 2 else 1.0)


# Counts from a seed do not shrink.
@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(
    seeds=st.tuples(st.integers(0, 1 << 32), st.integers(0, 1 << 32)),
    most=st.sampled_from([0, 1, 9, 10**6]),
    ready=st.integers(0, 2),
    restarts=st.integers(0, 3),
    http=HTTP,
    period_s=st.one_of(st.just(0.0), st.floats(0.1, 1e4)),
    is_reversed=st.booleans(),
)
def test_figures_are_those_of_top(
    panel: PanelFigures,
    seeds: tuple[int, int],
    most: int,
    ready: int,
    restarts: int,
    http: dict[tuple[str, str], int],
    period_s: float,
    is_reversed: bool,
) -> None:
    """Panel and ``digitserve top`` make the same figures of the same pages: rates, quantiles, codes, and whether the service
    was restarted. The pages are those of the service's own collector, with any counts.
    """
    texts = []
    registry = CollectorRegistry()
    collector = ServiceCollector(
        LABELS,
        lambda: [
            metric("digitserve_model_info", {('a "b"\\', "4", "x", "CPUExecutionProvider", "int8"): 1}),
            metric("digitserve_workers", 2),
            metric("digitserve_ready_workers", ready),
            metric("digitserve_worker_restarts", restarts * len(texts)),
            metric("digitserve_resident_memory_bytes", {("workers",): 2e8, ("supervisor",): 1e8}),
            metric("digitserve_certificate_expiry_timestamp_seconds", math.nan),
            metric("digitserve_http_requests", {labels: number * len(texts) for labels, number in http.items()}),
        ],
    )
    registry.register(collector)
    block = collector.new_block()
    for seed in seeds:
        fill(block, seed, most)
        texts.append(generate_latest(registry).decode())
    collector.retire(block)
    before, after = reversed(texts) if is_reversed else texts
    assert_panel_agrees(panel, before, after, period_s)
