"""Starting a worker on a thread of the test, or the whole service as the real command."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from prometheus_client.parser import text_string_to_metric_families

from digitserve.batching.stepwise import StepReader
from digitserve.client import CHANNEL_OPTIONS
from digitserve.inference.bundle import Manifest, read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, READ, READ_STREAM
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import IDLE_POLL_S, Worker, new_reader

TRANSPORTS = ("grpcio", "native")
"""Values of the setting ``transport``; the tests of the RPCs must pass on each."""

LOCAL = "127.0.0.1"

PATIENCE_S = 60.0
"""Longest wait for a condition; reached only when it never becomes true."""


@dataclass
class RunningWorker:
    """A worker in this process.

    Attributes:
        channel: to its port.
        block: memory of its metrics.
        worker: the worker itself.
        address: host:port.
    """

    channel: grpc.Channel
    block: Block
    worker: Worker
    address: str

    def classify(self, request: pb.ClassifyRequest, timeout_s: float | None = PATIENCE_S) -> pb.ClassifyResponse:
        """Call ``Classify``."""
        call = self.channel.unary_unary(
            CLASSIFY.path, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        return call(request, timeout=timeout_s)

    def raw(self, body: bytes, timeout_s: float | None = PATIENCE_S) -> bytes:
        """Call ``Classify`` with any bytes as its message."""
        return self.channel.unary_unary(CLASSIFY.path)(body, timeout=timeout_s)

    def stream(self, requests: Iterable[pb.ClassifyRequest], timeout_s: float | None = PATIENCE_S) -> Any:
        """Call ``ClassifyStream``; the returned call iterates over ``ClassifyStreamResponse`` messages."""
        call = self.channel.stream_stream(
            CLASSIFY_STREAM.path,
            pb.ClassifyStreamRequest.SerializeToString,
            pb.ClassifyStreamResponse.FromString,
        )
        return call((pb.ClassifyStreamRequest(request=request) for request in requests), timeout=timeout_s)

    def read(self, request: pb.ReadRequest, timeout_s: float | None = PATIENCE_S) -> pb.ReadResponse:
        """Call ``Read``."""
        call = self.channel.unary_unary(READ.path, pb.ReadRequest.SerializeToString, pb.ReadResponse.FromString)
        return call(request, timeout=timeout_s)

    def read_stream(self, requests: Iterable[pb.ReadRequest], timeout_s: float | None = PATIENCE_S) -> Any:
        """Call ``ReadStream``; the returned call iterates over ``ReadStreamResponse`` messages."""
        call = self.channel.stream_stream(
            READ_STREAM.path, pb.ReadStreamRequest.SerializeToString, pb.ReadStreamResponse.FromString
        )
        return call((pb.ReadStreamRequest(request=request) for request in requests), timeout=timeout_s)

    def handled(self, method: str = "Classify") -> dict[str, int]:
        """Return how many calls of a method ended, by code."""
        return {
            labels[3]: int(count)
            for labels, count in self.series("grpc_server_handled").items()
            if labels[2] == method and count
        }

    def stream_messages(self) -> dict[str, int]:
        """Return how many messages of streams ended, by code."""
        return {code: int(count) for (code,), count in self.series("digitserve_stream_messages").items() if count}

    def started(self, method: str = "Classify") -> int:
        """Return how many calls of a method were started."""
        return next(int(n) for labels, n in self.series("grpc_server_started").items() if labels[2] == method)

    def num_images(self) -> int:
        """Return how many images were classified."""
        return int(self.series("digitserve_images")[()])

    def num_pending(self) -> int:
        """Return how many images wait for a batch."""
        return int(self.series("digitserve_pending_images")[()])

    def num_rejected(self) -> int:
        """Return how many requests were rejected."""
        return int(sum(self.series("digitserve_rejected").values()))

    def wait_until_idle(self) -> None:
        """Wait until the worker's loop has waited for an event as long as it ever does, and none has come."""
        last = self.block.heartbeat

        def idle() -> bool:
            nonlocal last
            previous, last = last, self.block.heartbeat
            return last - previous > 0.9 * IDLE_POLL_S

        wait_until(idle, "the worker is idle")

    def series(self, metric: str) -> dict[tuple[str, ...], float]:
        """Return the values of a counter or gauge by its label values."""
        spec = next(spec for spec in self.block.specs if spec.name == metric)
        return dict(zip(spec.label_values, self.block.cells[metric][:, 0].tolist(), strict=True))


@contextmanager
def run_worker(
    models: Path,
    collector: ServiceCollector | None = None,
    new_reader: Callable[[Manifest], StepReader | None] = new_reader,
    **changes: object,
) -> Iterator[RunningWorker]:
    """Run a worker on a thread of this process, and drain it at the end of the ``with`` block."""
    settings = Settings(models=models, **{"grpc_port": 0, "lame_duck_s": 0.0, **changes})  # type: ignore[arg-type]
    bundle = read_bundle(find_bundle(models, settings.model))
    block = collector.new_block() if collector else Block(bundle.manifest.labels)
    # With SO_REUSEPORT, because several workers may share a port.
    address = (LOCAL, settings.grpc_port)
    listener = socket.create_server(address, reuse_port=True) if settings.transport == "native" else None
    worker = Worker(settings, bundle, block, num_threads=1, listener=listener, new_reader=new_reader)
    address = f"{LOCAL}:{worker.listen()}"
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with grpc.insecure_channel(address, options=(("grpc.max_send_message_length", -1),)) as channel:
            yield RunningWorker(channel, block, worker, address)
    finally:
        worker.drain()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the worker did not drain"
        if collector:
            collector.retire(block)
        else:
            block.close()


@dataclass
class Service:
    """The real command, running.

    Attributes:
        process: of the supervisor.
        grpc_address: host:port.
        http_url: of the HTTP port.
        log: path of its standard error.
        context: for HTTPS.
    """

    process: subprocess.Popen[str]
    grpc_address: str
    http_url: str
    log: Path
    banner: str
    context: ssl.SSLContext | None = None

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Fetch a page of the HTTP port; return status and text."""
        request = urllib.request.Request(self.http_url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S, context=self.context) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Scrape /metrics; return values by sample name and sorted labels."""
        samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return samples

    def total(self, metric: str, /, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(value for have, value in self.metrics().get(metric, {}).items() if set(labels.items()) <= set(have))

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def channel(self, *, retries: bool = False) -> grpc.Channel:
        """Open a channel with a separate connection, with or without the retry policy of the client library."""
        options = CHANNEL_OPTIONS if retries else CHANNEL_OPTIONS[1:]
        return grpc.insecure_channel(self.grpc_address, options=(("grpc.use_local_subchannel_pool", 1), *options))

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Socket(NamedTuple):
    """The service's end of a TCP connection, from the kernel's tables.

    Attributes:
        client: the other end.
        open: false once it is closing.
        unread_bytes: arrived and not yet read by the service.
        inode: as in the links of /proc/PID/fd.
    """

    client: str
    open: bool
    unread_bytes: int
    inode: str


def sockets(address: str) -> list[Socket]:
    """Return the connections to a port of this machine, including those that are closing."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [
        Socket(line[2], line[3] == "01", int(line[4].partition(":")[2], 16), line[9])
        for line in lines
        # The other end's port is 0 for a listening socket.
        if line[1].endswith(port) and not line[2].endswith(":0000")
    ]


def is_closed(connection: socket.socket) -> bool:
    """Read to the end, or to what has arrived if the socket does not wait; return whether the server has closed it."""
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


@contextmanager
def stopped_workers(service: Service) -> Iterator[None]:
    """Stop the workers: they answer nothing inside of the ``with`` block, and everything after it."""
    pids = [pid for pid in service.workers() if b"digitserve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_until(condition, what: str) -> None:  # noqa: ANN001
    """Wait until a condition is true."""
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, f"still not true: {what}"
        time.sleep(0.02)


def command(*arguments: str) -> list[str]:
    """Return the command line of ``digitserve`` in this environment."""
    return [sys.executable, "-m", "digitserve", *arguments]


@contextmanager
def run_service(
    models: Path,
    log: Path,
    *arguments: str,
    wrapper: Sequence[str] = (),
    program: Sequence[str | Path] = tuple(command()),
    **environment: str,
) -> Iterator[Service]:
    """Run ``digitserve serve`` on free ports after waiting for its banner; stop it at the end of the ``with`` block.

    Without ``--lame-duck-s`` it drains at once, because no test waits for a load balancer.

    Args:
        models: folder of the models.
        log: gets standard error.
        arguments: further ones of the command.
        wrapper: a command that runs the command of its arguments.
        program: ``digitserve``, by default that of this environment.
        environment: further variables.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                *wrapper, *program,
                "serve", "--models", str(models), "--grpc-port", "0", "--http-port", "0", *arguments,
            ],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {"DIGITSERVE_LAME_DUCK_S": "0"} | environment,
        )  # fmt: skip
    try:
        banner = ""
        for line in process.stdout:  # type: ignore[union-attr]
            banner += line
            if line.strip().startswith("try"):
                break
        assert "digitserve is ready" in banner, f"no banner: {banner}{log.read_text() if log.is_file() else log}"
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
