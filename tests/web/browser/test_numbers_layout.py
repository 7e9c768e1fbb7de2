"""The mode "Numbers" on screens of several sizes, in light and dark, for people who need contrast, large text, or no motion."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from support.browser import DESKTOP, PHONE, SMALL_PHONE, accessibility_faults, draw
from support.pen_strokes import number
from support.serving import Service
from support.web_page import choose, expect_lines, marks, numbers, ready, texts

OpenPage = Callable[..., Page]

REFLOW = {"viewport": {"width": 320, "height": 256}}
"""A desktop of 1280x1024 at 400 %. Source: WCAG 2.2, success criterion 1.4.10."""

ZOOMED = {"viewport": {"width": 640, "height": 430}, "device_scale_factor": 2}
"""A desktop of 1280x860 at 200 %."""

LINES_ON_PAPER = "Lines on paper"


def show_options(page: Page) -> None:
    """Open the options, which narrow screens hide at first."""
    page.locator("#more").evaluate("(details) => details.open = true")


def choose_lines(page: Page) -> None:
    """Choose the example with three lines, and wait for its answer."""
    page.get_by_role("list", name="Examples").get_by_role("button", name=LINES_ON_PAPER).click()
    expect(texts(page)).to_have_count(3)


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_mode_is_accessible_in_each_state(
    open_page: OpenPage, service: Service, device: dict[str, object], colors: str
) -> None:
    """There is no violation that axe finds: empty, with one line, with a picture and a mark in detail, and refused."""
    page = numbers(ready(open_page(service.http_url, **device, color_scheme=colors)))
    show_options(page)
    faults = {"empty": accessibility_faults(page)}
    draw(page, number("507"))
    expect_lines(page, "507")
    faults["line"] = accessibility_faults(page)
    choose_lines(page)
    marks(page).nth(1).focus()
    faults["picture"] = accessibility_faults(page)
    choose(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    expect(page.locator("#reading")).to_have_attribute("data-kind", "refused")
    faults["refused"] = accessibility_faults(page)
    assert [fault for found in faults.values() for fault in found] == []


@pytest.mark.parametrize("device", [SMALL_PHONE, ZOOMED, REFLOW], ids=["360 px", "200 %", "400 %"])
def test_nothing_is_wider_than_the_screen(open_page: OpenPage, service: Service, device: dict[str, object]) -> None:
    """On a small phone, and on a desktop with enlarged text, nothing is cut off, and only the height scrolls."""
    page = numbers(ready(open_page(service.http_url, **device)))
    show_options(page)
    choose_lines(page)
    marks(page).nth(1).focus()
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")
    cut = page.evaluate(
        """() => [...document.body.querySelectorAll("*")].filter((element) => {
            const {right, left, width} = element.getBoundingClientRect();
            return width > 1 && element.checkVisibility() && (right > innerWidth + 0.5 || left < -0.5);
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert cut == []


def test_the_focus_is_never_hidden(open_page: OpenPage, service: Service) -> None:
    """The details of a mark stay at the lower edge of the screen, and no field or button with the focus is below them."""
    page = numbers(ready(open_page(service.http_url, **PHONE)))
    choose_lines(page)
    for field in [*texts(page).all(), *marks(page).all()]:
        field.focus()
        covered = field.evaluate(
            """(element) => {
                const {x, y, width, height} = element.getBoundingClientRect();
                return !element.contains(document.elementFromPoint(x + width / 2, y + height / 2));
            }"""
        )
        assert not covered, field.get_attribute("aria-label")


def test_reduced_motion(open_page: OpenPage, service: Service) -> None:
    """For users who want no motion, nothing moves."""
    page = numbers(ready(open_page(service.http_url, reduced_motion="reduce")))
    draw(page, number("507"))
    expect_lines(page, "507")
    marks(page).first.focus()
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((element) => {
            const {transitionDuration, animationName} = getComputedStyle(element);
            return parseFloat(transitionDuration) > 0 || animationName !== "none";
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert moving == []


def test_boxes_are_visible_with_forced_colors(open_page: OpenPage, service: Service) -> None:
    """With the colours of the user, the selected box has another colour than the others, and marks keep their line styles."""
    page = numbers(ready(open_page(service.http_url, forced_colors="active")))
    draw(page, number("507"))
    expect(page.locator(".boxes rect:not(.ignored)")).to_have_count(3)
    marks(page).first.focus()
    colors = page.evaluate(
        """() => [".boxes rect:not(.selected, .ignored)", ".boxes .selected"].map(
            (selector) => getComputedStyle(document.querySelector(selector)).stroke
        )"""
    )
    assert len(set(colors)) == 2
    styles = page.evaluate("""() => ["sure", "check", "unread"].map((name) => {
        const mark = document.querySelector("#lines .mark");
        mark.className = `mark ${name}`;
        return getComputedStyle(mark).borderTopStyle;
    })""")
    assert styles == ["solid", "dashed", "dotted"]
