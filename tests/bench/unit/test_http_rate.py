"""``python -m benchmarks.http_rate`` without a service: its options, its drawings, and the table of its latencies."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import http_rate
from benchmarks.http_rate import DRAWING_SIDE, FAILED, Samples, drawing, rows


def test_rows_state_rate_latency_and_failures() -> None:
    """A row has requests per second, quantiles in milliseconds, and failed requests by status; closed connections have none."""
    samples = Samples()
    for latency_s in (0.001, 0.002, 0.003):
        samples.add("/readyz, probe", latency_s)
    samples.add("drawing, raw", 0.25, 503)
    samples.add("drawing, raw", 0.25, 503)
    samples.add("drawing, raw", 0.25, FAILED)

    assert rows("pages", samples, 1.5) == [
        "| pages | /readyz, probe | 2 | 2.0 | 3.0 | 3.0 | 3.0 | 0 |",
        "| pages | drawing, raw | 2 | 250.0 | 250.0 | 250.0 | 250.0 | 1 x closed, 2 x 503 |",
    ]


def test_drawings() -> None:
    """A drawing is a PNG file or raw pixels of the same image; each seed gives another one, and always the same one."""
    file, raw = (drawing(1, is_file=is_file) for is_file in (True, False))

    image = Image.open(io.BytesIO(file))
    assert (image.format, image.size) == ("PNG", (DRAWING_SIDE, DRAWING_SIDE))
    assert image.tobytes() == raw == drawing(1, is_file=False) != drawing(2, is_file=False)


class RecordedLoad:
    """In place of ``http_rate.GrpcLoad``: no clients, one row."""

    def __init__(self, grpc: str, http: tuple[str, int], seconds: float) -> None:
        """Take what a load takes."""
        self._text = f"{grpc} {http[1]} {seconds:.0f} s"

    def row(self, load: str) -> str:
        """Return a row that states the arguments."""
        return f"| {load} | {self._text} |"


@pytest.mark.parametrize(("latency_s", "status", "failed"), [(0.01, 200, False), (0.2, 200, True), (0.01, 500, True)])
def test_command(
    latency_s: float, status: int, failed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options reach the measurements, without and with gRPC clients. A slow or failed probe is an error, a drawing is not."""
    calls = []

    async def measure(address: tuple[str, int], num_pages: int, rate: float, seconds: float) -> Samples:
        calls.append((address, num_pages, rate, seconds))
        samples = Samples()
        samples.add("/livez, probe", latency_s, status)
        samples.add("drawing, PNG", 9.0, 503)
        return samples

    @contextlib.contextmanager
    def run_service(models: Path) -> Iterator[tuple[str, tuple[str, int]]]:
        assert models == Path("shipped")
        yield "localhost:1", ("localhost", 2)

    monkeypatch.setattr(http_rate, "measure", measure)
    monkeypatch.setattr(http_rate, "run_service", run_service)
    monkeypatch.setattr(http_rate, "GrpcLoad", RecordedLoad)
    options = ["--models", "shipped", "--pages", "3", "--rate", "5", "--seconds", "7"]
    monkeypatch.setattr("sys.argv", ["http_rate", *options])

    with pytest.raises(SystemExit) as ended:
        http_rate.main()

    assert bool(ended.value.code) is failed
    assert calls == [(("localhost", 2), 3, 5.0, seconds) for seconds in (http_rate.WARM_UP_S, 7.0)] * 2
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| pages", "/livez, probe"],
        ["| pages", "drawing, PNG"],
        ["| pages and gRPC", "/livez, probe"],
        ["| pages and gRPC", "drawing, PNG"],
        ["| pages and gRPC", "localhost:1 2 15 s |"],
    ]
