"""Figures of a service over a period: the differences of two readings of its ``/metrics`` page.

Plain data, computed on the main thread; ``monitor`` chooses the readings, ``screen`` shows them. ``web/page/figures.js`` is the
same for the page in the browser: same names, same rules, and a test compares them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, MODEL_INFER, READ_STREAM
from digitserve.scrape import Page

QUANTILES = (0.5, 0.9, 0.99)

_CALLS = (CLASSIFY, MODEL_INFER)
_STREAMS = {CLASSIFY_STREAM.name, READ_STREAM.name}
"""Methods of which each call is one classification request; of streams, each message is one."""

_STAGES = {
    "queue": "digitserve_queue_seconds",
    "preprocess": "digitserve_preprocess_seconds",
    "inference": "digitserve_inference_seconds",
}


Estimate = Callable[[Mapping[float, float], float], float | None]


class Count(NamedTuple):
    """A counter.

    Attributes:
        total: since the start of the service.
        per_s: increase per second in the period.
    """

    total: float
    per_s: float


class Distribution(NamedTuple):
    """A histogram in the period.

    Attributes:
        per_s: observations per second.
        mean: None without an observation.
        quantiles: by QUANTILES, None without an observation. Those of times are estimated as Prometheus does; those of batch
            sizes, which are whole numbers, are the upper bounds of their buckets.
    """

    per_s: float
    mean: float | None
    quantiles: tuple[float | None, ...]


@dataclass(frozen=True)
class Figures:
    """What the service did in a period, and its state at the end.

    Attributes:
        period_s: length of the period; 0 for the first reading, which has no rates.
        model: name and version of the model; empty while no worker is ready.
        provider: onnxruntime's execution provider.
        precision: of the network, float32 or int8.
        shadow: name and version of the shadow version; empty without one.
        workers: that run if none is missing.
        ready_workers: that accept requests.
        restarts: workers started in place of one that ended.
        memory_bytes: resident memory, by process.
        cpus: CPUs used by workers.
        connections: open connections.
        pending_images: admitted and not yet in a batch.
        pending_s: seconds until they are done, with the mean time of an image in the period; None if unknown.
        images: classified.
        requests: classification requests that were answered with OK.
        latencies_s: by method with calls, then ``queue``, ``preprocess`` and ``inference``.
        batch_size: images per batch.
        batches: share of the batches by the upper bound of their size, in images.
        errors: RPCs and messages of streams that were not answered with OK, by code.
        http_requests: answers of the HTTP API, by path and HTTP status, such as ``/v1/classify 200``.
        rejected: classification requests rejected, by reason.
        verdicts: predictions by verdict.
        labels: predictions by label.
    """

    period_s: float
    model: str
    provider: str
    precision: str
    shadow: str
    workers: int
    ready_workers: int
    restarts: Count
    memory_bytes: dict[str, float]
    cpus: float
    connections: int
    pending_images: int
    pending_s: float | None
    images: Count
    requests: Count
    latencies_s: dict[str, Distribution]
    batch_size: Distribution
    batches: dict[float, float]
    errors: dict[str, Count]
    http_requests: dict[str, Count]
    rejected: dict[str, Count]
    verdicts: dict[str, Count]
    labels: dict[str, Count]

    def as_json(self) -> dict[str, Any]:
        """Return the figures for programs: rates and totals by name, quantiles by ``p50``, ``p90`` and ``p99``."""
        fields = asdict(self) | {
            "latencies_s": {name: _as_json(one) for name, one in self.latencies_s.items()},
            "batch_size": _as_json(self.batch_size),
            "batches": {"inf" if math.isinf(bound) else f"{bound:g}": share for bound, share in self.batches.items()},
        }
        return {
            name: value._asdict()
            if isinstance(value, Count)
            else {key: one._asdict() if isinstance(one, Count) else one for key, one in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in fields.items()
        }


def _as_json(distribution: Distribution) -> dict[str, float | None]:
    quantiles = {f"p{share * 100:g}": value for share, value in zip(QUANTILES, distribution.quantiles, strict=True)}
    return {"per_s": distribution.per_s, "mean": distribution.mean, **quantiles}


def compare(before: Page, after: Page, period_s: float) -> Figures:
    """Return the figures of a period.

    Args:
        before: at its start; the counters of ``after`` must not be lower.
        after: at its end.
        period_s: its length; 0 if both are the same.
    """
    difference = _Difference(before, after, period_s)
    model, shadow = after.labels("digitserve_model_info"), after.labels("digitserve_shadow_info")
    verdicts = difference.counts("digitserve_predictions_total", "verdict")
    labels = difference.counts("digitserve_predictions_total", "label")
    bounds = difference.buckets("digitserve_batch_size")
    num_batches = sum(bounds.values())
    images, latencies = difference.count("digitserve_images_total"), difference.latencies()
    pending_images = int(after.total("digitserve_pending_images"))
    ready_workers = int(after.total("digitserve_ready_workers"))
    return Figures(
        period_s=period_s,
        model=_model(model),
        provider=model.get("provider", ""),
        precision=model.get("precision", ""),
        shadow=_model(shadow),
        workers=int(after.total("digitserve_workers")),
        ready_workers=ready_workers,
        restarts=difference.count("digitserve_worker_restarts_total"),
        memory_bytes=after.by("digitserve_resident_memory_bytes", "process"),
        cpus=difference.count("digitserve_cpu_seconds_total").per_s,
        connections=int(after.total("digitserve_connections")),
        pending_images=pending_images,
        pending_s=_pending_s(pending_images, ready_workers, images, latencies),
        images=images,
        requests=difference.requests(),
        latencies_s=latencies,
        batch_size=difference.distribution("digitserve_batch_size", upper_bound),
        batches={bound: count / num_batches for bound, count in bounds.items() if count},
        errors=difference.errors(),
        http_requests=difference.http_requests(),
        rejected=_known(difference.counts("digitserve_rejected_total", "reason")),
        verdicts=_known(verdicts),
        labels={label: count for label, count in labels.items() if label},
    )


def _model(labels: Mapping[str, str]) -> str:
    return f"{labels.get('name', '')}/{labels.get('version', '')}" if labels else ""


def _pending_s(
    pending_images: int, ready_workers: int, images: Count, latencies: Mapping[str, Distribution]
) -> float | None:
    if not pending_images:
        return 0.0
    if not images.per_s or not ready_workers:
        return None
    busy = sum(one.per_s * (one.mean or 0.0) for one in (latencies["preprocess"], latencies["inference"]))
    return pending_images * busy / images.per_s / ready_workers


def _known(counts: Mapping[str, Count]) -> dict[str, Count]:
    """Return the counts that are not 0, the largest first."""
    return dict(sorted(((name, one) for name, one in counts.items() if one.total), key=lambda item: -item[1].total))


class _Difference:
    """The increase of the counters between two pages; lives for one call of ``compare``."""

    def __init__(self, before: Page, after: Page, period_s: float) -> None:
        self._before, self._after, self._period_s = before, after, period_s

    def per_s(self, increase: float) -> float:
        return max(0.0, increase) / self._period_s if self._period_s else 0.0

    def count(self, name: str, **labels: str) -> Count:
        total = self._after.total(name, **labels)
        return Count(total, self.per_s(total - self._before.total(name, **labels)))

    def counts(self, name: str, label: str) -> dict[str, Count]:
        before = self._before.by(name, label)
        return {
            key: Count(total, self.per_s(total - before.get(key, 0.0)))
            for key, total in self._after.by(name, label).items()
        }

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return the increase of each bucket."""
        before = self._before.buckets(name, **labels)
        return {
            bound: max(0.0, count - before.get(bound, 0.0))
            for bound, count in self._after.buckets(name, **labels).items()
        }

    def distribution(self, name: str, estimate: Estimate | None = None, **labels: str) -> Distribution:
        buckets = self.buckets(name, **labels)
        number = sum(buckets.values())
        total = self._after.total(f"{name}_sum", **labels) - self._before.total(f"{name}_sum", **labels)
        return Distribution(
            self.per_s(number),
            max(0.0, total) / number if number else None,
            tuple((estimate or quantile)(buckets, share) for share in QUANTILES),
        )

    def requests(self) -> Count:
        parts = [
            self.count(
                "grpc_server_handled_total", grpc_method=method.name, grpc_service=method.service, grpc_code="OK"
            )
            for method in _CALLS
        ]
        parts.append(self.count("digitserve_stream_messages_total", grpc_code="OK"))
        return Count(sum(part.total for part in parts), sum(part.per_s for part in parts))

    def errors(self) -> dict[str, Count]:
        codes = self.counts("grpc_server_handled_total", "grpc_code")
        for code, count in self.counts("digitserve_stream_messages_total", "grpc_code").items():
            calls = codes.get(code, Count(0, 0))
            codes[code] = Count(calls.total + count.total, calls.per_s + count.per_s)
        codes.pop("OK", None)
        return _known(codes)

    def http_requests(self) -> dict[str, Count]:
        name = "digitserve_http_requests_total"
        return _known(
            {
                f"{path} {code}": self.count(name, path=path, code=code)
                for path in self._after.by(name, "path")
                for code in self._after.by(name, "code", path=path)
            }
        )

    def latencies(self) -> dict[str, Distribution]:
        name = "grpc_server_handling_seconds"
        called = self._after.by(f"{name}_count", "grpc_method")
        # A stream takes as long as its client keeps it open.
        methods = [method for method, number in called.items() if number and method not in _STREAMS]
        latencies = {method: self.distribution(name, grpc_method=method) for method in methods}
        return latencies | {stage: self.distribution(metric) for stage, metric in _STAGES.items()}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Return a quantile of a histogram; None without observations.

    Args:
        buckets: number of observations by upper bound, in ascending order of the bounds.
        share: 0 to 1.

    Source: ``histogram_quantile`` of Prometheus: linear interpolation in a bucket. Above the highest finite bound it is that
    bound.
    """
    number = sum(buckets.values())
    if not number:
        return None
    below, lower = 0.0, 0.0
    for bound, count in buckets.items():
        if count and below + count >= share * number:
            return lower if math.isinf(bound) else lower + (bound - lower) * max(0.0, share * number - below) / count
        below += count
        lower = lower if math.isinf(bound) else bound
    # Rounding may leave the rank above all observations.
    return lower


def upper_bound(buckets: Mapping[float, float], share: float) -> float | None:
    """Return the upper bound of the bucket with a quantile, the highest finite one at most; arguments as for ``quantile``."""
    filled = {bound: count for bound, count in buckets.items() if count}
    number, below, found = sum(filled.values()), 0.0, None
    for bound, count in filled.items():
        found = bound if math.isfinite(bound) else max(filter(math.isfinite, buckets), default=0.0)
        below += count
        if below >= share * number:
            break
    return found
