"""Several instances of the service, each with an address of its own on one port, and a name server that has them under one name.

This is what a headless Service of Kubernetes looks like to clients.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.serving import LOCAL, PATIENCE_S, Service, run_service, wait_until

NAME = "digits.test"


class Fleet:
    """Running instances, by address. The name has the addresses of those that were published last.

    Attributes:
        port: of each instance.
        resolver: host:port of the name server.
        instances: those that run.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._hosts = folder / "hosts"
        self._num_started = 0
        self.instances: dict[str, Service] = {}
        self.port = _free_port("127.9.0.1", socket.SOCK_STREAM)
        self.resolver = f"{LOCAL}:{_free_port(LOCAL, socket.SOCK_DGRAM)}"
        self._hosts.touch()
        self._name_server = stack.enter_context(_run_name_server(folder, self._hosts, self.resolver))

    def start(self, number: int, *arguments: str) -> list[str]:
        """Start so many instances at other addresses than all before, publish all that run, and return the new addresses.

        Args:
            number: of instances.
            arguments: further ones of ``digitserve serve``.
        """
        hosts = [f"127.9.0.{self._num_started + 1 + index}" for index in range(number)]
        self._num_started += number
        with ThreadPoolExecutor(number) as threads:
            self.instances.update(
                zip(hosts, threads.map(lambda host: self._start(host, arguments), hosts), strict=True)
            )
        self.publish()
        return hosts

    def start_until(self, number: int) -> None:
        """Start instances until at least so many run."""
        if (missing := number - len(self.instances)) > 0:
            self.start(missing)

    def kill(self, host: str) -> None:
        """End all processes of an instance with SIGKILL, as a machine that fails. The name keeps its address."""
        instance = self.instances.pop(host)
        workers = instance.workers()
        instance.process.kill()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        instance.process.wait(PATIENCE_S)

    def drain(self, host: str) -> int:
        """Stop an instance with SIGTERM, after the name has lost its address; return its exit code."""
        instance = self.instances.pop(host)
        self.publish()
        return instance.stop()

    def publish(self) -> None:
        """Make the name server answer with the addresses of the instances that run."""
        log = self._folder / "dnsmasq.log"
        num_read = log.read_text().count(str(self._hosts))
        self._hosts.write_text("".join(f"{host} {NAME}\n" for host in self.instances))
        self._name_server.send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count(str(self._hosts)) > num_read, "the name server has read the file")

    def num_images(self) -> dict[str, int]:
        """Return how many images each instance has classified."""
        return {host: int(each.total("digitserve_images_total")) for host, each in self.instances.items()}

    def _start(self, host: str, arguments: Sequence[str]) -> Service:
        service = run_service(
            self._folder, self._folder / f"{host}.log", "--workers", "1", "--host", host, "--grpc-port", str(self.port),
            "--lame-duck-s", "1", *arguments,
        )  # fmt: skip
        return self._stack.enter_context(service)


@contextmanager
def run_fleet(folder: Path) -> Iterator[Fleet]:
    """Run the name server, and stop it and the instances at the end of the ``with`` block.

    Args:
        folder: has the models; gets logs.
    """
    if shutil.which("dnsmasq") is None:
        pytest.skip("needs dnsmasq")
    with ExitStack() as stack:
        fleet = Fleet(folder, stack)
        yield fleet
        for instance in fleet.instances.values():
            # All at once; ``run_service`` waits for each.
            instance.process.terminate()


@contextmanager
def _run_name_server(folder: Path, hosts: Path, address: str) -> Iterator["subprocess.Popen[Any]"]:
    host, _, port = address.rpartition(":")
    log = folder / "dnsmasq.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/",
                f"--listen-address={host}", "--bind-interfaces", f"--port={port}", f"--addn-hosts={hosts}", "--pid-file=",
                "--user=", "--log-facility=-",
            ],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or "started" in log.read_text(), "the name server has started")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _free_port(host: str, kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
