"""The whole service on the native transport while workers fail and while it stops: each call ends, and no answer is wrong."""

import os
import signal
import socket
from pathlib import Path

import pytest

from support.bundles import write_echo_bundle
from support.load import Load
from support.serving import PATIENCE_S, run_service, wait_until

NATIVE = ("--transport", "native")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


def test_killed_and_stopped_workers_lose_only_their_calls(models: Path, tmp_path: Path) -> None:
    """One worker is killed and another one stopped under load: callers get their own answers, or UNAVAILABLE for calls
    in flight on that worker. Afterwards all callers get answers again, and each started call is counted as ended.
    """
    with run_service(models, tmp_path / "log", "--workers", "2", "--stall-s", "1", *NATIVE) as service:
        with Load(service, 8) as keeping, Load(service, 2, reconnect=True) as reconnecting:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                answered = keeping.outcomes["OK"], reconnecting.outcomes["OK"]
                wait_until(lambda kept=answered[0]: keeping.outcomes["OK"] >= kept + 100, "100 answers")
                failing = service.workers()[0]
                os.kill(failing, number)
                wait_until(lambda pid=failing: pid not in service.workers(), "the worker has ended")
                wait_until(lambda: service.total("digitserve_ready_workers") == 2, "it is replaced")
            answered = keeping.outcomes["OK"], reconnecting.outcomes["OK"]
            wait_until(lambda: keeping.outcomes["OK"] >= answered[0] + 100, "callers with a connection get answers")
            wait_until(lambda: reconnecting.outcomes["OK"] >= answered[1] + 20, "callers with a new one get answers")

        assert set(keeping.outcomes | reconnecting.outcomes) <= {"OK", "UNAVAILABLE"}
        # Each caller has one call at a time: of a worker's calls, one per caller can fail, and those of its next connection.
        assert keeping.outcomes["UNAVAILABLE"] <= 2 * 2 * 8
        started = service.total("grpc_server_started_total", grpc_method="Classify")
        assert service.total("grpc_server_handled_total", grpc_method="Classify") == started
        assert service.total("digitserve_worker_restarts_total") == 2


def test_clients_are_refused_at_the_end_of_the_service(models: Path, tmp_path: Path) -> None:
    """When the service stops under load, each call ends with its answer or UNAVAILABLE, also those on connections that no
    worker accepted; idle connections are closed, and new ones are refused.
    """
    with run_service(models, tmp_path / "log", "--workers", "1", "--lame-duck-s", "0", *NATIVE) as service:
        host, _, port = service.grpc_address.rpartition(":")
        idle = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        with (
            Load(service, 4, wait_for_ready=False) as keeping,
            Load(service, 4, wait_for_ready=False, reconnect=True) as reconnecting,
        ):
            wait_until(lambda: reconnecting.outcomes["OK"] >= 50, "50 answers")
            assert service.stop() == 0
            refused = reconnecting.outcomes["UNAVAILABLE"]
            wait_until(
                lambda: reconnecting.outcomes["UNAVAILABLE"] >= refused + 20, "callers are refused and do not wait"
            )

        assert set(keeping.outcomes | reconnecting.outcomes) <= {"OK", "UNAVAILABLE"}
        with idle:
            while idle.recv(1 << 16):
                pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
