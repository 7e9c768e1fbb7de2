"""The processes that decode image files: when they hang, crash, take too much memory, or are idle."""

import asyncio
import io
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.settings import Settings
from digitserve.v1 import digits_pb2 as pb
from digitserve.web import decoder_pool
from digitserve.web.answers import Failure
from digitserve.web.decoder_messages import Question
from digitserve.web.decoder_pool import Decoder, DecoderPool
from support.serving import PATIENCE_S, wait_until

Use = Callable[[DecoderPool], Awaitable[None]]


def saved(width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (20, 90, 200)).save(file, kind)
    return file.getvalue()


MAX_BYTES = Settings.max_request_bytes

SMALL, LARGE = saved(40, 30, "PNG"), saved(1500, 1200, "PNG")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as long as a busy machine needs."""
    monkeypatch.setattr(decoder_pool, "DECODE_S", PATIENCE_S)
    monkeypatch.setattr(decoder_pool, "WAIT_S", PATIENCE_S)


def with_pool(use: Use) -> None:
    async def run() -> None:
        pool = DecoderPool(MAX_BYTES)
        try:
            await use(pool)
        finally:
            await pool.close()
        assert not pool.pids

    asyncio.run(run())


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def read(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().splitlines()


def test_small_and_large_pictures_have_their_own_process() -> None:
    """A process starts with the first file that needs it; both stay."""

    async def use(pool: DecoderPool) -> None:
        assert not pool.pids
        small = pb.ClassifyRequest.FromString((await pool.decode(SMALL, Question(0, 1))).request)
        assert (small.height, small.width, len(pool.pids)) == (30, 40, 1)
        large = await pool.decode(LARGE, Question(500, 1))
        assert large.reduction == (3, 1200, 1500)
        pids = pool.pids
        await asyncio.gather(*(pool.decode(file, Question(500, 1)) for file in [SMALL, LARGE] * 5))
        assert pool.pids == pids and len(pids) == 2

    with_pool(use)


def test_a_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file gets 429, because a busy machine may be the reason, and the next file another process."""

    async def use(pool: DecoderPool) -> None:
        await pool.decode(SMALL, Question(0, 1))
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(decoder_pool, "DECODE_S", 0.05)
            with pytest.raises(Failure, match="was not decoded within") as caught:
                await pool.decode(SMALL, Question(0, 1))
        assert (caught.value.http_status, caught.value.headers["retry-after"]) == (429, "1")
        assert not runs(pid)
        await pool.decode(SMALL, Question(0, 1))

    with_pool(use)


def test_cpu_time_is_limited_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes too much of it gets 400, however busy the machine is: a JPEG of a thousand scans, each of all pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(decoder_pool, "SMALL_CPU_S", 0.2)

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(Failure, match="takes too much time") as caught:
            await pool.decode(content[:-2] + 1000 * last_scan + content[-2:], Question(0, 1))
        assert caught.value.http_status == 400
        await pool.decode(SMALL, Question(0, 1))

    with_pool(use)


def test_libraries_write_no_log_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of libtiff about a damaged file are not logged: otherwise clients could write log lines."""

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(Failure, match="cannot be decoded"):
            await pool.decode(damaged, Question(0, 1))

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "TIFF", compression="tiff_lzw")
    damaged = file.getvalue()[:20] + b"\xff" * 100 + file.getvalue()[120:]
    with_pool(use)
    assert "code not yet in table" not in "".join(capfd.readouterr())


def test_a_decoder_that_ends_fails_only_its_file() -> None:
    """A crash of a library is reported with 400, and the next file gets another process."""

    async def use(pool: DecoderPool) -> None:
        await pool.decode(SMALL, Question(0, 1))
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        task = asyncio.create_task(pool.decode(SMALL, Question(0, 1)))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Failure, match="the decoder ended") as caught:
            await task
        assert caught.value.http_status == 400
        await pool.decode(SMALL, Question(0, 1))

    with_pool(use)


def test_a_client_that_disconnects_ends_no_decoder() -> None:
    """The file of a client that has disconnected is decoded to its end, and the next file gets its own answer from the same process."""

    async def use(pool: DecoderPool) -> None:
        await pool.decode(SMALL, Question(0, 1))
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        tasks = [
            asyncio.create_task(pool.decode(file, Question(0, 1)))
            for file in (saved(50, 60, "PNG"), SMALL, b"no image")
        ]
        await asyncio.sleep(0.01)
        for task in (tasks[0], tasks[2]):
            task.cancel()
        os.kill(pid, signal.SIGCONT)
        await asyncio.wait(tasks)
        assert pb.ClassifyRequest.FromString(tasks[1].result().request).width == 40
        assert pool.pids == [pid]

    with_pool(use)


def test_memory_is_limited_by_the_kernel() -> None:
    """A file that needs more memory than allowed gets an error, also if a library ends the process; the limit cannot be raised."""
    array = io.BytesIO()
    np.save(array, np.zeros((1, 9000, 4000), np.uint8))

    async def run() -> None:
        decoder = Decoder(1 << 20, 1 << 10, 5.0)
        try:
            with pytest.raises(Exception, match="takes too much memory|the decoder ended"):
                await decoder.decode(array.getvalue(), Question(0, 1))
            await decoder.decode(saved(8, 8, "PNG"), Question(0, 1))
            (limit,) = (line.split()[-3:-1] for line in read(decoder.pid, "limits") if line.startswith("Max data size"))
            assert limit[0] == limit[1] != "unlimited"
            assert read(decoder.pid, "oom_score_adj") == ["1000"]
        finally:
            await decoder.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_the_largest_picture_fits_into_the_memory(kind: str) -> None:
    """Each format is decoded at the limit of its pixels."""
    content = (
        saved(2048, 2048, kind) if kind == "BMP" else saved(3840, 2160, kind)
    )  # a larger BMP exceeds that of bodies

    async def use(pool: DecoderPool) -> None:
        decoded = await pool.decode(content, Question(0 if kind == "JPEG" else 2048, 1))
        assert decoded.request

    with_pool(use)


def test_idle_processes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without files their memory is free; the next file starts one again."""
    monkeypatch.setattr(decoder_pool, "IDLE_S", 0.01)

    async def use(pool: DecoderPool) -> None:
        await pool.decode(SMALL, Question(0, 1))
        await until(lambda: not pool.pids, "the process has ended")
        await pool.decode(SMALL, Question(0, 1))

    with_pool(use)


def test_files_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many files, or a wait that is too long, get 429 with a delay."""

    async def use(pool: DecoderPool) -> None:
        await pool.decode(SMALL, Question(0, 1))
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(decoder_pool, "MAX_WAITING", 2)
        monkeypatch.setattr(decoder_pool, "WAIT_S", 0.05)
        tasks = [asyncio.create_task(pool.decode(SMALL, Question(0, 1))) for _ in range(4)]
        _, waiting = await asyncio.wait(tasks, timeout=PATIENCE_S, return_when=asyncio.FIRST_EXCEPTION)
        while len(waiting) > 1:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        os.kill(pid, signal.SIGCONT)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [one for one in results if isinstance(one, Failure)]
        assert [(one.http_status, one.headers["retry-after"]) for one in failures] == [(429, "1")] * 3

    with_pool(use)


def test_arrays_are_not_copied_beyond_the_limit() -> None:
    """A ``.npy`` file of the largest body is decoded by the process for small pictures: its memory is that of the body."""
    file = io.BytesIO()
    np.save(file, np.zeros((4, 2048, 2040), np.uint8))

    async def use(pool: DecoderPool) -> None:
        request = pb.ClassifyRequest.FromString((await pool.decode(file.getvalue(), Question(0, 4))).request)
        assert request.num_images == 4

    with_pool(use)
