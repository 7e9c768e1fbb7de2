"""The client library and ``digitserve classify`` against the real service: load is spread, worker replacement is transparent."""

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digitserve.client import AsyncClient, Client, Framing
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, Service, command, run_service, sockets, wait_until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


def images_of(first: int, num_images: int) -> NDArray[np.uint8]:
    """Return uint8[N,28,28] whose answers are consecutive numbers."""
    return np.stack([echo_image(number) for number in range(first, first + num_images)])


def connections_of(service: Service) -> dict[int, int]:
    """Return how many open connections each worker has at the service's port."""
    inodes = {f"socket:[{one.inode}]" for one in sockets(service.grpc_address) if one.open}
    return {
        pid: len(inodes & {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()})
        for pid in service.workers()
    }


def classify_until(stop: Callable[[], bool], kind: str, address: str, outcomes: Counter[str]) -> None:
    """Classify 50 images per call until ``stop``, and count how the calls end."""

    def images(turn: int) -> tuple[NDArray[np.uint8], list[int]]:
        return images_of(turn * 50, 50), list(range(turn * 50, turn * 50 + 50))

    def count(predictions: list, expected: list[int]) -> None:
        outcomes["OK" if [one.ood_score for one in predictions] == expected else "WRONG"] += 1

    async def run() -> None:
        async with AsyncClient(address, images_per_request=9, timeout_s=PATIENCE_S) as client:
            while not stop():
                pixels, expected = images(outcomes.total())
                count(await client.classify(pixels), expected)

    if kind == "async":
        asyncio.run(run())
    else:
        with Client(address, images_per_request=9, timeout_s=PATIENCE_S) as client:
            while not stop():
                pixels, expected = images(outcomes.total())
                count(client.classify(pixels), expected)


def test_connections_are_spread_over_all_workers(models: Path, tmp_path: Path) -> None:
    """The default pool has connections to both workers (it misses one of two with probability 2^-31), and successive calls use
    all connections.
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
def test_worker_replacement_is_transparent(models: Path, tmp_path: Path, kind: str) -> None:
    """While a worker is killed and another drains, every call of a client gets its own answers."""
    with run_service(models, tmp_path / "log", "--workers", "2", "--lame-duck-s", "0") as service:
        stop, outcomes, failures = threading.Event(), Counter[str](), []

        def run() -> None:
            try:
                classify_until(stop.is_set, kind, service.grpc_address, outcomes)
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


def test_a_large_request_is_retried_after_a_crash(models: Path, tmp_path: Path) -> None:
    """Requests of 1 MB that were lost with a killed worker are sent again: gRPC core keeps only 256 KiB by default."""
    images = np.zeros((64, 256, 256), np.uint8)
    images[:, 100:150, 100:120] = 255
    with (
        run_service(models, tmp_path / "log", "--workers", "1", "--stall-s", "600") as service,
        Client(service.grpc_address, num_connections=1, timeout_s=PATIENCE_S) as client,
    ):
        expected = client.classify(images, framing=Framing.MNIST)
        (victim,) = service.workers()
        # While stopped, its kernel accepts the request and the worker never reads it.
        os.kill(victim, signal.SIGSTOP)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.classify(images, framing=Framing.MNIST)))
        asking.start()
        wait_until(lambda: sum(one.unread_bytes for one in sockets(service.grpc_address)) > 0, "the request was sent")
        os.kill(victim, signal.SIGKILL)
        asking.join(PATIENCE_S)

    assert answers == [expected]


def test_a_client_survives_a_restart_of_the_service(models: Path, tmp_path: Path) -> None:
    """After the whole service was stopped and started again the same client works; a call made in between waits for the new
    service, and is answered.
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


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_survives_a_killed_worker(models: Path, tmp_path: Path, kind: str) -> None:
    """A worker is killed in the middle of a stream: every image is answered once, in order."""
    answers: list[float] = []

    async def run(address: str, images: Iterator[NDArray[np.uint8]]) -> None:
        async with AsyncClient(address, timeout_s=PATIENCE_S) as client:
            async for prediction in client.classify_stream(images):
                answers.append(prediction.ood_score)

    with run_service(models, tmp_path / "log", "--workers", "2") as service:
        workers = service.workers()

        def images() -> Iterator[NDArray[np.uint8]]:
            for number in range(2000):
                if number == 1000:
                    # The stream is served by one of both.
                    busy = max(workers, key=lambda pid: connections_of(service)[pid])
                    os.kill(busy, signal.SIGKILL)
                yield echo_image(number)

        if kind == "async":
            asyncio.run(run(service.grpc_address, images()))
        else:
            with Client(service.grpc_address, timeout_s=PATIENCE_S) as client:
                answers += [one.ood_score for one in client.classify_stream(images())]

    assert answers == list(range(2000))


def test_the_command_reads_files_and_standard_input(models: Path, tmp_path: Path) -> None:
    """``classify`` reads ``.npy`` and WEBP files and, as ``-``, standard input; ``http://`` in the address is accepted."""
    np.save(tmp_path / "two.npy", np.stack([echo_image(2), echo_image(7)]))
    Image.fromarray(echo_image(5)).save(tmp_path / "five.webp", lossless=True)
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        arguments = command("classify", "--address", f"http://{service.grpc_address}/")

        def lines(*files: str, stdin: bytes = b"") -> list[str]:
            done = subprocess.run([*arguments, *files], cwd=tmp_path, input=stdin, stdout=subprocess.PIPE, check=True)
            return [line.split()[:2] for line in done.stdout.decode().splitlines()]

        assert lines("two.npy", "five.webp") == [["two.npy[0]:", "2"], ["two.npy[1]:", "7"], ["five.webp:", "5"]]
        assert lines("-", stdin=(tmp_path / "five.webp").read_bytes()) == [["-:", "5"]]


def test_a_reader_that_ends_early_ends_the_command_silently(models: Path, tmp_path: Path) -> None:
    """``digitserve classify FILES | head -1`` prints no traceback."""
    np.save(tmp_path / "many.npy", images_of(0, 2000))
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        process = subprocess.Popen(
            command("classify", "--address", service.grpc_address, "many.npy"),
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"many.npy[0]: 0")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 141
        process.stderr.close()
