"""The log of the whole service: each event is one line. All processes and libraries use the same format."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from digitserve.v1 import digits_pb2 as pb
from support.bundles import write_echo_bundle
from support.load import CLASSIFY
from support.serving import PATIENCE_S, run_service, wait_until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

PIXELS = (b"recognisable" * 66)[:784]

FAULTS = """
import os, signal, threading, warnings

def fail():
    raise RuntimeError("deliberate failure")

def on_signal(*_):
    threading.Thread(target=fail).start()
    warnings.warn("deliberate warning")
    os.write(2, b"printed by a library\\nin two lines\\n")

signal.signal(signal.SIGUSR1, on_signal)
"""
"""A ``sitecustomize``: at SIGUSR1, a process has an uncaught exception, a warning, and output of a C library."""


def test_every_event_is_one_json_line(tmp_path: Path) -> None:
    """Lines of requests, uvicorn, warnings, uncaught exceptions, C libraries and crashes parse as JSON with the same first fields. A
    failed call has exactly one line with the trace of its caller. No line contains pixels.
    """
    models = tmp_path / "models"
    write_echo_bundle(models)
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    paths = os.pathsep.join([str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    arguments = ("--workers", "1", "--lame-duck-s", "0", "--log-slow-s", "1e-9")
    with run_service(models, tmp_path / "log", *arguments, PYTHONPATH=paths) as service:
        with service.channel() as channel:
            classify = channel.unary_unary(CLASSIFY)
            classify(pb.ClassifyRequest(pixels=PIXELS).SerializeToString(), timeout=PATIENCE_S)
            metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("x-request-id", 'id"7=\\n'))
            body = pb.ClassifyRequest(pixels=PIXELS[:700]).SerializeToString()
            with pytest.raises(grpc.RpcError):
                classify(body, timeout=PATIENCE_S, metadata=metadata)
        assert service.get("/nonesuch")[0] == 404
        host, _, port = service.http_url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"recognisable\x00\r\n\r\n")
            client.recv(1)
        (worker,) = service.workers()
        os.kill(worker, signal.SIGUSR1)
        wait_until(lambda: "printed by a library" in service.log.read_text(), "output of the worker is logged")
        os.kill(worker, signal.SIGSEGV)
        wait_until(lambda: "ended unexpectedly" in service.log.read_text(), "the crash is logged")
        assert service.stop() == 0

    log = service.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert all([*line][:5] == ["time", "level", "logger", "message", "pid"] for line in lines)
    assert "recognisable" not in log

    (failed,) = [line for line in lines if line.get("trace_id") == TRACE]
    assert (failed["message"], failed["span_id"], failed["request_id"]) == ("call failed", SPAN, 'id"7=\\n')
    assert (failed["pid"], failed["worker"], failed["logger"]) == (worker, 0, "digitserve.requests")
    assert only(lines, "message", "slow call")["images"] == 1
    assert only(lines, "message", "HTTP request failed")["code"] == 404
    assert only(lines, "logger", "uvicorn.error")["message"] == "Invalid HTTP request received."
    assert "deliberate warning" in only(lines, "logger", "py.warnings")["message"]
    assert only(lines, "message", "a thread failed")["exception"].endswith("RuntimeError: deliberate failure")
    printed, crash = [line for line in lines if line["message"] == "output of a worker"]
    assert printed["output"] == "printed by a library\nin two lines"
    assert crash["output"].startswith("Fatal Python error: Segmentation fault")
    assert only(lines, "message", "worker ended unexpectedly")["worker_pid"] == worker


def only(lines: list[dict[str, Any]], name: str, value: str) -> dict[str, Any]:
    """Return the one line whose field has this value."""
    (line,) = [line for line in lines if line.get(name) == value]
    return line
