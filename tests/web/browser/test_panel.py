"""The live panel of the page in a real browser: figures of a real service under load, and what it says without them."""

import re
from collections.abc import Callable

import numpy as np
from playwright.sync_api import Locator, Page, expect

from digitserve.client import Client
from support.browser import PHONE, draw
from support.load import Callers
from support.pen_strokes import DIGITS
from support.serving import Service
from support.web_page import button, expect_answer, ready

POSITIVE = re.compile(r"^[\d,.]*[1-9][\d,.]*$")
"""A number over 0."""


class ImageLoad(Callers):
    """Calls with one image each, from one thread."""

    def __init__(self, service: Service) -> None:
        super().__init__(1)
        self.address = service.grpc_address

    def call(self, caller: int) -> None:
        with Client(self.address) as client:
            while not self.stopping.wait(0.005):
                client.classify(np.zeros((28, 28), np.uint8))


def panel(page: Page) -> Locator:
    """Return the section "This service", on the screen."""
    region = page.get_by_role("region", name="This service")
    region.scroll_into_view_if_needed()
    return region


def tile(page: Page, name: str) -> Locator:
    """Return a part of the panel by its heading."""
    return panel(page).locator(".tile").filter(has=page.get_by_role("heading", name=name, exact=True))


def test_the_panel_shows_the_rates_of_a_service_under_load(page: Page, service: Service) -> None:
    """Throughput, times, batches, queue, workers and model of calls over gRPC appear, and a curve of the rate."""
    with ImageLoad(service):
        for name in ("Images per second", "Requests per second"):
            expect(tile(page, name).locator(".value")).to_have_text(POSITIVE)
        expect(page.get_by_role("img", name=re.compile(r"Images per second .*: now [\d,.]*[1-9]"))).to_be_visible()
        for row in ("Classify", "Queue", "Framing", "Network"):
            cells = panel(page).get_by_role("row", name=row).get_by_role("cell")
            expect(cells).to_have_text([re.compile(r"\d\s(µs|ms|s)$")] * 3)
        expect(page.get_by_role("img", name=re.compile(r"Share of the batches .*: 1: \d+ %"))).to_be_visible()
        expect(tile(page, "Images in the queue").locator(".value")).to_have_text(re.compile(r"^\d+$"))
        expect(tile(page, "Workers ready").locator(".value")).to_have_text("1 of 1")
        expect(panel(page).get_by_text("digits/")).to_be_visible()


def test_the_panel_pauses(page: Page, service: Service) -> None:
    """Paused, it says so and reads nothing more; then it goes on."""
    expect(tile(page, "Workers ready").locator(".value")).to_have_text("1 of 1")
    button(page, "Pause").click()
    expect(panel(page).get_by_text(re.compile(r"^Paused\. .*figures.* \d+:"))).to_be_visible()
    with page.expect_request("**/metrics"):
        button(page, "Resume").click()
    expect(panel(page).get_by_text("Read from /metrics every 2")).to_be_visible()


def test_the_panel_reads_only_on_the_screen(open_page: Callable[..., Page], service: Service) -> None:
    """On a phone, nothing is read for the panel before the user scrolls to it."""
    page = open_page(service.http_url, **PHONE)
    paths: list[str] = []
    page.on("request", lambda request: paths.append(request.url.removeprefix(service.http_url)))
    ready(page)
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    assert "/metrics" not in paths
    with page.expect_request("**/metrics"):
        panel(page)


def test_the_panel_says_that_it_has_no_new_figures(page: Page, service: Service) -> None:
    """While /metrics cannot be read, the panel says of when its figures are."""
    expect(tile(page, "Workers ready").locator(".value")).to_have_text("1 of 1")
    page.context.set_offline(True)
    expect(panel(page).get_by_text(re.compile(r"^The service does not answer\. .*figures.* \d+:"))).to_be_visible()
    page.context.set_offline(False)
    expect(panel(page).get_by_text("Read from /metrics every 2")).to_be_visible()
