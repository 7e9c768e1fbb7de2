"""A browser and a service for the tests of a file, and pages whose requests, errors and violations are checked at their end."""

import functools
import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError

from support.browser import DESKTOP, chromium, run_browser
from support.digits import MODELS
from support.serving import Service, run_service
from support.web_page import ready

OpenPage = Callable[..., Page]
"""Arguments: the URL, and options of the context."""

UNANSWERED = "Failed to load resource: "
"""Start of the message of Chromium for each failed request, as those of tests in which the service is overloaded or gone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser. It is closed at the end of the file, because until then this thread cannot run coroutines."""
    if chromium() is None:
        pytest.skip("chromium is not installed")
    with run_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service; a stopped worker is not replaced soon. At the end of the file its log has no error."""
    log = tmp_path_factory.mktemp("log") / "log"
    with run_service(MODELS, log, "--workers", "1", "--stall-s", "600") as running:
        yield running
    levels = {json.loads(line)["level"] for line in log.read_text().splitlines()}
    assert levels <= {"info", "warning"}, log.read_text()


class Watch:
    """What the pages of a test did that they must not do.

    Attributes:
        contexts: of the pages.
    """

    def __init__(self) -> None:
        self.contexts: list[BrowserContext] = []
        self._hosts: set[str] = set()
        self._own: set[str] = set()
        self._faults: list[str] = []

    def open(self, browser: Browser, url: str, **options: object) -> Page:
        """Open a page in a context of its own."""
        context = browser.new_context(**{**DESKTOP, **options})
        self.contexts.append(context)
        context.on("request", self._on_request)
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        page = context.new_page()
        self.load(page, url)
        return page

    def load(self, page: Page, url: str) -> None:
        """Load a page, or load it again."""
        self._own.add(urlsplit(url).netloc)
        page.goto(url)

    def check(self) -> None:
        """Check that nothing was requested from other hosts, and that the console has no error.

        Such as an error of a script, or a violation of the Content-Security-Policy.
        """
        assert self._faults == []
        # Without a host: blob: and data:.
        assert self._hosts - {""} <= self._own

    def _on_request(self, request: Request) -> None:
        self._hosts.add(urlsplit(request.url).netloc)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(UNANSWERED):
            self._faults.append(message.text)

    def _on_error(self, error: WebError) -> None:
        self._faults.append(str(error.error))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return a function that opens a page in a context of its own; each page is checked at the end of the test."""
    watch = Watch()
    yield functools.partial(watch.open, browser)
    for context in watch.contexts:
        context.close()
    watch.check()


@pytest.fixture(scope="module")
def desktop(browser: Browser, service: Service) -> Iterator[tuple[Watch, Page]]:
    """Return the page that the tests of a file load again, which is faster than a new context for each of them."""
    watch = Watch()
    yield watch, watch.open(browser, service.http_url)
    for context in watch.contexts:
        context.close()


@pytest.fixture
def page(desktop: tuple[Watch, Page], service: Service) -> Iterator[Page]:
    """Return the page of the service, on a desktop, when the service is ready. It is checked at the end of the test."""
    watch, page = desktop
    watch.load(page, service.http_url)
    yield ready(page)
    watch.check()
