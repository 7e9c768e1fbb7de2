"""The figures of the page's panel, from the ``/metrics`` page of the real service."""

import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from digitserve.client import Client
from support.bundles import echo_image, write_echo_bundle
from support.panel import assert_panel_agrees, run_panel_figures
from support.serving import PATIENCE_S, Service, run_service, wait_until

ACCEPT = "text/plain; version=0.0.4"


def post(service: Service, query: str, body: bytes) -> int:
    """Classify a body; return the HTTP status."""
    try:
        return urllib.request.urlopen(f"{service.http_url}/v1/classify{query}", body, timeout=PATIENCE_S).status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_running_service(tmp_path: Path) -> None:
    """The panel reads what the service writes, and shows what was done: calls, batches, answers of the HTTP API, a worker that was
    replaced. Its figures are those of ``digitserve top``.
    """
    write_echo_bundle(tmp_path)
    with run_service(tmp_path, tmp_path / "log", "--workers", "1") as service, run_panel_figures() as panel:

        def read() -> str:
            return service.get("/metrics", accept=ACCEPT)[1]

        before = read()
        with Client(service.grpc_address) as client:
            client.classify([echo_image(number) for number in range(20)])
        assert post(service, "?height=28&width=28", echo_image(3).tobytes()) == 200
        assert post(service, "?height=28&width=28", b"short") == 400
        after = read()
        figures = assert_panel_agrees(panel, before, after, 10.0)
        assert figures["images"] == {"total": 21, "per_s": pytest.approx(2.1)}
        assert figures["requests"]["total"] == 2 and figures["latencies_s"]["Classify"]["p50"] > 0
        assert figures["http_requests"]["/v1/classify 200"]["total"] == 1 and len(figures["http_requests"]) == 2

        os.kill(service.workers()[0], signal.SIGKILL)
        wait_until(lambda: service.total("digitserve_worker_restarts_total") == 1, "the worker is replaced")
        wait_until(lambda: service.total("digitserve_ready_workers") == 1, "the new worker is ready")
        replaced = assert_panel_agrees(panel, after, read(), 10.0)
        assert replaced["restarts"]["total"] == 1 and replaced["images"]["total"] == 21
        assert not panel.compare(after, read(), 1.0)["restarted"]
