"""The client library against the real command: every worker gets its share, and what happens to workers goes unseen."""

import asyncio
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve.client import AsyncClient, Client, Framing
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, Service, run_service, sockets, wait_until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


def images_of(first: int, num_images: int) -> NDArray[np.uint8]:
    """Return uint8[N,28,28] whose answers are consecutive numbers."""
    return np.stack([echo_image(number) for number in range(first, first + num_images)])


def connections_of(service: Service) -> dict[int, int]:
    """Return how many open connections each worker holds at the service's port."""
    inodes = {f"socket:[{one.inode}]" for one in sockets(service.grpc_address) if one.open}
    return {
        pid: len(inodes & {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()})
        for pid in service.workers()
    }


def ask_until(stop: Callable[[], bool], kind: str, address: str, outcomes: Counter[str]) -> None:
    """Keep a client classifying, some images of its own at a time, and note how the calls end."""

    def images(turn: int) -> tuple[NDArray[np.uint8], list[int]]:
        return images_of(turn * 50, 50), list(range(turn * 50, turn * 50 + 50))

    def note(predictions: list, expected: list[int]) -> None:
        outcomes["OK" if [one.ood_score for one in predictions] == expected else "WRONG"] += 1

    async def ask() -> None:
        async with AsyncClient(address, images_per_request=9, timeout_s=PATIENCE_S) as client:
            while not stop():
                pixels, expected = images(outcomes.total())
                note(await client.classify(pixels), expected)

    if kind == "async":
        asyncio.run(ask())
    else:
        with Client(address, images_per_request=9, timeout_s=PATIENCE_S) as client:
            while not stop():
                pixels, expected = images(outcomes.total())
                note(client.classify(pixels), expected)


def test_every_worker_gets_its_share(models: Path, tmp_path: Path) -> None:
    """The default pool lies with both workers (to miss one of two has the chance 2^-31), and every connection is used:
    as many as there are calls that were answered one after another.
    """
    with run_service(models, tmp_path / "log", "--workers", "2") as service, Client(service.grpc_address) as client:
        client.model()
        for number in range(31):
            (prediction,) = client.classify(echo_image(number))
            assert prediction.ood_score == number
        held = connections_of(service)

        assert sum(held.values()) == 32
        assert len(held) == 2 and min(held.values()) > 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_end_of_a_worker_goes_unseen(models: Path, tmp_path: Path, kind: str) -> None:
    """While a worker is killed and another drains, a client's every call is answered with its own answers."""
    with run_service(models, tmp_path / "log", "--workers", "2", "--lame-duck-s", "0") as service:
        stop, outcomes, failures = threading.Event(), Counter[str](), []

        def run() -> None:
            try:
                ask_until(stop.is_set, kind, service.grpc_address, outcomes)
            except BaseException as error:
                failures.append(error)
                raise

        asking = threading.Thread(target=run)
        asking.start()
        try:
            wait_until(lambda: outcomes["OK"] >= 20 or failures, "20 calls")
            for how in (signal.SIGKILL, signal.SIGTERM):
                victim, before = service.workers()[0], outcomes.total()
                os.kill(victim, how)
                wait_until(lambda pid=victim: pid not in service.workers(), "the worker is gone")
                wait_until(lambda: service.total("digitserve_ready_workers") == 2, "it is replaced")
                wait_until(lambda seen=before: outcomes.total() >= seen + 20 or failures, "20 more calls")
        finally:
            stop.set()
            asking.join(PATIENCE_S)

    assert failures == []
    assert set(outcomes) == {"OK"}


def test_a_large_request_survives_its_worker(models: Path, tmp_path: Path) -> None:
    """Requests of 1 MB that a worker took with it in its death are sent again, whole: beyond what core keeps by itself."""
    images = np.zeros((64, 256, 256), np.uint8)
    images[:, 100:150, 100:120] = 255
    with (
        run_service(models, tmp_path / "log", "--workers", "1", "--stall-s", "600") as service,
        Client(service.grpc_address, num_connections=1, timeout_s=PATIENCE_S) as client,
    ):
        expected = client.classify(images, framing=Framing.MNIST)
        (victim,) = service.workers()
        # Stopped, it takes the request from the wire and never reads it; then it dies with it.
        os.kill(victim, signal.SIGSTOP)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.classify(images, framing=Framing.MNIST)))
        asking.start()
        wait_until(
            lambda: sum(one.unread_bytes for one in sockets(service.grpc_address)) > 0, "the request is on its way"
        )
        os.kill(victim, signal.SIGKILL)
        asking.join(PATIENCE_S)

    assert answers == [expected]


def test_the_client_outlives_the_service(models: Path, tmp_path: Path) -> None:
    """After the whole service was stopped and started again the same client goes on; a call made in between waits for
    it, and is answered.
    """
    with run_service(models, tmp_path / "first", "--workers", "2", "--lame-duck-s", "0") as service:
        address = service.grpc_address
        with Client(address, timeout_s=PATIENCE_S) as client:
            assert [one.ood_score for one in client.classify(images_of(0, 100))] == list(range(100))
            assert service.stop() == 0
            assert not client.healthy()
            between = []
            asking = threading.Thread(target=lambda: between.append(client.classify(images_of(100, 3))))
            asking.start()
            port = re.search(r"(\d+)$", address)[1]  # type: ignore[index]
            with run_service(models, tmp_path / "second", "--workers", "2", "--grpc-port", port) as again:
                assert again.grpc_address == address
                asking.join(PATIENCE_S)
                assert [one.ood_score for one in between[0]] == [100, 101, 102]
                for first in range(0, 4000, 100):
                    answers = client.classify(images_of(first, 100))
                    assert [one.ood_score for one in answers] == list(range(first, first + 100))
