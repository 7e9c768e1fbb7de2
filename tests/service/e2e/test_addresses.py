"""The host setting: on which addresses the service listens, and how the commands with the same environment reach it."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, Service, command, run_service

NAME, ADDRESS = "digits.test", "192.0.2.7"


class Machine:
    """A service in a network namespace of its own, where a name has an address that is not one of the loopback interface.

    Attributes:
        service: the service.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self._image = folder / "seven.png"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("DIGITSERVE_")}
        Image.fromarray(echo_image(7)).save(self._image)

    def run(self, name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of ``digitserve`` beside the service; ``classify`` gets an image."""
        files = [str(self._image)] if name == "classify" else []
        inside = ["nsenter", "--net", "--mount", "--target", str(self.service.process.pid)]
        return subprocess.run(
            [*inside, *command(name, *arguments, *files)],
            env=self._environment | environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip


@contextmanager
def run_machine(folder: Path, host: str) -> Iterator[Machine]:
    """Run a service on ports 50051 and 8080 of a host of its namespace."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs root, unshare, nsenter and ip")
    write_echo_bundle(folder)
    names = folder / "hosts"
    names.write_text(f"{ADDRESS} {NAME}\n127.0.0.1 localhost\n")
    script = 'ip link set lo up && ip address add "$0" dev lo && mount --bind "$1" /etc/hosts && shift && exec "$@"'
    wrapper: Sequence[str] = ("unshare", "--net", "--mount", "sh", "-c", script, ADDRESS, str(names))
    ports = ("--grpc-port", "50051", "--http-port", "8080")
    with run_service(folder, folder / "log", "--workers", "1", "--host", host, *ports, wrapper=wrapper) as service:
        yield Machine(service, folder)


def test_a_host_name_of_this_machine(tmp_path: Path) -> None:
    """The commands with the settings of the service reach it under any name, and use no proxy, although one is set."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:1")
    with run_machine(tmp_path, NAME) as machine:
        for arguments in (("healthcheck",), ("healthcheck", "--service", ""), ("classify",)):
            done = machine.run(*arguments, **proxies, DIGITSERVE_HOST=NAME)
            assert done.returncode == 0, done.stdout + done.stderr
        other = machine.run("classify", "--address", NAME, **proxies)
        assert other.returncode == 3
        assert "connections use the proxy in grpc_proxy, except to hosts in no_proxy" in other.stderr
        direct = machine.run("classify", "--address", NAME, **proxies, no_proxy=".test")
        assert direct.returncode == 0, direct.stderr


def test_all_addresses(tmp_path: Path) -> None:
    """With ``::`` both ports accept IPv6 and IPv4."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6")
    with run_machine(tmp_path, "::") as machine:
        assert machine.run("healthcheck", DIGITSERVE_HOST="::").returncode == 0
        for address in ("127.0.0.1", ADDRESS, "[::1]"):
            done = machine.run("classify", "--address", address)
            assert done.returncode == 0, done.stderr
        for host in ("127.0.0.1", ADDRESS, "::1"):
            done = machine.run("healthcheck", DIGITSERVE_HOST=host)
            assert (done.returncode, done.stderr) == (0, "")
