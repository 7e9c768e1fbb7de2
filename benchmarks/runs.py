"""One run of a load on a server, as every comparison takes it: figures checked against the server's own counter.

Used by ``compare`` and ``against``. A round is a dict of figures with names such as ``SERVER/LOAD/rate``.
"""

import math
import os
import platform
import sys
from pathlib import Path

import grpc

from benchmarks import load as loads
from benchmarks.installation import BenchError
from benchmarks.load import LOADS, Load
from benchmarks.peers import Mosec
from benchmarks.servers import Server
from digitserve.inference.bundle import Bundle
from digitserve.protocol.names import CLASSIFY
from digitserve.v1 import digits_pb2 as pb

METRICS = ("rate", "p50_s", "p99_s", "cpu_us")
"""Requests/s, latency percentiles in seconds, and the server's CPU time per request in microseconds."""

CONFIDENCE_TOLERANCE = 1e-4
"""Batches of another size may be summed in another order."""

_ANSWER_TIMEOUT_S = 10.0

Answer = pb.ClassifyResponse


def measure(server: Server, load_name: str, load_cores: str, seconds: float) -> dict[str, float]:
    """Load a server and return its figures, named as in ``METRICS``.

    Raises:
        BenchError: requests failed, or the server counted another number of answers than the load generator.
    """
    load = LOADS[load_name]
    if load.by_h2load or isinstance(server, Mosec):
        return _measure_by_h2load(server, load, load_cores, seconds)
    num_images, cpu_s = server.num_images(), server.cpu_s()
    report = loads.run(load, load_cores, server.grpc_port, server.metrics_url(), seconds)
    num_ok, cpu_s = (server.num_images() - num_images) // load.images, server.cpu_s() - cpu_s
    if report.num_sent != num_ok:
        raise BenchError(
            f"{server.name}, {load_name}: the load generator got {report.num_sent} answers, the server counted {num_ok}"
        )
    if report.was_the_limit:
        print_progress(
            f"{server.name}, {load_name}: the load generator had no CPU time to spare; use more --load-cores"
        )
    return dict(zip(METRICS, (report.rate, report.p50_s, report.p99_s, cpu_s * 1e6 / num_ok), strict=True))


def _measure_by_h2load(server: Server, load: Load, load_cores: str, seconds: float) -> dict[str, float]:
    """Load a server with h2load. It aborts the last requests, so its count differs from the server's, and has no percentiles."""
    num_images, cpu_s = server.num_images(), server.cpu_s()
    rate = loads.run_h2load(
        load, load_cores, server.grpc_port, seconds, http1=isinstance(server, Mosec), scheme=server.scheme
    )
    num_ok, cpu_s = (server.num_images() - num_images) / load.images, server.cpu_s() - cpu_s
    cpu_us = cpu_s * 1e6 / num_ok
    return dict(zip(METRICS, (rate, math.nan, math.nan, cpu_us), strict=True))


def classify_golden(server: Server, bundle: Bundle) -> Answer:
    """Return a server's answer to the golden images of a bundle."""
    request = pb.ClassifyRequest(pixels=bundle.golden.images.tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(CLASSIFY.path, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
        answer: Answer = call(request, timeout=_ANSWER_TIMEOUT_S)
    return answer


def check_same_scheduling(server: Server, expected: Server) -> None:
    """Check that the kernel schedules two servers alike: otherwise one is no floor of the other.

    Raises:
        BenchError: it does not.
    """
    if (got := server.scheduling()) != (wanted := expected.scheduling()):
        raise BenchError(f"{server.name}: got {got}, expected {wanted}, as {expected.name}")


def check_same_answers(name: str, got: Answer, expected: Answer) -> None:
    """Check that two servers answer with the same model, labels, verdicts and confidences.

    Raises:
        BenchError: they do not.
    """
    same = (got.model_name, got.model_version, len(got.predictions)) == (
        expected.model_name, expected.model_version, len(expected.predictions),
    ) and all(
        (one.label, one.verdict) == (other.label, other.verdict)
        and abs(one.confidence - other.confidence) <= CONFIDENCE_TOLERANCE
        for one, other in zip(got.predictions, expected.predictions, strict=False)
    )  # fmt: skip
    if not same:
        raise BenchError(f"{name}: the answer differs: got {got}, expected {expected}")


def describe_setup(bundle: Bundle, cores: str, load_cores: str, rounds: int, seconds: float) -> str:
    """Return a sentence on model, machine and runs."""
    return (
        f"Model {bundle.manifest.name}/{bundle.manifest.version}. {_cpu_model()}, {os.cpu_count()} cores, Linux "
        f"{platform.release()}, Python {platform.python_version()}. Server on core {cores}, load generator on "
        f"{load_cores}. {rounds} rounds, {seconds:g} s per run."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "Unknown CPU")


def print_progress(text: str) -> None:
    """Print progress to standard error."""
    sys.stderr.write(text + "\n")
