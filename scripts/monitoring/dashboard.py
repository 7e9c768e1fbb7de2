"""The Grafana dashboard of digitserve: which panels it has, in which order.

queries.py ──expressions──▶ panels.py ──builders──▶ this module ──JSON──▶ deploy/grafana/dashboards/digitserve.json
"""

import json

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from monitoring.panels import DATASOURCE, Panel, graph, heat, number, rows
from monitoring.queries import (
    buckets,
    increase,
    mean,
    quantile,
    rate,
    recorded,
    series,
    smallest,
    total,
)

CALLS = 'grpc_method=~"Classify|ModelInfer"'
"""Calls whose latency has an objective."""

LATENCY_THRESHOLD_S = 0.1
"""Of the recording rule digitserve:calls_fast:rate5m."""

GREEN, ORANGE, RED = "green", "orange", "red"


def dashboard_json() -> str:
    """Return the dashboard as JSON."""
    built = (
        dashboard.Dashboard("digitserve").uid("digitserve")
        .description("Service level, requests, batches, workers, answers of the model, drift and readings. Generated: see scripts/monitoring.")
        .tags(["digitserve", "grpc", "inference"]).editable().refresh("30s").time("now-1h", "now").timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "Job", "digitserve_ready_workers"))
        .with_variable(_variable("namespace", "Namespace", 'digitserve_ready_workers{job=~"$job"}', several=True))
        .with_variable(
            _variable(
                "instance", "Instance", 'digitserve_ready_workers{job=~"$job", namespace=~"$namespace"}', several=True
            )
        )
        .annotation(
            dashboard.AnnotationQuery().name("Activation of a model version").datasource(DATASOURCE).enable(True).icon_color("blue")
            .expr('sum by (result) (increase(digitserve_reloads_total{job=~"$job", namespace=~"$namespace"}[$__interval])) > 0')
        )
    )  # fmt: skip
    for title, collapsed, panels in (
        ("Service level", False, _service_level()),
        ("Requests", False, _requests()),
        ("Batches and queue", False, _batches()),
        ("Workers", False, _workers()),
        ("Answers and drift", False, _answers()),
        ("Readings of numbers", True, _readings()),
        ("Shadow version", True, _shadow()),
        ("Connections", True, _connections()),
        ("Files and HTTP port", True, _files()),
    ):
        row = dashboard.Row(title).collapsed(collapsed)
        if collapsed:
            for panel in panels:
                row.with_panel(panel)
        built.with_row(row)
        if not collapsed:
            for panel in panels:
                built.with_panel(panel)
    described = json.loads(JSONEncoder().encode(built.build()))
    # Numbers keep links to panels valid until a panel is inserted. Fields of the SDK that Grafana's schema lacks are removed.
    every = [one for panel in described["panels"] for one in (panel, *panel.get("panels", []))]
    for number_of_panel, panel in enumerate(every, start=1):
        panel["id"] = number_of_panel
        if panel.get("options", {}) is None:
            del panel["options"]
    del described["style"]
    for variable in described["templating"]["list"]:
        for name in ("auto", "auto_count", "auto_min", "id"):
            variable.pop(name, None)
    return json.dumps(described, sort_keys=True, indent=2) + "\n"


def _variable(name: str, label: str, metric: str, *, several: bool = False) -> dashboard.QueryVariable:
    """Return a variable with the values of the label of the same name."""
    variable = (
        dashboard.QueryVariable(name).label(label).datasource(DATASOURCE).query(f"label_values({metric}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    )  # fmt: skip
    if several:
        # ".*" also selects series without the label.
        variable.include_all(True).multi(True).all_value(".*")
        variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return variable


def _burn(ratio: str, objective: str) -> str:
    return f"{recorded(ratio)} / (1 - scalar({objective}))"


def _budget(ratio: str, objective: str) -> str:
    return f"1 - {_burn(ratio, objective)}"


def _service_level() -> list[Panel]:
    failed, slow = "digitserve:requests_failed:ratio_rate", "digitserve:calls_slow:ratio_rate"
    available, fast = "digitserve:availability:objective", "digitserve:latency:objective"
    budget = ((RED, None), (ORANGE, 0.0), (GREEN, 0.25))
    return [
        number(
            "Ready workers",
            "Workers that accept requests, of all instances.",
            units.Short,
            total("digitserve_ready_workers"),
            (RED, None),
            (GREEN, 1),
            span=4,
            decimals=0,
        ),
        number(
            "Firing alerts",
            "Alerts of deploy/prometheus/rules/alerts.yaml; docs/how-to/runbook.md says what to do.",
            units.Short,
            'count(ALERTS{alertname=~"Digitserve.*", alertstate="firing"}) or vector(0)',
            (GREEN, None),
            (RED, 1),
            span=4,
            decimals=0,
        ),
        number(
            "Availability, 30 days",
            "Share of valid requests that did not fail by a fault of the service.",
            units.PercentUnit,
            f"1 - {recorded(failed + '30d')}",
            (RED, None),
            (ORANGE, 0.998),
            (GREEN, 0.999),
            span=4,
            decimals=3,
        ),
        number(
            "Budget of failures left",
            "Error budget of 30 days that is left. Below 0, the objective of availability is missed.",
            units.PercentUnit,
            _budget(failed + "30d", available),
            *budget,
            span=4,
            decimals=1,
        ),
        number(
            "Fast calls, 30 days",
            "Share of calls that ended within 0.1 s.",
            units.PercentUnit,
            f"1 - {recorded(slow + '30d')}",
            (RED, None),
            (ORANGE, 0.98),
            (GREEN, 0.99),
            span=4,
            decimals=3,
        ),
        number(
            "Budget of slow calls left",
            "Error budget of 30 days that is left. Below 0, the objective of latency is missed.",
            units.PercentUnit,
            _budget(slow + "30d", fast),
            *budget,
            span=4,
            decimals=1,
        ),
        graph(
            "Burn rate of failures",
            "How many times faster than allowed the error budget is used. At 1 it lasts exactly 30 days.",
            units.Short,
            (_burn(failed + "5m", available), "5 min"),
            (_burn(failed + "1h", available), "1 h"),
            (_burn(failed + "6h", available), "6 h"),
            (_burn(failed + "3d", available), "3 d"),
            span=12,
            limit=14.4,
            limit_text="Above the line for 1 h, somebody is paged.",
        ),
        graph(
            "Burn rate of slow calls",
            "How many times faster than allowed the error budget is used. At 1 it lasts exactly 30 days.",
            units.Short,
            (_burn(slow + "5m", fast), "5 min"),
            (_burn(slow + "1h", fast), "1 h"),
            (_burn(slow + "6h", fast), "6 h"),
            (_burn(slow + "3d", fast), "3 d"),
            span=12,
            limit=14.4,
            limit_text="Above the line for 1 h, somebody is paged.",
        ),
    ]


def _requests() -> list[Panel]:
    latency = "grpc_server_handling_seconds"
    return [
        graph(
            "RPCs started",
            "Calls and streams that arrive, by method.",
            units.RequestsPerSecond,
            (rate("grpc_server_started", "grpc_service", "grpc_method"), "{{grpc_service}}/{{grpc_method}}"),
        ),
        graph(
            "RPCs ended, by code",
            "InvalidArgument, NotFound, Canceled and Unauthenticated are faults of clients; ResourceExhausted and DeadlineExceeded mean overload or deadlines that are too short.",
            units.RequestsPerSecond,
            (rate("grpc_server_handled", "grpc_code"), "{{grpc_code}}"),
            stacked=True,
        ),
        graph(
            "Messages of streams, by code",
            "Answered messages of ClassifyStream and ReadStream. The stream itself ends with OK, even if messages fail.",
            units.RequestsPerSecond,
            (rate("digitserve_stream_messages", "grpc_code"), "{{grpc_code}}"),
            stacked=True,
        ),
        graph(
            "Latency of calls",
            "From the start of a call to its status, of Classify and ModelInfer. Rejected calls count too.",
            units.Seconds,
            *((quantile(share, latency, where=CALLS), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99, 0.999)),
            limit=LATENCY_THRESHOLD_S,
            limit_text="The line is the threshold of the objective.",
        ),
        heat(
            "Latency of calls, distribution",
            "Number of calls in each bucket. Two bands mean two kinds of calls, for example small and large images.",
            buckets(latency, CALLS),
        ),
        graph(
            "Rejected requests, by reason",
            "queue_full and deadline mean overload; draining occurs while instances stop; invalid, not_served and too_large are faults of clients.",
            units.RequestsPerSecond,
            (rate("digitserve_rejected", "reason"), "{{reason}}"),
            stacked=True,
        ),
    ]


def _batches() -> list[Panel]:
    queue, network, preparation = (
        "digitserve_queue_seconds",
        "digitserve_inference_seconds",
        "digitserve_preprocess_seconds",
    )
    return [
        graph(
            "Images",
            "Throughput by instance.",
            "images/s",
            (rate("digitserve_images", "instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Images in a batch",
            "Batches grow with the load: requests that arrive while a batch runs form the next one.",
            "images",
            (mean("digitserve_batch_size"), "mean"),
            (quantile(0.5, "digitserve_batch_size"), "p50"),
            (quantile(0.99, "digitserve_batch_size"), "p99"),
        ),
        graph(
            "Time of a request in the service",
            "Mean seconds: in the queue, then preparation and network of its batch.",
            units.Seconds,
            (mean(queue), "queue"),
            (mean(preparation), "prepare batch"),
            (mean(network), "network"),
            stacked=True,
        ),
        graph(
            "Queue time",
            "From admission to the first batch. The autoscaler of the overlay monitoring uses its mean.",
            units.Seconds,
            (quantile(0.5, queue), "p50"),
            (quantile(0.99, queue), "p99"),
            (f"max({recorded('digitserve:queue_seconds:mean1m')})", "mean, largest of all instances"),
        ),
        graph(
            "Pending images",
            "Images that wait for a batch. Limited by --max-pending-images for each worker.",
            "images",
            (total("digitserve_pending_images", "instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Time of a batch",
            "99th percentile of preparation and network.",
            units.Seconds,
            (quantile(0.99, preparation), "prepare batch, p99"),
            (quantile(0.99, network), "network, p99"),
        ),
    ]


def _workers() -> list[Panel]:
    cpu, images = rate("digitserve_cpu_seconds"), rate("digitserve_images")
    return [
        graph(
            "Workers",
            "Ready workers, and those that should be ready.",
            units.Short,
            (total("digitserve_ready_workers", "instance"), "{{instance}} ready"),
            (total("digitserve_workers", "instance"), "{{instance}} configured"),
            span=8,
        ),
        graph(
            "Worker restarts",
            "Workers that were started in place of one that ended unexpectedly.",
            units.Short,
            (increase("digitserve_worker_restarts", "instance"), "{{instance}}"),
            span=8,
        ),
        graph(
            "Memory",
            "Resident memory. docs/reference/limits.md states the maximum of a worker.",
            units.BytesIEC,
            (total("digitserve_resident_memory_bytes", "instance", "process"), "{{instance}} {{process}}"),
            span=8,
            stacked=True,
        ),
        graph(
            "CPU",
            "Cores that workers use. A worker uses at most its threads.",
            "cores",
            (rate("digitserve_cpu_seconds", "instance"), "{{instance}}"),
            span=12,
            stacked=True,
        ),
        graph(
            "CPU time per image",
            "Falls with larger batches, rises with larger images.",
            units.Seconds,
            (f"{cpu} / ({images} > 0)", "all instances"),
            span=12,
        ),
    ]


def _answers() -> list[Panel]:
    predictions, confidence = "digitserve_predictions", "digitserve_confidence"
    shares = "digitserve:predictions_accepted:ratio_rate"
    return [
        rows(
            "Models served",
            "One row for each instance. All instances should serve the same version; with --precision auto, its precision depends on the processor.",
            series("digitserve_model_info"),
            span=12,
        ),
        graph(
            "Images by verdict",
            "unfamiliar: not recognised as a digit; several: more than one shape; blank: no ink.",
            "images/s",
            (rate(predictions, "verdict"), "{{verdict}}"),
            span=12,
            stacked=True,
        ),
        graph(
            "Share of unfamiliar images",
            "A rise means other images than those of the training data: another camera, another crop, images that are not digits.",
            units.PercentUnit,
            (recorded("digitserve:predictions_unfamiliar:ratio_rate1h"), "1 h"),
            (recorded("digitserve:predictions_unfamiliar:ratio_rate1w"), "1 week"),
            limit=0.2,
            limit_text="The line is the limit of an alert.",
        ),
        graph(
            "Confidence of accepted images",
            "Quantiles of the highest probability.",
            units.PercentUnit,
            *((quantile(share, confidence), f"p{share * 100:g}") for share in (0.05, 0.25, 0.5)),
            (mean(confidence), "mean"),
            maximum=1,
        ),
        graph(
            "Mean confidence",
            "Alerts compare the last hour with the last week.",
            units.PercentUnit,
            (recorded("digitserve:confidence:mean1h"), "1 h"),
            (recorded("digitserve:confidence:mean1w"), "1 week"),
            maximum=1,
        ),
        graph(
            "Labels of accepted images, 6 h",
            "Share of each label.",
            units.PercentUnit,
            (recorded(shares + "6h"), "{{label}}"),
            stacked=True,
            maximum=1,
        ),
        graph(
            "Labels of accepted images, 1 week",
            "Share of each label. The baseline of the alert.",
            units.PercentUnit,
            (recorded(shares + "1w"), "{{label}}"),
            stacked=True,
            maximum=1,
        ),
        graph(
            "Change of the labels",
            "Total variation distance of the labels of 6 hours and of a week: the share of images whose label would have to change.",
            units.PercentUnit,
            (recorded("digitserve:label_shift:distance6h"), "6 h to 1 week"),
            limit=0.15,
            limit_text="The line is the limit of an alert.",
        ),
    ]


def _readings() -> list[Panel]:
    step = "digitserve_reading_step_seconds"
    return [
        graph(
            "Readings",
            "Answered requests of Read and messages of ReadStream, by instance.",
            units.RequestsPerSecond,
            (rate("digitserve_readings", "instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Pending readings",
            "Readings that are admitted and not yet answered. Limited to 1/64 of --max-pending-images for each worker.",
            units.Short,
            (total("digitserve_pending_readings", "instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Time of a step",
            "One step of a reading, without the network: batches wait for it. Steps of large pages are the longest.",
            units.Seconds,
            (quantile(0.5, step), "p50"),
            (quantile(0.99, step), "p99"),
        ),
        graph(
            "Images for readings",
            "Images that the network classified for readings. They are in the batches, and not among the predictions.",
            "images/s",
            (rate("digitserve_reading_images"), "images"),
        ),
        graph(
            "Lines read",
            "Lines that were returned.",
            "lines/s",
            (rate("digitserve_read_lines"), "lines"),
        ),
        graph(
            "Marks read, by kind",
            "A rise of unread marks means other images, or a minimum confidence that is too high for them.",
            "marks/s",
            (rate("digitserve_read_marks", "kind"), "{{kind}}"),
            stacked=True,
        ),
    ]


def _shadow() -> list[Panel]:
    images, difference = "digitserve_shadow_images", "digitserve_shadow_probability_difference"
    return [
        rows("Shadow version", "The version of --shadow. Empty without one.", series("digitserve_shadow_info"), span=6),
        graph(
            "Compared images",
            "Images that both versions have classified, by how the answers differ, and those that the shadow version skipped.",
            "images/s",
            (rate(images, "result"), "{{result}}"),
            (rate("digitserve_shadow_skipped_images"), "skipped"),
            span=6,
            stacked=True,
        ),
        graph(
            "Share of other answers",
            "Examine a sample of these images before you activate the shadow version.",
            units.PercentUnit,
            (f"{rate(images, 'result')} / on () group_left () ({rate(images)} > 0)", "{{result}}"),
            span=6,
            maximum=1,
        ),
        graph(
            "Difference of probabilities",
            "For each image, the largest difference of a probability.",
            units.PercentUnit,
            (quantile(0.5, difference), "p50"),
            (quantile(0.99, difference), "p99"),
            span=6,
        ),
    ]


def _connections() -> list[Panel]:
    return [
        graph(
            "Open connections",
            "Connections of the gRPC port; 0 with --transport grpcio.",
            units.Short,
            (total("digitserve_connections", "instance"), "{{instance}}"),
            span=6,
        ),
        graph(
            "Connections accepted",
            "Many short connections cost CPU time: clients should keep theirs.",
            "connections/s",
            (rate("digitserve_connections_accepted"), "accepted"),
            span=6,
        ),
        graph(
            "Connections closed, by reason",
            "docs/reference/limits.md lists the limit of each reason.",
            "connections/s",
            (rate("digitserve_connections_closed", "reason"), "{{reason}}"),
            span=6,
            stacked=True,
        ),
        graph(
            "Requests refused by the transport",
            "docs/reference/metrics.md lists the reasons.",
            units.RequestsPerSecond,
            (rate("digitserve_streams_refused", "reason"), "{{reason}}"),
            span=6,
            stacked=True,
        ),
    ]


def _files() -> list[Panel]:
    expiry = "digitserve_certificate_expiry_timestamp_seconds"
    return [
        number(
            "Certificate expires in",
            "Of the certificate that expires first, of all instances.",
            units.Seconds,
            f"{smallest(expiry)} - time()",
            (RED, None),
            (ORANGE, 2 * 86400),
            (GREEN, 14 * 86400),
            span=4,
        ),
        graph(
            "Activations and refused files",
            "Activations of a model version by result, and changed files (certificate, tokens) that were refused.",
            units.Short,
            (increase("digitserve_reloads", "result"), "activation {{result}}"),
            (increase("digitserve_reload_failures", "files"), "{{files}} refused"),
            span=5,
        ),
        graph(
            "Connections of the HTTP port",
            "Number of open connections.",
            units.Short,
            (total("digitserve_http_connections", "instance"), "{{instance}}"),
            span=5,
        ),
        graph(
            "HTTP API: answers",
            "Answers of /v1/classify, /v1/read, /v1/model and /v1/openapi.json by HTTP status. Their calls also count as those of gRPC.",
            "1/s",
            (rate("digitserve_http_requests", "path", "code"), "{{path}} {{code}}"),
            span=5,
        ),
        graph(
            "HTTP port: closed and unauthorized",
            "Connections that the service closed, and requests without a valid token or client certificate.",
            "1/s",
            (rate("digitserve_http_connections_closed", "reason"), "closed: {{reason}}"),
            (rate("digitserve_http_unauthorized"), "unauthorized"),
            span=5,
        ),
        graph(
            "Log lines omitted",
            "Failed or slow requests without a log line, because there were more than --log-requests-per-s.",
            "lines/s",
            (rate("digitserve_request_lines_omitted"), "omitted"),
            span=5,
        ),
    ]
