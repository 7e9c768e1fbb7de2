"""The shipped configuration and rules of Prometheus, checked by promtool."""

import subprocess
from typing import Any

import pytest
import yaml

from support.prometheus import RULES, SHIPPED, command, shipped_rules

TESTS = sorted((SHIPPED / "tests").glob("*.yaml"))


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=SHIPPED
    )


def checks_of(kind: str) -> list[dict[str, Any]]:
    """Return the checks of a kind in the unit tests of the rules."""
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    return [check for test in tests for check in test.get(kind, ())]


def test_the_configuration_is_valid() -> None:
    """Prometheus starts with the shipped configuration, and promtool's lints report nothing."""
    checked = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("rules found") == len(RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_pass(path: Any) -> None:
    """Recording rules compute what their comments say; alerts fire in time, and only then."""
    checked = promtool("test", "rules", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_recording_rule_has_a_unit_test() -> None:
    """The unit tests state the value of each recorded series."""
    checked = " ".join(
        check["expr"] + str(check["exp_samples"]) for check in checks_of("promql_expr_test") if check["exp_samples"]
    )
    assert [rule["record"] for rule in shipped_rules() if "record" in rule and rule["record"] not in checked] == []


def test_every_alert_has_unit_tests_for_both_sides() -> None:
    """For each alert, and each severity and window of it, there is a case in which it fires, and one in which none does."""
    checks = checks_of("alert_rule_test")
    fired = {
        (check["alertname"], alert["exp_labels"]["severity"], alert["exp_labels"].get("window"))
        for check in checks for alert in check["exp_alerts"]
    }  # fmt: skip
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    alerts = [rule for rule in shipped_rules() if "alert" in rule]
    assert {(rule["alert"], rule["labels"]["severity"], rule["labels"].get("window")) for rule in alerts} == fired
    assert {rule["alert"] for rule in alerts} <= silent
