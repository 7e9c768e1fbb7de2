"""The page on screens of several sizes, in light and dark, for people who need contrast, large text, or no motion."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from support.browser import DESKTOP, PHONE, SMALL_PHONE, accessibility_faults, draw
from support.digits import MODELS
from support.pen_strokes import DIGITS, LETTER
from support.serving import Service, run_service
from support.web_page import UNFAMILIAR, answer, choose, expect_answer, expect_state, ready

OpenPage = Callable[..., Page]

REFLOW = {"viewport": {"width": 320, "height": 256}}
"""A desktop of 1280x1024 at 400 %. Source: WCAG 2.2, success criterion 1.4.10."""

PLACES = """() => [...document.querySelectorAll("main section, main button, #bars, #framed, footer a")]
    .map((element) => `${element.outerHTML.slice(0, 80)} ${element.getBoundingClientRect().y}`)"""

ZOOMED = {"viewport": {"width": 640, "height": 430}, "device_scale_factor": 2}
"""A desktop of 1280x860 at 200 %."""


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_is_accessible_in_each_state(
    open_page: OpenPage, service: Service, device: dict[str, object], colors: str
) -> None:
    """There is no violation that axe finds: empty, with an answer, not recognised, refused, and with a picture."""
    page = ready(open_page(service.http_url, **device, color_scheme=colors))
    faults = {"empty": accessibility_faults(page)}
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    faults["answer"] = accessibility_faults(page)
    page.keyboard.press("Escape")
    draw(page, LETTER)
    expect(page.locator("#verdict")).to_have_text(UNFAMILIAR)
    faults["not recognised"] = accessibility_faults(page)
    page.get_by_role("list", name="Examples").get_by_role("button").first.click()
    expect(page.get_by_role("figure")).to_be_visible()
    faults["picture"] = accessibility_faults(page)
    choose(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    expect(answer(page)).to_have_attribute("data-kind", "refused")
    faults["refused"] = accessibility_faults(page)
    assert [fault for found in faults.values() for fault in found] == []


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_the_page_without_a_service_is_accessible(open_page: OpenPage, tmp_path: Path, colors: str) -> None:
    """There is no violation that axe finds if a token is needed, or if the service is gone."""
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-enough-characters\n")
    with run_service(MODELS, tmp_path / "log", "--workers", "1", "--token-file", str(tokens)) as service:
        page = open_page(service.http_url, color_scheme=colors)
        expect_state(page, "unauthorised")
        faults = accessibility_faults(page)
    page.get_by_label("Token").fill("another-token-of-enough-characters")
    page.keyboard.press("Enter")
    expect_state(page, "gone")
    assert faults + accessibility_faults(page) == []


@pytest.mark.parametrize("device", [SMALL_PHONE, ZOOMED, REFLOW], ids=["360 px", "200 %", "400 %"])
def test_nothing_is_wider_than_the_screen(open_page: OpenPage, service: Service, device: dict[str, object]) -> None:
    """On a small phone, and on a desktop with enlarged text, nothing is cut off, and only the height scrolls."""
    page = ready(open_page(service.http_url, **device))
    draw(page, DIGITS["8"][1])
    expect_answer(page, "8")
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")
    cut = page.evaluate(
        """() => [...document.body.querySelectorAll("*")].filter((element) => {
            const {right, left, width} = element.getBoundingClientRect();
            return width > 1 && element.checkVisibility() && (right > innerWidth + 0.5 || left < -0.5);
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert cut == []


def test_a_phone_shows_pad_and_answer_at_once(open_page: OpenPage, service: Service) -> None:
    """On the small phone the answer is on the screen while the user draws."""
    page = ready(open_page(service.http_url, **SMALL_PHONE))
    draw(page, DIGITS["8"][1])
    expect_answer(page, "8")
    for part in ("#pad", "#label", "#confidence", "#verdict"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)


def test_a_phone_on_its_side_shows_pad_and_buttons_at_once(open_page: OpenPage, service: Service) -> None:
    """The pad fits on a low screen with the buttons and the answer."""
    page = ready(open_page(service.http_url, **PHONE | {"viewport": {"width": 844, "height": 390}}))
    draw(page, DIGITS["8"][1])
    expect_answer(page, "8")
    for part in ("#pad", "#undo", "#clear", "#choose", "#take", "#label", "#verdict"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_moves_when_the_pad_gets_the_focus(
    open_page: OpenPage, service: Service, device: dict[str, object]
) -> None:
    """A click takes the focus from the pad: if something moved then, the click would miss its button."""
    page = ready(open_page(service.http_url, **device))
    places = [page.evaluate(PLACES)]
    for _ in ("Digit", "Numbers", "pad"):
        page.keyboard.press("Tab")
    expect(page.locator("#pad")).to_be_focused()
    places.append(page.evaluate(PLACES))
    assert places[0] == places[1]


def test_reduced_motion(open_page: OpenPage, service: Service) -> None:
    """For users who want no motion, nothing moves."""
    page = ready(open_page(service.http_url, reduced_motion="reduce"))
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((element) => {
            const {transitionDuration, animationName} = getComputedStyle(element);
            return parseFloat(transitionDuration) > 0 || animationName !== "none";
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert moving == []
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_strokes_have_contrast_in_light_and_dark(open_page: OpenPage, service: Service) -> None:
    """The drawing is dark on light, or light on dark, and changes with the colours of the system."""
    page = ready(open_page(service.http_url, color_scheme="light"))
    draw(page, [[(0.4, 0.5), (0.6, 0.5)]])
    for colors in ("light", "dark"):
        page.emulate_media(color_scheme=colors)
        page.wait_for_function(
            """(isDark) => {
                const pad = document.querySelector("#pad");
                const [red, , , alpha] = pad.getContext("2d").getImageData(pad.width / 2, pad.height / 2, 1, 1).data;
                const paper = parseFloat(getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/)[0]);
                return alpha === 255 && (isDark ? red - paper : paper - red) > 150;
            }""",
            arg=colors == "dark",
        )


def test_the_policy_of_the_page(browser: Browser, service: Service) -> None:
    """The browser refuses a script in the page, and reports it; no other test may have such a report."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(service.http_url)
        with page.expect_console_message(lambda message: message.type == "error") as reported:
            page.evaluate(
                """() => {
                    const script = document.createElement("script");
                    script.textContent = "window.isRun = true";
                    document.head.append(script);
                }"""
            )
        assert "Content Security Policy" in reported.value.text
        assert page.evaluate("window.isRun") is None
