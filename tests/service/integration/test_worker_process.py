"""The worker as a child process: its messages to the supervisor, and its end."""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digitserve import worker
from digitserve.child_process import AsyncChild, ChannelClosed
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import CLASSIFY
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import EXIT_ORPHANED, EXIT_REFUSED
from support.bundles import LABELS, echo_request
from support.serving import PATIENCE_S

Interact = Callable[[AsyncChild, Block], Awaitable[int]]


def run(settings: Settings, interact: Interact, **environment: str) -> int:
    """Start a worker process, send it its settings, and return the result of ``interact``; kill it if it still runs."""

    async def main() -> int:
        block = Block(LABELS)
        bundle_fd = BundleFiles.read(find_bundle(settings.models, settings.model)).seal()
        with socket.create_server((settings.host, settings.grpc_port), reuse_port=True) as listener:
            fds = {"bundle_fd": bundle_fd, "block_fd": block.fd, "listener_fd": listener.fileno()}
            child = await AsyncChild.start("digitserve.worker", environment=environment, pass_fds=tuple(fds.values()))
        os.close(bundle_fd)
        start = {"settings": settings.to_dict(), "num_threads": 1, **fds}
        try:
            await child.send(start)
            return await asyncio.wait_for(interact(child, block), PATIENCE_S)
        finally:
            child.close()
            child.kill()
            await child.wait()
            block.close()

    return asyncio.run(main())


async def exit_code(child: AsyncChild) -> int:
    """Wait for the end of a worker that sends no more messages."""
    with pytest.raises(ChannelClosed):
        await child.receive()
    return await child.wait()


@pytest.fixture
def settings(models: Path) -> Iterator[Settings]:
    # The socket holds the port, as the supervisor's does: bound with SO_REUSEPORT, and not listening.
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield Settings(models=models, grpc_port=holder.getsockname()[1], lame_duck_s=0.0)


def test_a_worker_serves_until_it_is_asked_to_drain(settings: Settings) -> None:
    """It reports ready with its provider, records in the memory that it inherits, drains when it is asked to, and exits
    with 0.
    """

    async def interact(child: AsyncChild, block: Block) -> int:
        assert await child.receive() == {"event": "ready", "provider": "CPUExecutionProvider"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            body = await channel.unary_unary(CLASSIFY.path)(echo_request(7).SerializeToString(), timeout=PATIENCE_S)
        assert pb.ClassifyResponse.FromString(body).predictions[0].ood_score == 7
        assert block.cells["digitserve_images"][0, 0] == 1
        child.send_last("drain")
        return await child.wait()

    assert run(settings, interact) == 0


def test_a_worker_without_a_supervisor_ends_soon(settings: Settings) -> None:
    """If the channel is closed without "drain", the supervisor has died: there is no lame duck time then."""

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        child.close()
        return await child.wait()

    assert run(replace(settings, lame_duck_s=600.0, grace_s=600.0), interact) == 0


def test_a_worker_that_is_asked_to_drain_is_a_lame_duck_first(settings: Settings) -> None:
    """After "drain" it still accepts calls, although the channel is closed in this direction."""

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        child.send_last("drain")
        assert await child.receive() == {"event": "draining"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            await channel.unary_unary(CLASSIFY.path)(echo_request(7).SerializeToString(), timeout=PATIENCE_S)
        child.kill()
        return await child.wait()

    assert run(replace(settings, lame_duck_s=600.0, grace_s=600.0), interact) == -signal.SIGKILL


def test_a_lame_duck_accepts_calls_until_it_is_asked_to_drain(settings: Settings) -> None:
    """After "lame duck" the health is NOT_SERVING, and calls are accepted, also beyond the lame duck time and after SIGTERM to all
    processes of the service. With "drain" it ends.
    """

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        child.send_soon("lame duck")
        assert await child.receive() == {"event": "draining"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            os.kill(child.pid, signal.SIGTERM)
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
                await channel.unary_unary(CLASSIFY.path)(echo_request(7).SerializeToString(), timeout=PATIENCE_S)
        child.send_last("drain")
        return await child.wait()

    assert run(replace(settings, grace_s=600.0), interact) == 0


def test_a_lame_duck_without_a_supervisor_ends_soon(settings: Settings) -> None:
    """If the channel is closed after "lame duck" without "drain", the supervisor has died."""

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        child.send_soon("lame duck")
        assert await child.receive() == {"event": "draining"}
        child.close()
        return await child.wait()

    assert run(replace(settings, lame_duck_s=600.0, grace_s=600.0), interact) == 0


def test_a_worker_that_hands_over_is_no_lame_duck(settings: Settings) -> None:
    """After "hand over" it drains at once, and a client that watches its health never gets NOT_SERVING: the service continues."""

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            statuses = []
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):  # noqa: PT012 - the loop raises
                async for message in watch:
                    statuses.append(message.status)
                    child.send_last("hand over")
        assert statuses == [health_pb2.HealthCheckResponse.SERVING]
        return await child.wait()

    assert run(replace(settings, lame_duck_s=600.0, grace_s=600.0), interact) == 0


@pytest.mark.parametrize("last", ["drain", None])
def test_a_worker_that_is_not_ready_ends_at_once(settings: Settings, last: str | None) -> None:
    """Nothing was admitted, so it does not even become ready first."""

    async def interact(child: AsyncChild, block: Block) -> int:
        if last is not None:
            child.send_last(last)
        else:
            child.close()
        return await child.wait()

    assert run(settings, interact) == (0 if last else EXIT_ORPHANED)


def test_requests_that_the_grace_period_cuts_are_counted(settings: Settings) -> None:
    """A worker reports how many admitted requests it did not answer; they get UNAVAILABLE."""

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            body = echo_request(*range(4096)).SerializeToString()
            calls = [channel.unary_unary(CLASSIFY.path)(body, timeout=PATIENCE_S) for _ in range(2)]
            while block.cells["digitserve_pending_images"][0, 0] < 4097:  # noqa: ASYNC110 - memory of another process
                await asyncio.sleep(0.001)
            child.send_last("drain")
            assert await child.receive() == {"event": "draining"}
            assert await child.receive() == {"event": "unanswered", "num_requests": 2}
            for call in calls:
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
        return await child.wait()

    assert run(replace(settings, grace_s=0.0, max_batch_size=1, max_pending_images=1 << 15), interact) == 0


class Exited(Exception):
    """The process would have exited."""


def test_a_worker_that_hangs_does_not_outlive_its_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a worker without a supervisor does not stop by itself, its process is ended."""
    calls: list[str] = []

    class HungWorker:
        def abandon(self) -> None:
            calls.append("abandon")

    class ClosedChannel:
        def receive(self) -> None:
            raise ChannelClosed

    def leave(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr("digitserve.worker.time.sleep", lambda seconds: calls.append("wait"))
    monkeypatch.setattr("digitserve.worker.os._exit", leave)
    follower = worker._SupervisorFollower(ClosedChannel())  # type: ignore[arg-type]
    follower.worker = HungWorker()  # type: ignore[assignment]
    with pytest.raises(Exited, match=str(EXIT_ORPHANED)):
        follower.run()
    assert calls == ["abandon", "wait"]


def test_a_worker_that_cannot_serve_says_why(settings: Settings, models: Path) -> None:
    """A bundle that fails a check is reported with the reason, and the worker exits with its own exit code for this."""
    (models / "digits" / "1" / "model.onnx").write_bytes(b"not a graph")

    async def interact(child: AsyncChild, block: Block) -> int:
        message = await child.receive()
        assert message["event"] == "refused"
        assert "sha256" in message["message"]
        return await exit_code(child)

    assert run(settings, interact) == EXIT_REFUSED


def test_output_and_modules_of_others_do_not_affect_a_worker(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text on standard output is no message, and a module in the working directory is not imported."""
    site, directory = tmp_path / "site", tmp_path / "directory"
    site.mkdir()
    directory.mkdir()
    (site / "sitecustomize.py").write_text("print('hello')")
    (directory / "random.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(directory)

    async def interact(child: AsyncChild, block: Block) -> int:
        assert (await child.receive())["event"] == "ready"
        child.close()
        return await child.wait()

    # Without empty entries: one stands for the working directory.
    python_path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    assert run(settings, interact, PYTHONPATH=python_path) == 0
