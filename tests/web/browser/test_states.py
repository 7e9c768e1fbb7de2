"""The page while its service is overloaded, stopped, hung, not ready, or needs a token. The service is a real one in each state."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from digitserve.web import uploads
from support.browser import draw
from support.digits import MODELS
from support.pen_strokes import DIGITS, number
from support.serving import PATIENCE_S, Service, run_service, wait_until
from support.web_page import ACCEPTED, button, expect_answer, expect_lines, expect_state, lines, numbers, ready

OpenPage = Callable[..., Page]

TOKEN = "a-token-of-enough-characters"  # noqa: S105 - of a test

MAX_REQUEST_BYTES = 131072
"""More than the pixels of a drawing of numbers."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service that takes small requests, so that few bytes fill its memory for requests."""
    log = tmp_path_factory.mktemp("log") / "log"
    with run_service(MODELS, log, "--workers", "1", "--max-request-bytes", str(MAX_REQUEST_BYTES)) as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def full_memory(service: Service) -> Iterator[None]:
    """Take all memory for requests of the HTTP API, with requests that do not end: further ones get 429."""
    address = urlsplit(service.http_url)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {MAX_REQUEST_BYTES}\r\n\r\n"
    with ExitStack() as connections:

        def send_one() -> None:
            connection = connections.enter_context(
                socket.create_connection((str(address.hostname), address.port or 0), timeout=PATIENCE_S)
            )
            connection.sendall(head.encode() + bytes(MAX_REQUEST_BYTES - 1))

        def is_taken() -> bool:
            if is_full(service):
                return True
            send_one()  # the last one was rejected if it met a request of is_full
            return False

        for _ in range(uploads.NUM_LARGEST + uploads.RESERVE_BYTES // MAX_REQUEST_BYTES):
            send_one()
        wait_until(is_taken, "the memory is taken")
        yield


def is_full(service: Service) -> bool:
    """Return whether a request gets 429."""
    address = urlsplit(service.http_url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=PATIENCE_S) as connection:
        head = "POST /v1/classify?width=28&height=28 HTTP/1.1\r\nHost: x\r\nContent-Length: 784\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + bytes(784))
        return b" 429 " in connection.recv(64)


def test_an_overloaded_service_is_named_and_asked_again(page: Page, service: Service) -> None:
    """While the service answers 429, the page says so and shows no answer; then it gets the answer without another stroke."""
    with full_memory(service):
        draw(page, DIGITS["7"][0])
        expect_state(page, "overloaded")
        expect(page.locator("#verdict")).not_to_have_text(ACCEPTED)
    expect_answer(page, "7")
    expect_state(page, "ready")


def test_numbers_wait_for_an_overloaded_service(page: Page, service: Service) -> None:
    """In the mode "Numbers" too, the page says so, shows no answer, and reads the number later without another stroke."""
    numbers(page)
    with full_memory(service):
        draw(page, number("507"))
        expect_state(page, "overloaded")
        expect(lines(page)).to_have_count(0)
    expect_lines(page, "507")
    expect_state(page, "ready")


def test_a_service_that_hangs_is_named(page: Page, service: Service) -> None:
    """A service that accepts connections and does not answer counts as gone, until it answers."""
    service.process.send_signal(signal.SIGSTOP)
    try:
        draw(page, DIGITS["7"][0])
        expect_state(page, "gone")
    finally:
        service.process.send_signal(signal.SIGCONT)
    expect_answer(page, "7")
    expect_state(page, "ready")


def test_a_service_without_a_worker_is_not_ready(page: Page, service: Service) -> None:
    """While no worker is ready the page says so; then it gets the answer without another stroke."""
    with no_workers(service):
        draw(page, DIGITS["7"][0])
        expect_state(page, "starting")
        expect(page.locator("#verdict")).not_to_have_text(ACCEPTED)
    expect_answer(page, "7")
    expect_state(page, "ready")


def test_a_stopped_service_is_named_and_found_again(open_page: OpenPage, log: Path) -> None:
    """Without a new stroke, the page shows that the service is gone, and later that it is back."""
    with run_service(MODELS, log, "--workers", "1") as service:
        page = ready(open_page(service.http_url))
        draw(page, DIGITS["3"][0])
        expect_answer(page, "3")
        service.stop()
        expect_state(page, "gone")
    button(page, "Clear").click()
    draw(page, DIGITS["7"][0])
    expect(page.locator("#label")).not_to_have_text("3")
    with run_service(MODELS, log, "--workers", "1", "--http-port", str(urlsplit(service.http_url).port)):
        expect_answer(page, "7")
        expect_state(page, "ready")
        numbers(page)
    draw(page, number("507"))
    expect_state(page, "gone")
    expect(page.get_by_text("Waiting for the service")).to_be_visible()
    with run_service(MODELS, log, "--workers", "1", "--http-port", str(urlsplit(service.http_url).port)):
        expect_lines(page, "507")
        expect_state(page, "ready")


def test_a_new_stroke_without_a_service_gets_no_old_answer(open_page: OpenPage, log: Path) -> None:
    """An answer is for what is drawn: after another stroke it is not shown as if it were for both."""
    with run_service(MODELS, log, "--workers", "1") as service:
        page = ready(open_page(service.http_url))
        draw(page, [DIGITS["7"][1][0]])
        expect_answer(page, "7")
        service.process.kill()
    draw(page, [DIGITS["7"][1][1]])
    expect_state(page, "gone")
    expect(page.locator("#verdict")).not_to_have_text(ACCEPTED)


@contextmanager
def no_workers(service: Service) -> Iterator[None]:
    """Kill each worker soon after its start."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            for pid in service.workers():
                try:
                    if b"digitserve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                except OSError:
                    """It has ended already."""

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_service_with_tokens_asks_for_one(open_page: OpenPage, log: Path, tmp_path: Path) -> None:
    """The page asks for a token, says that a wrong one is wrong, and works with a valid one, also after a reload."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with run_service(MODELS, log, "--workers", "1", "--token-file", str(tokens)) as service:
        page = open_page(service.http_url)
        expect_state(page, "unauthorised")
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        for wrong in ("a-wrong-token-of-enough-characters", "with-\N{HORIZONTAL ELLIPSIS}-and-\N{EM DASH}"):
            field.fill(wrong)
            button(page, "Use this token").click()
            expect(page.get_by_text("token was rejected")).to_be_visible()
            expect(field).to_be_visible()
        field.fill(TOKEN)
        field.press("Enter")
        ready(page)
        expect(field).to_be_hidden()
        draw(page, DIGITS["3"][0])
        expect_answer(page, "3")
        page.reload()
        ready(page)
        draw(page, DIGITS["7"][0])
        expect_answer(page, "7")
        numbers(page)
        draw(page, number("507"))
        expect_lines(page, "507")
        assert TOKEN not in page.url
