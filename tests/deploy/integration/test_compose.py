"""``deploy/compose.yaml``, as podman-compose reads it."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from digitserve.settings import Settings, environment_variable
from support.manifests import RELEASE
from support.prometheus import DEPLOY

FILE = DEPLOY / "compose.yaml"
SERVICES = ("digitserve", "envoy", "prometheus", "grafana")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the file as podman-compose has parsed it, with defaults and merged parts."""
    parsed = subprocess.run(
        [Path(sys.executable).parent / "podman-compose", "-f", FILE, "config"], capture_output=True, text=True, check=True
    )  # fmt: skip
    loaded: dict[str, Any] = yaml.safe_load(parsed.stdout)
    return loaded


def test_podman_compose_accepts_the_file(compose: dict[str, Any]) -> None:
    """It has the four services, and builds the image of digitserve from the Dockerfile of the repository."""
    assert set(compose["services"]) == set(SERVICES)
    context = Path(compose["services"]["digitserve"]["build"]["context"])
    assert (FILE.parent / context / "Dockerfile").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_hardened(compose: dict[str, Any], name: str) -> None:
    """Read-only, without capabilities and new privileges, with limits, a pinned image, and ports on the loopback interface."""
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["image"].rpartition(":")[2] not in {"", "latest"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "privileged" not in service and "cap_add" not in service


def test_every_mounted_file_exists(compose: dict[str, Any]) -> None:
    """Bind mounts are read-only and name files of the repository; other volumes are declared."""
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source, _, *options = volume.split(":")
            if source.startswith("."):
                assert (FILE.parent / source).exists(), volume
                assert options == ["ro"]
            else:
                assert source in compose["volumes"]


def test_the_files_of_prometheus_and_grafana_are_where_they_look_for_them(compose: dict[str, Any]) -> None:
    """Paths in commands, in the configuration and in the provisioning files are targets of mounts."""
    prometheus, grafana = compose["services"]["prometheus"], compose["services"]["grafana"]
    mounts = {volume.split(":")[1] for one in (prometheus, grafana) for volume in one["volumes"]}
    flags = dict(flag.split("=") for flag in prometheus["command"])
    configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    assert flags["--config.file"] in mounts and flags["--storage.tsdb.path"] in mounts
    assert configuration["rule_files"] == ["rules/*.yaml"] and "/etc/prometheus/rules" in mounts
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/digitserve.yaml").read_text())["providers"]
    assert provider["options"]["path"] in mounts and "/etc/grafana/provisioning" in mounts
    assert (
        grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == "/etc/grafana/dashboards/digitserve.json"
    )


def test_ports_and_environment_agree_with_the_settings(compose: dict[str, Any]) -> None:
    """Prometheus and Envoy use the default ports of the service, and each of its variables is a setting."""
    digitserve = compose["services"]["digitserve"]
    assert digitserve["image"] == f"digitserve:{RELEASE}"
    assert set(digitserve["environment"]) <= {environment_variable(setting) for setting in fields(Settings)}
    (job,) = (
        job
        for job in yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
        if job["job_name"] == "digitserve"
    )
    (discovery,) = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["digitserve"], Settings.http_port)
    envoy = (DEPLOY / "envoy/envoy.yaml").read_text()
    assert f"address: digitserve, port_value: {Settings.grpc_port}" in envoy
    (published,) = compose["services"]["envoy"]["ports"]
    assert f"port_value: {published.rpartition(':')[2]}" in envoy
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    networks = [compose["services"][name]["networks"] for name in SERVICES]
    assert all("service" in attached for attached in networks)


def test_the_service_gets_time_to_stop(compose: dict[str, Any]) -> None:
    """The container is killed only after the grace period of the service."""
    digitserve = compose["services"]["digitserve"]
    grace_s = float(digitserve["environment"]["DIGITSERVE_GRACE_S"])
    assert float(digitserve["stop_grace_period"].removesuffix("s")) > grace_s + 2


def test_envoy_has_a_thread_per_cpu_of_its_limit(compose: dict[str, Any]) -> None:
    """Not one per CPU of the host, whose threads would compete for the quota and may exceed the limit of processes."""
    envoy = compose["services"]["envoy"]
    flags = envoy["command"]
    assert flags[flags.index("--concurrency") + 1] == envoy["deploy"]["resources"]["limits"]["cpus"]
