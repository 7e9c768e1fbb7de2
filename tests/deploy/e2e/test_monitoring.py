"""The shipped rules and dashboard with a real Prometheus, two real instances and real traffic.

One instance has a shadow version and a short queue, the other one TLS. Targets, intervals and ``for`` differ from what is
shipped: see ``support.prometheus``.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, GET_MODEL, READ
from digitserve.v1 import digits_pb2 as pb
from support.certificates import make_certificate
from support.digits import MODELS, scanned_digits
from support.load import Callers
from support.prometheus import DEPLOY, Prometheus, command, run_prometheus, shipped_rules
from support.serving import PATIENCE_S, Service, run_service, wait_until

MAX_PENDING_IMAGES = 64
VARIABLES = {
    "$job": "digitserve",
    "$namespace": ".*",
    "$instance": ".*",
    "$__rate_interval": "30s",
    "$__interval": "30s",
}


class Traffic(Callers):
    """Calls that all panels show: digits, other images, readings, invalid and unknown calls, streams, the HTTP API."""

    def __init__(self, service: Service) -> None:
        super().__init__(1)
        self._service = service
        digits, _ = scanned_digits()
        noise = np.random.default_rng(1).integers(0, 256, (2, 28, 28), np.uint8)
        self._digits = [pb.ClassifyRequest(pixels=one.tobytes(), width=8, height=8) for one in digits[:200]]
        self._others = [pb.ClassifyRequest(pixels=one.tobytes()) for one in (*noise, np.zeros((28, 28), np.uint8))]

    def call(self, caller: int) -> None:
        """Call the service until the end."""
        with self._service.channel() as channel:
            number = 0
            while not self.stopping.is_set():
                number += 1
                self._round(channel, number)
                self.stopping.wait(0.1)

    def _round(self, channel: grpc.Channel, number: int) -> None:
        requests = [*(self._digits[(10 * number + place) % 200] for place in range(10)), self._others[number % 3]]
        classify = channel.unary_unary(CLASSIFY.path, pb.ClassifyRequest.SerializeToString)
        stream = channel.stream_stream(CLASSIFY_STREAM.path, pb.ClassifyStreamRequest.SerializeToString)
        calls = [classify.future(request, timeout=PATIENCE_S) for request in requests]
        calls.append(channel.unary_unary(GET_MODEL.path).future(b"", timeout=PATIENCE_S))
        calls.append(channel.unary_unary("/no.Service/Method").future(b"", timeout=PATIENCE_S))
        calls.append(classify.future(pb.ClassifyRequest(pixels=b"1"), timeout=PATIENCE_S))
        read = channel.unary_unary(READ.path, pb.ReadRequest.SerializeToString)
        calls.append(read.future(pb.ReadRequest(pixels=requests[-1].pixels, height=28, width=28), timeout=PATIENCE_S))
        for call in calls:
            call.exception()
        messages = iter([pb.ClassifyStreamRequest(request=request) for request in requests])
        # Tests end workers, and at last the instance.
        with contextlib.suppress(grpc.RpcError, OSError):
            list(stream(messages, timeout=PATIENCE_S))
            self._service.get("/v1/model")


class Monitored(NamedTuple):
    """Two instances under load, and the Prometheus that scrapes them."""

    prometheus: Prometheus
    clear: Service
    tls: Service


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Start both instances, Prometheus and the traffic."""
    folder = tmp_path_factory.mktemp("monitoring")
    command("prometheus")
    certificate = make_certificate(folder / "certificate", "-nodes", "-days", "90")
    int8 = f"digits-int8/{find_bundle(MODELS, 'digits-int8').name}"
    shadow = ("--shadow", int8, "--max-pending-images", str(MAX_PENDING_IMAGES), "--workers", "1")
    with ExitStack() as stack, ThreadPoolExecutor() as starters:
        starting = [
            starters.submit(stack.enter_context, run_service(MODELS, folder / f"{name}.log", *flags))
            for name, flags in (("clear", shadow), ("tls", ("--workers", "1", *certificate.flags())))
        ]
        clear, tls = (start.result() for start in starting)
        prometheus = stack.enter_context(run_prometheus(folder, [clear, tls]))
        stack.enter_context(Traffic(clear))
        wait_until(lambda: prometheus.targets_up() == 2, "both instances are scraped")
        wait_until(lambda: prometheus.query("digitserve:confidence:mean1w"), "the rules have values")
        yield Monitored(prometheus, clear, tls)


def dashboard_queries() -> list[str]:
    """Return the queries of all panels and annotations of the dashboard, with values of its variables."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/digitserve.json").read_text())
    panels = [one for panel in dashboard["panels"] for one in (panel, *panel.get("panels", []))]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    return queries


def test_promtool_accepts_the_metrics(monitored: Monitored) -> None:
    """Names, types and help texts of ``/metrics`` follow Prometheus's conventions."""
    checked = subprocess.run(
        [command("promtool"), "check", "metrics"], input=monitored.clear.get("/metrics")[1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_recording_rule_has_values(monitored: Monitored) -> None:
    """All rules are evaluated without an error, and each recording rule has at least one value."""
    for rule in shipped_rules():
        if record := rule.get("record"):
            wait_until(lambda record=record: monitored.prometheus.query(record), f"{record} has a value")
    assert {rule["name"]: rule["lastError"] for rule in monitored.prometheus.rules() if rule.get("lastError")} == {}


def test_every_query_of_the_dashboard_has_values(monitored: Monitored) -> None:
    """No panel of the dashboard is empty while the service has traffic of all kinds."""
    for query in dashboard_queries():
        wait_until(lambda query=query: monitored.prometheus.query(query), f"{query} has a value")


def test_the_variables_of_the_dashboard_have_values(monitored: Monitored) -> None:
    """The lists of jobs and instances come from labels that exist."""
    series = monitored.prometheus.query("digitserve_ready_workers")
    assert {one["metric"]["job"] for one in series} == {"digitserve"}
    assert len({one["metric"]["instance"] for one in series}) == 2


def test_a_service_without_faults_raises_no_alert(monitored: Monitored) -> None:
    """Faults of clients, images that are no digits and short streams are not faults of the service. Latency is not checked,
    because the machine may be busy.
    """
    quiet = monitored.prometheus.firing() - {"DigitserveLatencyBudgetBurn", "DigitserveQueueSlow"}
    assert quiet == set()


def test_overload_raises_its_alerts(monitored: Monitored) -> None:
    """Requests that do not fit into the queue raise the alert of overload, and the page of the availability."""
    burst = pb.ClassifyRequest(pixels=bytes(28 * 28 * MAX_PENDING_IMAGES))
    with monitored.clear.channel() as channel:
        classify = channel.unary_unary(CLASSIFY.path, pb.ClassifyRequest.SerializeToString)

        def overloaded() -> bool:
            for call in [classify.future(burst, timeout=PATIENCE_S) for _ in range(40)]:
                call.exception()
            return {"DigitserveOverload", "DigitserveAvailabilityBudgetBurn"} <= monitored.prometheus.firing()

        wait_until(overloaded, "the alerts of overload fire")
    alert = monitored.prometheus.alert("DigitserveAvailabilityBudgetBurn")
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert "requests failed in the last" in alert["annotations"]["description"]


def test_workers_that_end_raise_an_alert(monitored: Monitored) -> None:
    """Workers that are killed repeatedly raise the alert of restarts."""
    service, num_killed = monitored.clear, 0
    while "DigitserveWorkerRestarts" not in monitored.prometheus.firing():
        assert num_killed < 20, "the alert does not fire"
        wait_until(lambda: service.total("digitserve_ready_workers") == 1 and service.workers(), "a worker serves")
        restarts = service.total("digitserve_worker_restarts_total")
        os.kill(service.workers()[0], signal.SIGKILL)
        num_killed += 1
        wait_until(
            lambda restarts=restarts: service.total("digitserve_worker_restarts_total") > restarts,
            "the restart is counted",
        )


def test_instances_that_stop_raise_their_alerts(monitored: Monitored) -> None:
    """One instance that cannot be scraped is a ticket, and none that can be scraped a page."""
    monitored.tls.stop()
    assert monitored.prometheus.alert("DigitserveTargetDown")["labels"]["severity"] == "ticket"
    assert "DigitserveDown" not in monitored.prometheus.firing()
    monitored.clear.stop()
    assert monitored.prometheus.alert("DigitserveDown")["labels"]["severity"] == "page"
