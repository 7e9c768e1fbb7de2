"""Debian's Chromium, driven by Playwright: for tests of pages, and for their screenshots."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support.pen_strokes import Drawing, scaled
from support.serving import PATIENCE_S

PATIENCE_MS = 1000 * PATIENCE_S
"""Longest wait for what a page shows; reached only when it never does."""

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True,
}  # fmt: skip
SMALL_PHONE: dict[str, Any] = PHONE | {"viewport": {"width": 360, "height": 740}}
"""Options of a browser context. The small phone has the least width that the page supports."""


def chromium() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return shutil.which("chromium")


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Run Chromium, without a window. Inside of the ``with`` block this thread cannot run coroutines.

    Its own sandbox needs a user who is not root; it opens only pages of this project.
    """
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def draw(page: Page, drawing: Drawing, selector: str = "#pad") -> None:
    """Draw with the mouse."""
    for stroke in strokes_on(page, drawing, selector):
        page.mouse.move(*stroke[0])
        page.mouse.down()
        for point in stroke[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def touch(page: Page, drawing: Drawing, selector: str = "#pad") -> None:
    """Draw with a finger."""
    session = page.context.new_cdp_session(page)
    for stroke in strokes_on(page, drawing, selector):
        for kind, points in [
            ("touchStart", stroke[:1]),
            *(("touchMove", [point]) for point in stroke[1:]),
            ("touchEnd", []),
        ]:
            sent = [{"x": x, "y": y} for x, y in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": sent})
    session.detach()


def strokes_on(page: Page, drawing: Drawing, selector: str = "#pad") -> Drawing:
    """Return a drawing in pixels of the page, on an element that is scrolled into view."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box, f"{selector} is not visible"
    side = min(box["width"], box["height"])
    return scaled(drawing, box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2, side)


def accessibility_faults(page: Page) -> list[str]:
    """Return what axe finds on a page as it is shown now: each rule that an element violates, with the element."""
    page.evaluate("Promise.allSettled(document.getAnimations().map((animation) => animation.finished))")
    page.evaluate(AXE_SCRIPT)
    violations = page.evaluate("axe.run({resultTypes: ['violations']}).then((found) => found.violations)")
    return [
        f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}" for rule in violations for node in rule["nodes"]
    ]
