"""The custom Collector that shows Prometheus the sum over all workers, the dead included.

Lives in the supervisor, whose one thread makes, retires and reads the blocks of ``metrics``. Never
``prometheus_client``'s multiprocess mode: its files of dead processes degrade every scrape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from digitserve.telemetry.block import CODES, METHODS, UNAVAILABLE, Block, Cells, Spec, specs


class ServiceCollector(Collector):
    """Renders the sum over all workers, the dead included; registered with an injected registry.

    Lives in the supervisor, whose thread makes, retires and reads the blocks.
    """

    def __init__(self, labels: Sequence[str], supervised: Callable[[], Iterable[Metric]]) -> None:
        """Start with no worker.

        Args:
            labels: of the model being served.
            supervised: gives the metrics that the supervisor itself knows.
        """
        self._labels = labels
        self._specs = specs(labels)
        self._supervised = supervised
        self._living: list[Block] = []
        self._dead = {spec.name: np.zeros((len(spec.label_values), spec.width)) for spec in self._specs}

    def new_block(self) -> Block:
        """Make the memory for a worker that is about to start."""
        block = Block(self._labels)
        self._living.append(block)
        return block

    def retire(self, block: Block) -> None:
        """Keep what a worker that has ended counted, and give its memory back.

        Calls that it took on and never ended broke with its connections: their callers saw UNAVAILABLE, so that is
        what is counted. Gauges end with the worker.
        """
        self._living.remove(block)
        cells = {name: values.copy() for name, values in block.cells.items()}
        handled = cells["grpc_server_handled"].reshape(len(METHODS), len(CODES))
        handled[:, UNAVAILABLE] += np.maximum(0, cells["grpc_server_started"][:, 0] - handled.sum(axis=1))
        for spec in self._specs:
            if spec.kind in {"counter", "histogram"}:
                self._dead[spec.name] += cells[spec.name]
        block.close()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, summed over workers."""
        for spec in self._specs:
            if spec.kind != "internal":
                total = sum((block.cells[spec.name] for block in self._living), start=self._dead[spec.name])
                yield _family(spec, total)
        yield from self._supervised()


def _family(spec: Spec, cells: Cells) -> Metric:
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.text, labels=spec.label_names)
        for values, row in zip(spec.label_values, cells, strict=True):
            histogram.add_metric(values, _buckets(spec.buckets, row[:-1]), float(row[-1]))
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if spec.kind == "counter":
        family = CounterMetricFamily(spec.name, spec.text, labels=spec.label_names)
    else:
        family = GaugeMetricFamily(spec.name, spec.text, labels=spec.label_names)
    for values, row in zip(spec.label_values, cells, strict=True):
        # Codes that never came would make 136 lines of zeros a scrape.
        if row[0] or spec.name != "grpc_server_handled" or values[-1] == "OK":
            family.add_metric(values, float(row[0]))
    return family


def _buckets(bounds: tuple[float, ...], counts: Cells) -> list[tuple[str, float]]:
    return [(bound, float(count)) for bound, count in zip((*map(str, bounds), "+Inf"), counts.cumsum(), strict=True)]
