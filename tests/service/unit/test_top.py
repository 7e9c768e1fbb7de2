"""``digitserve top``: figures from fixed pages, restarts, and what the screen shows; no clock and no network."""

import json
import math
import re
from collections.abc import Mapping

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from digitserve.cli import main, options
from digitserve.cli.exit_codes import ExitCode, exit_code
from digitserve.credentials import Credentials
from digitserve.scrape import Denied, NoAnswer, NotAvailable, Page, Scraper, TooSlow, parse
from digitserve.telemetry.block import BATCH_BUCKETS, LATENCY_BUCKETS_S
from digitserve.telemetry.collector import ServiceCollector
from digitserve.terminal import Terminal
from digitserve.top import screen
from digitserve.top.command import Options, Reader, Reading, _json, quits, take
from digitserve.top.figures import QUANTILES, compare, quantile, upper_bound
from digitserve.top.monitor import WINDOW_S, Monitor

URL = "http://127.0.0.1:8080/metrics"

PAGE = """\
# TYPE digitserve_images_total counter
digitserve_images_total {images}
# TYPE digitserve_model_info gauge
digitserve_model_info{{name="digits",version="4",sha256="a",provider="CPUExecutionProvider",precision="int8"}} 1
# TYPE digitserve_workers gauge
digitserve_workers 2
# TYPE digitserve_ready_workers gauge
digitserve_ready_workers {ready}
# TYPE digitserve_pending_images gauge
digitserve_pending_images 3
# TYPE digitserve_resident_memory_bytes gauge
digitserve_resident_memory_bytes{{process="workers"}} 2e8
digitserve_resident_memory_bytes{{process="supervisor"}} 5e7
# TYPE digitserve_cpu_seconds_total counter
digitserve_cpu_seconds_total {cpu}
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{{grpc_service="digitserve.v1.DigitService",grpc_method="Classify",grpc_code="OK"}} {images}
grpc_server_handled_total{{grpc_service="digitserve.v1.DigitService",grpc_method="Classify",grpc_code="Internal"}} {faults}
# TYPE grpc_server_handling_seconds histogram
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="0.001"}} {fast}
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="0.01"}} {images}
grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="+Inf"}} {images}
grpc_server_handling_seconds_sum{{grpc_method="Classify"}} {cpu}
grpc_server_handling_seconds_count{{grpc_method="Classify"}} {images}
# TYPE digitserve_batch_size histogram
digitserve_batch_size_bucket{{le="1.0"}} {fast}
digitserve_batch_size_bucket{{le="2.0"}} {images}
digitserve_batch_size_bucket{{le="+Inf"}} {images}
digitserve_batch_size_sum {images}
digitserve_batch_size_count {images}
# TYPE digitserve_stream_messages_total counter
digitserve_stream_messages_total{{grpc_code="OK"}} {images}
digitserve_stream_messages_total{{grpc_code="Internal"}} 0
# TYPE digitserve_rejected_total counter
digitserve_rejected_total{{reason="queue_full"}} {faults}
digitserve_rejected_total{{reason="invalid"}} 0
# TYPE digitserve_predictions_total counter
digitserve_predictions_total{{label="7",verdict="accepted"}} {images}
digitserve_predictions_total{{label="",verdict="blank"}} 0
# TYPE digitserve_preprocess_seconds histogram
digitserve_preprocess_seconds_bucket{{le="+Inf"}} {images}
digitserve_preprocess_seconds_sum {cpu}
# TYPE digitserve_http_requests_total counter
digitserve_http_requests_total{{path="/v1/classify",code="200"}} {images}
digitserve_http_requests_total{{path="/v1/classify",code="400"}} {faults}
digitserve_http_requests_total{{path="/v1/model",code="200"}} 0
"""


def page(images: float = 0, *, cpu: float = 0.0, faults: float = 0, fast: float = 0, ready: int = 2) -> Page:
    return parse(PAGE.format(images=images, cpu=cpu, faults=faults, fast=fast, ready=ready), URL)


def shown(monitor: Monitor, now_s: float = 0.0, width: int = 80, *, unicode: bool = True) -> list[str]:
    """Return the lines of the screen, without colours."""
    return [*screen.render(monitor, URL, now_s, Terminal(width, unicode=unicode, colours=False))]


def test_figures_of_a_period() -> None:
    """Rates are increases per second, totals those of the page; streams count by message; memory is the sum."""
    figures = compare(page(100, cpu=1, faults=2, fast=40), page(200, cpu=2, faults=4, fast=90), 10.0)

    assert (figures.model, figures.provider, figures.precision) == ("digits/4", "CPUExecutionProvider", "int8")
    assert (figures.workers, figures.ready_workers, figures.pending_images) == (2, 2, 3)
    assert figures.images == (200, 10) and figures.requests == (400, 20)
    assert figures.cpus == pytest.approx(0.1)
    assert figures.errors == {"Internal": (4, 0.2)}
    assert figures.rejected == {"queue_full": (4, 0.2)}
    assert figures.http_requests == {"/v1/classify 200": (200, 10), "/v1/classify 400": (4, 0.2)}
    assert figures.verdicts == {"accepted": (200, 10)} and figures.labels == {"7": (200, 10)}
    latency = figures.latencies_s["Classify"]
    assert latency.per_s == 10 and latency.mean == pytest.approx(0.01)
    # 50 calls below 1 ms, 50 from 1 to 10 ms.
    assert latency.quantiles == pytest.approx((0.001, 0.0082, 0.00982))
    assert figures.batch_size.quantiles == (1, 2, 2)
    assert figures.batches == {1.0: 0.5, 2.0: 0.5}


def test_the_time_of_the_queue() -> None:
    """Pending images take their number times the mean time of an image, divided by the ready workers; without images in the
    period or without a worker it is unknown.
    """
    # 10 ms per image.
    busy = compare(page(100, cpu=1), page(200, cpu=2), 10.0)
    assert busy.pending_s == pytest.approx(3 * 0.01 / 2)
    assert compare(page(100, cpu=1), page(200, cpu=2, ready=0), 10.0).pending_s is None
    assert compare(page(100), page(100), 10.0).pending_s is None
    monitor = Monitor()
    monitor.read(0, page(100, cpu=1))
    monitor.read(10, page(200, cpu=2))
    assert any("pending 3 (15 ms)" in line for line in shown(monitor))


def test_answers_of_the_http_api() -> None:
    """Answers of the HTTP API are listed by path and status if there were any."""
    monitor = Monitor()
    monitor.read(0, page())
    assert not any("HTTP API" in line for line in shown(monitor))
    monitor.read(10, page(200, faults=4))
    lines = shown(monitor)
    assert any("HTTP API" in line for line in lines)
    assert any("/v1/classify 200 20.0/s 200" in line for line in lines)
    assert any("/v1/classify 400 0.4/s 4" in line for line in lines)
    assert not any("/v1/model" in line for line in lines)


BUCKETS = st.lists(st.integers(0, 1000), min_size=len(LATENCY_BUCKETS_S) + 1, max_size=len(LATENCY_BUCKETS_S) + 1).map(
    lambda counts: dict(zip((*LATENCY_BUCKETS_S, math.inf), map(float, counts), strict=True))
)


@given(buckets=BUCKETS, shares=st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_quantiles_are_monotone(buckets: Mapping[float, float], shares: list[float]) -> None:
    """A higher share never has a lower quantile, and all lie between 0 and the highest finite bound."""
    for estimate in (quantile, upper_bound):
        values = [estimate(buckets, share) for share in sorted(shares)]
        if not any(buckets.values()):
            assert set(values) == {None}
            continue
        known = [value for value in values if value is not None]
        assert known == sorted(known) and len(known) == len(values)
        assert known[0] >= 0 and known[-1] <= LATENCY_BUCKETS_S[-1]


@given(buckets=BUCKETS, share=st.floats(0.001, 1))
def test_a_quantile_is_in_its_bucket(buckets: Mapping[float, float], share: float) -> None:
    """The bucket of the quantile contains the observation of this rank."""
    value = quantile(buckets, share)
    if value is None or not math.isclose(sum(buckets.values()), sum(buckets.values())):
        return
    number = sum(buckets.values())
    at_most = sum(count for bound, count in buckets.items() if bound <= value)
    below = sum(count for bound, count in buckets.items() if bound < value) if value else 0
    assert below <= share * number + 1e-9 * number
    upper = upper_bound(buckets, share)
    assert upper is not None and value <= upper
    assert at_most <= number


COUNTS = st.tuples(st.integers(0, 50), st.integers(0, 5), st.floats(0, 9), st.integers(1, 4))


@given(steps=st.lists(COUNTS, min_size=1, max_size=8), restarts=st.sets(st.integers(0, 7)))
def test_rates_are_never_negative(steps: list[tuple[int, int, float, int]], restarts: set[int]) -> None:
    """Whatever counters do, also when the service restarts, no rate is negative or infinite, and JSON can be written."""
    monitor, images, faults, cpu, now_s = Monitor(), 0, 0, 0.0, 0.0
    for index, (more, failed, used_s, gap_s) in enumerate(steps):
        if index in restarts:
            images = faults = 0
            cpu = 0.0
        images, faults, cpu, now_s = images + more, faults + failed, cpu + used_s, now_s + gap_s
        monitor.read(now_s, page(images, cpu=cpu, faults=faults, fast=images // 2))
        figures = monitor.figures
        assert figures is not None
        counts = [figures.images, figures.requests, *figures.errors.values(), *figures.rejected.values()]
        rates = [count.per_s for count in counts] + [one.per_s for one in figures.latencies_s.values()]
        assert all(0 <= rate < math.inf for rate in (*rates, figures.cpus, *monitor.rates))
        json.dumps(figures.as_json(), allow_nan=False)
        assert shown(monitor, now_s)


def test_the_window() -> None:
    """Rates are those of the last ten seconds, also when a reading was missed."""
    monitor = Monitor()
    for now_s, images in ((0, 0), (5, 5_000), (10, 5_000), (15, 5_100), (20, 5_100)):
        monitor.read(now_s, page(images))
    assert monitor.figures is not None
    assert monitor.figures.period_s == WINDOW_S and monitor.figures.images.per_s == 10
    assert [*monitor.rates] == [1000, 0, 20, 0]
    # A reading that came a little late does not make the period a second longer.
    monitor = Monitor()
    for now_s in (0, 1.02, *range(2, 12)):
        monitor.read(now_s, page(100 * now_s))
    assert monitor.figures is not None and monitor.figures.period_s == pytest.approx(WINDOW_S, abs=0.1)


def test_a_restart() -> None:
    """Lower counters start a new period; the history of the rate has no gap, and the screen says it for ten seconds."""
    monitor = Monitor()
    monitor.read(0, page(100))
    monitor.read(1, page(200))
    monitor.read(2, page(50))
    assert monitor.figures is not None and monitor.figures.period_s == 0
    monitor.read(3, page(60))
    assert monitor.figures.images.per_s == 10
    assert "restarted 1 s ago" in shown(monitor, 3)[0]
    assert shown(monitor, 20)[0].endswith("ready")


def test_the_service_is_not_there() -> None:
    """Before the first answer only the reason is shown; later the last figures stay, with the time since they are stale."""
    monitor = Monitor()
    assert shown(monitor)[0].endswith("connecting") and len(shown(monitor)) == 1
    take(monitor, Reading(1.0, NoAnswer("Connection refused")))
    take(monitor, Reading(2.0, NoAnswer("Connection refused")))
    assert shown(monitor, 4.0) == [f"{URL}{'no metrics for 3 s':>51}", "Connection refused"]
    assert json.loads(_json(monitor, URL))["failure"] == "Connection refused"

    take(monitor, Reading(5.0, page(100)))
    take(monitor, Reading(6.0, page(200)))
    take(monitor, Reading(7.0, TooSlow("no answer")))
    lines = shown(monitor, 7.0)
    assert "no metrics for 0 s" in lines[0] and any(line.startswith("images/s") and "100" in line for line in lines)
    assert "images" not in json.loads(_json(monitor, URL))


@pytest.mark.parametrize(("ready", "state"), [(2, "ready"), (1, "workers missing"), (0, "not ready")])
def test_the_state(ready: int, state: str) -> None:
    """The title says whether all, some or no workers accept requests."""
    monitor = Monitor()
    monitor.read(0, page(1, ready=ready))
    assert re.search(rf"metrics +{state}$", shown(monitor)[0])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_screen_fits(width: int) -> None:
    """No line is wider than the terminal; 80 columns need fewer than 24 lines, with every list filled."""
    monitor = Monitor()
    for now_s in range(100):
        monitor.read(now_s, page(100 * now_s, cpu=now_s, faults=now_s, fast=50 * now_s))
    lines = shown(monitor, 100, width)
    assert max(map(len, lines)) <= width
    assert width < 80 or len(lines) < 22
    assert ("p90" in "".join(lines)) is (width >= 60)


def test_ascii() -> None:
    """Without UTF-8, the whole screen is ASCII."""
    monitor = Monitor()
    for now_s in range(10):
        monitor.read(now_s, page(now_s * now_s, faults=now_s))
    assert all(line.isascii() for line in shown(monitor, 9, unicode=False))


@given(st.lists(st.floats(0, 1e9), max_size=50), st.integers(0, 40))
@example([16.0, 5e-324], 2)
def test_sparklines(values: list[float], width: int) -> None:
    """One character for each of the last values; the highest is full, and only 0 is empty."""
    text = screen.sparkline(values, width)
    last = values[-width:] if width else []
    assert len(text) == len(last)
    for value, character in zip(last, text, strict=True):
        assert (character == " ") is (value == 0)
        assert value < max(last) or not value or character == "█"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.034, "0.034"), (9.96, "10.0"), (99.94, "99.9"), (1234.5, "1,234")]
)
def test_numbers(value: float, text: str) -> None:
    """Rates have about three digits."""
    assert screen.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.5e-4, "250 us"), (0.00125, "1.25 ms"), (2.5, "2.5 s")])
def test_times(value: float, text: str) -> None:
    """Times are in the unit that fits."""
    assert screen.seconds(value) == text


def test_a_page_of_this_release() -> None:
    """A page of the service's own collector, before any request, has all that the screen needs."""
    collector = ServiceCollector(("0", "1"), lambda: ())
    registry = CollectorRegistry()
    registry.register(collector)
    fresh = parse(generate_latest(registry).decode(), URL)
    figures = compare(fresh, fresh, 0.0)
    assert [*figures.latencies_s] == ["queue", "preprocess", "inference"]
    assert [*fresh.buckets("digitserve_batch_size")][:-1] == [*BATCH_BUCKETS]
    assert len(figures.batch_size.quantiles) == len(QUANTILES)


def test_a_fault_of_ours_ends_the_command() -> None:
    """An exception on the thread that reads is raised on the main thread, so the screen does not stay with old figures."""
    scraper = Scraper(URL, Credentials())
    scraper.fetch = lambda: {}["missing"]  # type: ignore[method-assign]
    reader = Reader(scraper, 1.0, str)
    reader.start()
    with pytest.raises(KeyError, match="missing"):
        take(Monitor(), reader.get())
    reader.stop()


@pytest.mark.parametrize(
    ("typed", "ends"),
    [
        (b"q", True),
        (b"x\x1b[Aq", True),
        (b"\x04", True),
        (b"\x1b", True),
        (b"\x1b[A", False),
        (b"\x1bOQ", False),
        (b"x", False),
    ],
)
def test_keys(typed: bytes, ends: bool) -> None:
    """q, Ctrl-D and Escape end the command, also after other keys; arrows and function keys do not."""
    assert quits(typed) is ends


@given(
    st.one_of(
        st.text(),
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "digitserve_images_total",
                        "digitserve_batch_size_bucket",
                        "digitserve_workers",
                        "grpc_server_handled_total",
                    ]
                ),
                st.sampled_from(["", '{le="1"}', '{le="x"}', '{grpc_code="\x1b[2J"}', "{", '{a="b",}']),
                st.sampled_from(["1", "-1", "NaN", "+Inf", "x", "1e999", ""]),
            )
        ).map(lambda lines: "\n".join(f"{name}{labels} {value}" for name, labels, value in lines)),
    )
)
def test_any_page(text: str) -> None:
    """Whatever answers at the URL, the page is shown or it is reported why not; nothing of it reaches the terminal as control
    characters.
    """
    monitor = Monitor()
    for now_s in range(3):
        try:
            take(monitor, Reading(now_s, parse(text, URL)))
        except NotAvailable as error:
            take(monitor, Reading(now_s, error))
    assert all(line.isprintable() for line in shown(monitor))
    json.dumps(json.loads(_json(monitor, URL)), allow_nan=False)


def test_errors_have_exit_codes() -> None:
    """Why a page cannot be read decides the exit code of ``--once``."""
    assert exit_code(NoAnswer()) is ExitCode.UNREACHABLE
    assert exit_code(TooSlow()) is ExitCode.TIMEOUT
    assert exit_code(Denied()) is ExitCode.DENIED
    assert exit_code(NotAvailable()) is ExitCode.NEGATIVE
    with pytest.raises(NotAvailable, match="http://"):
        Scraper("digits.example:8080", Credentials())


def test_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, flags are named; so is the extra that is missing."""
    result = CliRunner().invoke(main, ["top"])
    assert result.exit_code == ExitCode.USAGE and "use --once or --json" in result.stderr
    result = CliRunner().invoke(main, ["top", "--once", "--metrics", "http://127.0.0.1:1/metrics"])
    assert result.exit_code == ExitCode.UNREACHABLE
    monkeypatch.setattr(options, "find_spec", lambda module: None if module == "prometheus_client" else object())
    result = CliRunner().invoke(main, ["top"])
    assert result.stderr == "digitserve: 'digitserve top' needs prometheus_client: pip install 'digitserve[bench]'\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {}, ("http://127.0.0.1:8080/metrics", True)),
        ((), {"DIGITSERVE_HOST": "::", "DIGITSERVE_HTTP_PORT": "9"}, ("http://[::1]:9/metrics", True)),
        ((), {"DIGITSERVE_TLS_CERTIFICATE": "x.pem"}, ("https://127.0.0.1:8080/metrics", False)),
        # A token must not go to another machine that nobody has verified.
        (
            (),
            {"DIGITSERVE_TLS_CERTIFICATE": "x.pem", "DIGITSERVE_HOST": "digits.example"},
            ("https://digits.example:8080/metrics", True),
        ),
        (("digits.example",), {}, ("http://digits.example:8080/metrics", True)),
        (("https://digits.example:7",), {}, ("https://digits.example:8080/metrics", True)),
    ],
)
def test_the_url_of_the_page(
    arguments: tuple[str, ...], environment: dict[str, str], expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is that of the address, or of the service with the same environment, as for the other commands."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target = options.Target(arguments[0] if arguments else None, {})
    with main.commands["top"].make_context("top", []):
        assert target.metrics_page(None)[:2] == expected
        assert target.metrics_page("http://other/metrics")[:2] == ("http://other/metrics", True)
        assert Options(expected[0]).interval_s == 1.0
