"""Writes the screenshots of the page at / in docs/images, with a real service, real load, and Debian's Chromium (headless).

make screenshots             # takes a minute; needs Debian's package chromium
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from digitserve.client import Client
from support.browser import DESKTOP, PHONE, draw, run_browser
from support.pen_strokes import DIGITS, LETTER
from support.serving import Service, run_service
from support.web_page import UNFAMILIAR, expect_answer, expect_lines, expect_state, marks, numbers, ready

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/images"

UPPER_PART: dict[str, Any] = {"viewport": {"width": 1280, "height": 764}}
"""A desktop, down to the live panel."""

NUM_COLORS = 96
"""Of the palette: enough for the page, and a phone picture takes about 110 kB (the largest)."""

MARGIN_PX = 24

NUM_CALLERS = 8
IMAGES_OF_A_CALL = (1, 2, 4, 8)

LOAD_S = 40
"""Time under load before the picture: enough points for the curves."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, run_browser() as browser, run(Path(folder)) as service:
        for colors in ("light", "dark"):
            take(browser, service, f"page-{colors}", draw_three, colors, **UPPER_PART)
            take(browser, service, f"page-phone-{colors}", draw_three, colors, **PHONE)
        take(browser, service, "page-not-recognised", draw_letter, "light", **UPPER_PART)
        take(browser, service, "page-numbers", read_date, "light", **UPPER_PART)
        take(browser, service, "page-panel", show_load(service), "light", **DESKTOP)
        take(browser, service, "page-gone", stop(service), "light", **PHONE)


def run(folder: Path) -> AbstractContextManager[Service]:
    """Run a service of two workers."""
    return run_service(ROOT / "models", folder / "log", "--workers", "2")


def take(
    browser: Browser, service: Service, name: str, prepare: Callable[[Page], Any], colors: str, **options: Any
) -> None:
    """Open the page, prepare it, and write what is on the screen, or the section that ``prepare`` returns, with a margin."""
    with browser.new_context(**options, color_scheme=colors, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(service.http_url)
        ready(page)
        page.locator("#command").evaluate("(code) => code.textContent = code.textContent.replace(/:\\d+/, ':8080')")
        box = prepare(page)
        path = FOLDER / f"{name}.png"
        page.screenshot(path=path, clip=box)
    with Image.open(path) as picture:
        # The default method drops the colours of small parts, as of the state.
        few = picture.convert("RGB").quantize(NUM_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def draw_three(page: Page) -> None:
    """Draw a digit."""
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    expect(page.locator(".box.drawn")).to_be_visible()


def draw_letter(page: Page) -> None:
    """Draw something else."""
    draw(page, LETTER)
    expect(page.locator("#verdict")).to_have_text(UNFAMILIAR)
    expect(page.locator(".box.drawn")).to_be_visible()


def read_date(page: Page) -> None:
    """Read the date of an example, and show a digit in detail."""
    numbers(page)
    # The first file starts a process that decodes; the times are those of the second.
    for name, text in [("A number", "28306"), ("A date", "14/07/26")]:
        page.get_by_role("list", name="Examples").get_by_role("button", name=name).click()
        expect_lines(page, text)
    marks(page).nth(4).hover()
    expect(page.locator(".boxes .selected")).to_be_visible()


def show_load(service: Service) -> Callable[[Page], Any]:
    """Return a function that puts load on the service, and returns the place of the panel."""

    def prepare(page: Page) -> Any:
        panel = page.get_by_role("region", name="This service")
        panel.scroll_into_view_if_needed()
        with load(service):
            page.wait_for_timeout(1000 * LOAD_S)
        box = panel.bounding_box() or {}
        left, top = box["x"] - MARGIN_PX, box["y"] - MARGIN_PX
        return {"x": left, "y": top, "width": box["width"] + 2 * MARGIN_PX, "height": box["height"] + 2 * MARGIN_PX}

    return prepare


def stop(service: Service) -> Callable[[Page], None]:
    """Return a function that stops the service, and draws."""

    def prepare(page: Page) -> None:
        service.stop()
        draw(page, DIGITS["7"][1])
        expect_state(page, "gone")

    return prepare


@contextmanager
def load(service: Service) -> Iterator[None]:
    """Call the service from several threads, of which one starts every few seconds, with calls of several sizes."""
    ended = threading.Event()

    def call(number: int) -> None:
        if ended.wait(number * LOAD_S / 2 / NUM_CALLERS):
            return
        images = np.zeros((IMAGES_OF_A_CALL[number % len(IMAGES_OF_A_CALL)], 28, 28), np.uint8)
        with Client(service.grpc_address) as client:
            while not ended.is_set():
                client.classify(images)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(NUM_CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
