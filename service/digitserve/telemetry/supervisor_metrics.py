"""Declarations of the metrics that the supervisor knows itself, and how it reports their values.

    Supervisor, HttpConnections, HttpAccess ──metric──▶ ServiceCollector ──▶ /metrics

The metrics of workers are declared in ``block``. Documentation and dashboard are generated from both.
"""

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from digitserve.telemetry.block import Spec

SPECS = (
    Spec(
        "digitserve_model_info", "The model being served; during a reload the old one.", "gauge",
        ("name", "version", "sha256", "provider", "precision"),
    ),
    Spec("digitserve_shadow_info", "The version of --shadow.", "gauge", ("name", "version", "sha256")),
    Spec("digitserve_reloads", "Activations of a version: all workers serve it, or it was refused.", "counter", ("result",)),
    Spec("digitserve_workers", "Workers that should be ready.", "gauge"),
    Spec("digitserve_ready_workers", "Workers that accept requests.", "gauge"),
    Spec(
        "digitserve_worker_restarts", "Workers started in place of one that ended, without those of a reload.", "counter",
    ),
    Spec(
        "digitserve_resident_memory_bytes", "Resident memory; pages that processes share count for each of them.", "gauge",
        ("process",),
    ),
    Spec(
        "digitserve_certificate_expiry_timestamp_seconds",
        "When the certificate in use expires, in seconds since 1970; only with --tls-certificate.", "gauge",
    ),
    Spec("digitserve_reload_failures", "Changes of files that were refused because they are invalid.", "counter", ("files",)),
    Spec("digitserve_http_connections", "Open connections of the HTTP port.", "gauge"),
    Spec(
        "digitserve_http_connections_closed", "Connections of the HTTP port that the service closed.", "counter", ("reason",),
    ),
    Spec("digitserve_http_requests", "Answers of the HTTP API, by path and HTTP status.", "counter", ("path", "code")),
    Spec(
        "digitserve_http_unauthorized", "Requests to the HTTP port without a valid token or client certificate.", "counter",
    ),
)  # fmt: skip

_SPECS = {spec.name: spec for spec in SPECS}


def metric(name: str, values: float | Mapping[tuple[str, ...], float]) -> Metric:
    """Return a declared metric with its values.

    Args:
        name: without the suffix of counters.
        values: one value, or the value of each series by its label values.

    Raises:
        KeyError: no metric of this name is declared.
    """
    spec = _SPECS[name]
    family_type = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = family_type(name, spec.text, labels=spec.label_names)
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric(labels, value)
    return family
