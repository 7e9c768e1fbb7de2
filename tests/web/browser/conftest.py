"""A browser and a service for the tests of a file, and pages whose requests, errors and violations are checked at their end."""

import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

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


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return a function that opens a page in a context of its own.

    At the end of the test nothing may have been requested from other hosts, and the console may have no error, as of a script
    or of a violation of the Content-Security-Policy.
    """
    contexts: list[BrowserContext] = []
    hosts: set[str] = set()
    own: set[str] = set()
    faults: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(UNANSWERED):
            faults.append(message.text)

    def open_one(url: str, **options: object) -> Page:
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        context.on("console", listen)
        context.on("weberror", lambda error: faults.append(str(error.error)))
        own.add(urlsplit(url).netloc)
        page = context.new_page()
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []
    # Without a host: blob: and data:.
    assert hosts - {""} <= own


@pytest.fixture
def page(open_page: OpenPage, service: Service) -> Page:
    """Return the page of the service, on a desktop, when the service is ready."""
    return ready(open_page(service.http_url))
