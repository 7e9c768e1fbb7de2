"""Starting what is under test: a worker on a thread, or the whole service as the real command."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from prometheus_client.parser import text_string_to_metric_families

from digitserve.client import CHANNEL_OPTIONS
from digitserve.inference.bundle import find_bundle, read_bundle
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import Worker

PATIENCE_S = 60.0
"""Longest wait for something that must happen; reached only when it never does."""


@dataclass
class RunningWorker:
    """A worker in this process.

    Attributes:
        channel: to its port.
        block: what it counts.
        worker: the worker itself.
    """

    channel: grpc.Channel
    block: Block
    worker: Worker
    address: str

    def classify(self, request: pb.ClassifyRequest, timeout_s: float | None = PATIENCE_S) -> pb.ClassifyResponse:
        """Call ``Classify``."""
        call = self.channel.unary_unary(
            "/digitserve.v1.DigitService/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        return call(request, timeout=timeout_s)

    def raw(self, body: bytes, timeout_s: float | None = PATIENCE_S) -> bytes:
        """Call ``Classify`` with a message of any bytes."""
        return self.channel.unary_unary("/digitserve.v1.DigitService/Classify")(body, timeout=timeout_s)

    def stream(self, requests: Iterable[pb.ClassifyRequest], timeout_s: float | None = PATIENCE_S) -> Any:
        """Call ``ClassifyStream``; the call's iterator gives ``ClassifyStreamResponse`` messages."""
        call = self.channel.stream_stream(
            "/digitserve.v1.DigitService/ClassifyStream",
            pb.ClassifyStreamRequest.SerializeToString,
            pb.ClassifyStreamResponse.FromString,
        )
        return call((pb.ClassifyStreamRequest(request=request) for request in requests), timeout=timeout_s)

    def handled(self, method: str = "Classify") -> dict[str, int]:
        """Return how many calls of a method ended, by code."""
        spec = next(spec for spec in self.block.specs if spec.name == "grpc_server_handled")
        counts = self.block.cells["grpc_server_handled"][:, 0]
        return {
            values[3]: int(count)
            for values, count in zip(spec.label_values, counts, strict=True)
            if values[2] == method and count
        }

    def started(self) -> int:
        """Return how many ``Classify`` calls were taken on."""
        return int(self.block.cells["grpc_server_started"][0, 0])


@contextmanager
def run_worker(models: Path, **changes: object) -> Iterator[RunningWorker]:
    """Run a worker on a thread of this process, and drain it in the end."""
    settings = Settings(models=models, lame_duck_s=0.0, **{"grpc_port": 0, **changes})  # type: ignore[arg-type]
    bundle = read_bundle(find_bundle(models, settings.model, settings.model_version))
    block = Block(bundle.manifest.labels)
    worker = Worker(settings, bundle, block, num_threads=1)
    address = f"127.0.0.1:{worker.listen()}"
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with grpc.insecure_channel(address, options=(("grpc.max_send_message_length", -1),)) as channel:
            yield RunningWorker(channel, block, worker, address)
    finally:
        worker.drain()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the worker did not drain"
        block.close()


@dataclass
class Service:
    """The real command, running.

    Attributes:
        process: of the supervisor.
        grpc_address: host:port.
        http_url: of the HTTP side.
        log: path of its standard error.
    """

    process: subprocess.Popen[str]
    grpc_address: str
    http_url: str
    log: Path
    banner: str

    def get(self, path: str) -> tuple[int, str]:
        """Fetch a page of the HTTP side; return status and text."""
        try:
            with urllib.request.urlopen(self.http_url + path, timeout=PATIENCE_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Scrape /metrics: by sample name, by sorted labels."""
        samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return samples

    def total(self, metric: str, /, **labels: str) -> float:
        """Sum a metric's samples that carry these labels."""
        return sum(value for have, value in self.metrics().get(metric, {}).items() if set(labels.items()) <= set(have))

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def channel(self, *, retries: bool = False) -> grpc.Channel:
        """Open a channel of its own connection, with the service config that the client library has, or without."""
        options = CHANNEL_OPTIONS if retries else CHANNEL_OPTIONS[1:]
        return grpc.insecure_channel(self.grpc_address, options=(("grpc.use_local_subchannel_pool", 1), *options))

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Socket(NamedTuple):
    """The service's end of a TCP connection, as the kernel has it.

    Attributes:
        client: the other end.
        open: false once it is being closed.
        unread_bytes: arrived and not yet read by the service.
        inode: as in the links of /proc/PID/fd.
    """

    client: str
    open: bool
    unread_bytes: int
    inode: str


def sockets(address: str) -> list[Socket]:
    """Return the connections to a port of this machine, open or just closed."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [
        Socket(line[2], line[3] == "01", int(line[4].partition(":")[2], 16), line[9])
        for line in lines
        # The other end's port is 0 where somebody listens.
        if line[1].endswith(port) and not line[2].endswith(":0000")
    ]


def wait_until(condition, what: str) -> None:  # noqa: ANN001
    """Wait for something that must become true."""
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.02)


def command(*arguments: str) -> list[str]:
    """Return the command line of ``digitserve`` in this environment."""
    return [sys.executable, "-m", "digitserve", *arguments]


@contextmanager
def run_service(models: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    """Run ``digitserve serve`` on free ports; wait for its banner, and end it in the end."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            command("serve", "--models", str(models), "--grpc-port", "0", "--http-port", "0", *arguments),
            stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment,
        )  # fmt: skip
    try:
        banner = ""
        for line in process.stdout:  # type: ignore[union-attr]
            banner += line
            if line.strip().startswith("try"):
                break
        assert "digitserve is ready" in banner, f"no banner: {banner}{log.read_text()}"
        grpc_address = re.search(r"gRPC +(\S+)", banner)[1]  # type: ignore[index]
        http_url = re.search(r"HTTP +(\S+)", banner)[1]  # type: ignore[index]
        yield Service(process, grpc_address, http_url, log, banner)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stdout.close()  # type: ignore[union-attr]
