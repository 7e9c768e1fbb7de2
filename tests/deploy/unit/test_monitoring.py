"""Rules, alerts, dashboard, runbook and metric declarations agree with each other."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from digitserve.protocol.names import SERVICE_FAULTS, Code
from digitserve.telemetry import block, supervisor_metrics
from support.prometheus import DEPLOY, SHIPPED, shipped_rules

ROOT = DEPLOY.parent
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/digitserve.json").read_text())
RUNBOOK = ROOT / "docs/how-to/runbook.md"
ALERTS = [rule for rule in shipped_rules() if "alert" in rule]
RECORDS = [rule["record"] for rule in shipped_rules() if "record" in rule]
CLIENT_FAULTS = {
    Code.CANCELLED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED,
    Code.FAILED_PRECONDITION, Code.ABORTED, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED,
}  # fmt: skip
SPECS = [spec for spec in (*block.specs(("0",)), *supervisor_metrics.SPECS) if spec.kind != "internal"]

NOT_ON_THE_DASHBOARD: dict[str, str] = {}
"""Metrics that no panel shows, with the reason."""


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard, also those of collapsed rows."""
    every = [one for panel in DASHBOARD["panels"] for one in (panel, *panel.get("panels", []))]
    return [panel for panel in every if panel["type"] != "row"]


def queries() -> str:
    """Return all queries of the dashboard."""
    return "\n".join(target["expr"] for panel in panels() for target in panel["targets"])


def metric_names(expression: str) -> set[str]:
    """Return the names of the service's metrics in an expression, without the suffixes of their series."""
    names = re.findall(r"\b(?:digitserve|grpc_server)_[a-z_]+", expression)
    return {re.sub("_(total|bucket|sum|count)$", "", name) for name in names}


def test_the_generated_files_are_current() -> None:
    """Dashboard and PrometheusRule are those that the declarations and the rules give."""
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/generate_monitoring.py"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_every_declared_metric_is_on_the_dashboard() -> None:
    """A new metric needs a panel, or a reason why it has none."""
    assert {spec.name for spec in SPECS} - metric_names(queries()) == set(NOT_ON_THE_DASHBOARD)


def test_rules_and_dashboard_read_only_metrics_that_exist() -> None:
    """Each name in a query is declared in the telemetry or recorded by a rule."""
    expressions = "\n".join([queries(), *(rule["expr"] for rule in shipped_rules())])
    assert metric_names(expressions) <= {spec.name for spec in SPECS}
    assert set(re.findall(r"\bdigitserve:\w+:\w+", expressions)) <= set(RECORDS)


def test_names_of_recording_rules_have_three_parts() -> None:
    """Level, metric and operations, as Prometheus recommends; each is recorded once."""
    assert [name for name in RECORDS if not re.fullmatch(r"digitserve:[a-z_]+:[a-z0-9_]+", name)] == []
    assert len(RECORDS) == len(set(RECORDS))


def test_each_code_is_ok_or_a_fault_of_either_side() -> None:
    """The rules of the availability name exactly the codes that are faults of the service; no code is in two groups."""
    faults = "|".join(code.label for code in SERVICE_FAULTS)
    rules = {rule["record"]: rule["expr"] for rule in shipped_rules() if "record" in rule}
    assert set(re.findall('grpc_code=~"(.+?)"', rules["digitserve:requests_failed:rate5m"])) == {faults}
    assert set(re.findall('grpc_code=~"(.+?)"', rules["digitserve:requests_valid:rate5m"])) == {f"OK|{faults}"}
    assert {*SERVICE_FAULTS, *CLIENT_FAULTS, Code.OK} == set(Code)
    assert len(SERVICE_FAULTS) + len(CLIENT_FAULTS) + 1 == len(Code)


def test_the_latency_threshold_is_a_bucket_and_is_shown_everywhere() -> None:
    """The latency threshold is the bound of a bucket, because shares are exact only there. Texts and dashboard state the same one."""
    (rule,) = (rule for rule in shipped_rules() if rule.get("record") == "digitserve:calls_fast:rate5m")
    threshold_s = float(re.search('le="(.+?)"', rule["expr"])[1])  # type: ignore[index]
    assert threshold_s in block.LATENCY_BUCKETS_S
    (panel,) = (panel for panel in panels() if panel["title"] == "Latency of calls")
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == threshold_s
    described = [alert["annotations"]["description"] for alert in ALERTS if "Latency" in alert["alert"]]
    assert all(f"{threshold_s:g} s" in text for text in described)


def test_alerts_have_what_their_receivers_need() -> None:
    """Severity, summary, description and a link to the section of the runbook that is named after the alert."""
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}, alert["alert"]
        assert alert["annotations"]["runbook_url"] == f"docs/how-to/runbook.md#{alert['alert'].lower()}"


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    """Each section says what the alert means, what to look at and what to do."""
    sections = dict(re.findall(r"^## (Digitserve\w+)\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL))
    assert set(sections) == {alert["alert"] for alert in ALERTS}
    for name, text in sections.items():
        for part in ("**Meaning.**", "**Look at.**", "**Do.**"):
            assert part in text, (name, part)


def test_the_runbook_searches_the_log_for_messages_that_exist() -> None:
    """Each text that a command of the runbook searches for is part of a message in the code."""
    code = "".join(path.read_text() for path in (ROOT / "service/digitserve").rglob("*.py"))
    searched = re.findall(r"grep '(.+?)'", RUNBOOK.read_text())
    assert searched and [text for text in searched if text not in code] == []


def test_the_runbook_names_panels_that_exist() -> None:
    """Each panel that the runbook names in quotes is on the dashboard."""
    titles = {panel["title"] for panel in panels()}
    named = [
        title
        for listed in re.findall(r"Panels? ([^.]+)\.", RUNBOOK.read_text())
        for title in re.findall('"([^"]+)"', listed)
    ]
    assert named and [title for title in (" ".join(title.split()) for title in named) if title not in titles] == []


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_is_described(panel: dict[str, Any]) -> None:
    """Each panel has a title, a description and a unit, and its queries use the variables of the dashboard."""
    assert panel["description"]
    assert panel["type"] == "table" or panel["type"] == "heatmap" or panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert "$job" in target["expr"] or "ALERTS" in target["expr"]
        assert panel["type"] != "timeseries" or target["legendFormat"]


def test_panels_do_not_overlap_and_have_numbers() -> None:
    """Panels have distinct ids, fit into the 24 columns and cover different cells."""
    assert len({panel["id"] for panel in panels()}) == len(panels())
    covered: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        covered |= cells


def test_the_prometheus_of_compose_scrapes_often_enough_for_the_autoscaler() -> None:
    """The queue time over a minute needs several samples in it."""
    configuration = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    assert int(configuration["global"]["scrape_interval"].removesuffix("s")) <= 30
