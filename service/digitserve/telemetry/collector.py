"""What Prometheus reads: the sum over all workers, including those that have ended.

Lives in the supervisor. prometheus_client's multiprocess mode is not used: the files that ended processes leave behind
slow down every scrape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from digitserve.protocol.names import SERVICE_FAULTS, Code
from digitserve.telemetry.block import METHODS, Block, Cells, CloseReason, Spec, specs

Rows = dict[tuple[str, ...], Cells]
"""The cells of each series of a metric, by its label values."""

_CODES_FROM_START = {code.label for code in (Code.OK, *SERVICE_FAULTS)}
"""Codes that are shown before they occur: alerts compute rates of them, and a rate needs the zero before the first event."""

_INTERNAL = list(CloseReason).index(CloseReason.INTERNAL)


class ServiceCollector(Collector):
    """Sums the blocks of all workers; registered with the supervisor's registry.

    Owned by the supervisor, whose one thread creates, retires and reads the blocks.
    """

    def __init__(self, labels: Sequence[str], supervisor_metrics: Callable[[], Iterable[Metric]]) -> None:
        """Start without a worker.

        Args:
            labels: of the model being served. A model that is activated later may have others.
            supervisor_metrics: returns the metrics that are not in a block.
        """
        self._labels = tuple(labels)
        self._supervisor_metrics = supervisor_metrics
        self._running: list[Block] = []
        # By labels, because workers have the same cells only if their models have the same labels.
        self._ended: dict[tuple[str, ...], dict[str, Cells]] = {}
        self._add_labels(self._labels)

    def new_block(self, labels: Sequence[str] | None = None) -> Block:
        """Create the memory for a worker that is about to start.

        Args:
            labels: of its model, if they may differ from those of the first one.
        """
        labels = self._labels if labels is None else tuple(labels)
        block = Block(labels)
        self._add_labels(labels)
        self._running.append(block)
        return block

    def retire(self, block: Block) -> None:
        """Keep the counts of a worker that has ended, and free its memory.

        RPCs that it started and did not complete ended with its connections. Their callers got UNAVAILABLE, so they
        are counted with this code, and its open connections as closed with the reason ``internal``. Gauges of the worker are
        dropped.

        Raises:
            ValueError: the block was already retired.
        """
        self._running.remove(block)
        cells = {name: values.copy() for name, values in block.cells.items()}
        handled = cells["grpc_server_handled"].reshape(len(METHODS), len(Code))
        handled[:, Code.UNAVAILABLE] += np.maximum(0, cells["grpc_server_started"][:, 0] - handled.sum(axis=1))
        closed = cells["digitserve_connections_closed"][:, 0]
        closed[_INTERNAL] += cells["digitserve_connections_accepted"][0, 0] - closed.sum()
        ended = self._ended[block.labels]
        for spec in block.specs:
            if spec.kind in {"counter", "histogram"}:
                ended[spec.name] += cells[spec.name]
        block.close()

    def collect(self) -> Iterator[Metric]:
        """Yield each metric, summed over workers."""
        for spec, rows in self.totals():
            if spec.kind != "internal":
                yield _family(spec, rows)
        yield from self._supervisor_metrics()

    def totals(self) -> Iterator[tuple[Spec, Rows]]:
        """Yield each metric with the cells of its series, summed over workers."""
        for same in zip(*map(specs, self._ended), strict=True):
            rows: Rows = {}
            for labels, spec in zip(self._ended, same, strict=True):
                running = (block.cells[spec.name] for block in self._running if block.labels == labels)
                for values, cells in zip(
                    spec.label_values, sum(running, start=self._ended[labels][spec.name]), strict=True
                ):
                    rows[values] = rows[values] + cells if values in rows else cells
            yield same[0], rows

    def _add_labels(self, labels: tuple[str, ...]) -> None:
        if labels not in self._ended:
            self._ended[labels] = {spec.name: np.zeros((len(spec.label_values), spec.width)) for spec in specs(labels)}


def _family(spec: Spec, rows: Rows) -> Metric:
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.text, labels=spec.label_names)
        for values, row in rows.items():
            histogram.add_metric(values, _buckets(spec.buckets, row[:-1]), float(row[-1]))
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if spec.kind == "counter":
        family = CounterMetricFamily(spec.name, spec.text, labels=spec.label_names)
    else:
        family = GaugeMetricFamily(spec.name, spec.text, labels=spec.label_names)
    for values, row in rows.items():
        # Other codes that have not occurred would add a hundred lines of zeros to each scrape.
        if row[0] or "grpc_code" not in spec.label_names or values[-1] in _CODES_FROM_START:
            family.add_metric(values, float(row[0]))
    return family


def _buckets(bounds: tuple[float, ...], counts: Cells) -> list[tuple[str, float]]:
    return [(bound, float(count)) for bound, count in zip((*map(str, bounds), "+Inf"), counts.cumsum(), strict=True)]
