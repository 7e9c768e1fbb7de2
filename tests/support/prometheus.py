"""Debian's Prometheus with the shipped configuration and rules, as a process of the test."""

import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.serving import LOCAL, PATIENCE_S, Service, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
SHIPPED = DEPLOY / "prometheus"
RULES = sorted((SHIPPED / "rules").glob("*.yaml"))
INTERVAL = "1s"
"""Scrape and evaluation interval in tests."""


def command(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``, or skip the test."""
    return shutil.which(name) or pytest.skip(f"needs {name}; on Debian: apt-get install prometheus")


def shipped_rules() -> list[dict[str, Any]]:
    """Return all rules, of recording and of alerts."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@dataclass
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: of its API.
    """

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression that have a number now, each with ``metric`` and ``value``."""
        found = self._get("query", query=expression)["result"]
        return [series for series in found if not math.isnan(float(series["value"][1]))]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def alert(self, name: str) -> dict[str, Any]:
        """Wait until an alert fires, and return it."""
        wait_until(lambda: name in self.firing(), f"{name} fires")
        alerts = self._get("alerts")["alerts"]
        return next(one for one in alerts if one["labels"]["alertname"] == name and one["state"] == "firing")

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with their health and last error."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets_up(self) -> int:
        """Return how many targets of the service were scraped last time."""
        return len(self.query('up{job="digitserve"} == 1'))

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return json.load(response)["data"]


def _write_configuration(folder: Path, services: Sequence[Service]) -> Path:
    """Write the shipped configuration with three changes: targets, intervals of a second, and alerts that fire at once.

    Alerts fire at once because ``for`` is left out. Windows are as shipped: while Prometheus has less data than a window,
    it computes the rule from what it has.
    """
    configuration = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], INTERVAL)
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    for number, service in enumerate(services):
        scheme, address = service.http_url.split("://")
        # A second job for TLS; the label is that of the first one, as with a ServiceMonitor.
        job = jobs["digitserve"] if not number else {"job_name": f"digitserve-{number}"}
        job.pop("dns_sd_configs", None)
        job |= {"scheme": scheme, "static_configs": [{"targets": [address], "labels": {"job": "digitserve"}}]}
        job["tls_config"] = {"insecure_skip_verify": True}
        jobs[job["job_name"]] = job
    jobs.pop("prometheus")
    configuration["scrape_configs"] = list(jobs.values())
    (folder / "rules").mkdir()
    for path in RULES:
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                rule.pop("for", None)
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    written = folder / "prometheus.yaml"
    written.write_text(yaml.safe_dump(configuration))
    return written


@contextmanager
def run_prometheus(folder: Path, services: Sequence[Service]) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration, scraping these services; see ``_write_configuration``."""
    configuration = _write_configuration(folder, services)
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                command("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={LOCAL}:0",
            ],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        # It listens before it has read its database, and answers 503 until then.
        pattern = re.compile(r'msg="Listening on" address=(\S+)(?s:.*)msg="Server is ready to receive web requests')
        wait_until(lambda: process.poll() is not None or pattern.search(log.read_text()), "Prometheus is ready")
        listening = pattern.search(log.read_text())
        assert listening, log.read_text()
        yield Prometheus(f"http://{listening[1]}")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
