"""Drawing on the page in a real browser, with the answers of a real service."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from support.browser import PHONE, draw, strokes_on, touch
from support.pen_strokes import DIGITS, LETTER, SCRIBBLE, TWO_DIGITS, Drawing
from support.serving import Service, stopped_workers
from support.web_page import (
    INVITATION,
    SEVERAL,
    UNFAMILIAR,
    accepted_labels,
    answer,
    button,
    expect_answer,
    expect_no_answer,
    ready,
)

ON_THE_THREE: Drawing = [[DIGITS["3"][0][0][3]] * 2]
"""A dot on its ink: the page asks about the 3 again."""


def test_digits_drawn_with_the_mouse_are_recognised(page: Page) -> None:
    """Each digit, in several styles, is recognised, with ten probabilities that add up to 1."""
    for digit, styles in DIGITS.items():
        for drawing in styles:
            draw(page, drawing)
            expect_answer(page, digit)
            button(page, "Clear").click()
            expect_no_answer(page)


def test_digits_drawn_with_a_finger_are_recognised(open_page: Callable[..., Page], service: Service) -> None:
    """On a phone, a finger on the pad draws, and does not scroll the page."""
    page = ready(open_page(service.http_url, **PHONE))
    page.locator("#pad").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    for digit in "37":
        touch(page, DIGITS[digit][0])
        expect_answer(page, digit)
        button(page, "Clear").tap()
        expect_no_answer(page)
    assert page.evaluate("scrollY") == before


def test_the_answer_appears_while_drawing(page: Page) -> None:
    """The digit is recognised before the pointer is lifted."""
    (stroke,) = strokes_on(page, DIGITS["7"][0])
    page.mouse.move(*stroke[0])
    page.mouse.down()
    for point in stroke[1:]:
        page.mouse.move(*point, steps=5)
    expect_answer(page, "7")
    page.mouse.up()
    expect_answer(page, "7")


def test_an_answer_has_details(page: Page) -> None:
    """It has the confidence, the framed image of 28x28 pixels, the times of the service, and the model."""
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    expect(page.locator("#confidence")).to_contain_text("99.9 %")
    region = answer(page)
    expect(region.get_by_role("img", name="The image after framing")).to_be_visible()
    ink = page.evaluate(
        """() => {
            const {data} = document.querySelector("#framed").getContext("2d").getImageData(0, 0, 28, 28);
            return data.filter((value, index) => index % 4 === 0 && value > 128).length;
        }"""
    )
    assert 40 < ink < 300
    for term, value in [("Queue", " ms"), ("Framing", " ms"), ("Network", " ms"), ("Model", "digits ")]:
        expect(region.locator("dl > div", has_text=term).locator("dd")).to_contain_text(value)


def test_the_answer_of_an_earlier_drawing_is_never_shown(page: Page, service: Service) -> None:
    """An answer that arrives after its drawing was cleared is dropped."""
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    with accepted_labels(page) as seen:
        with stopped_workers(service):
            with page.expect_request("**/v1/classify*"):
                draw(page, ON_THE_THREE)
            button(page, "Clear").click()
            draw(page, DIGITS["1"][0])
        expect_answer(page, "1")
    assert set(seen) == {"1"}


def test_an_answer_that_arrives_after_clearing_is_not_shown(page: Page, service: Service) -> None:
    """The page stays empty."""
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    with accepted_labels(page) as seen:
        with stopped_workers(service):
            with page.expect_request("**/v1/classify*"):
                draw(page, ON_THE_THREE)
            button(page, "Clear").click()
        assert service.get("/v1/model")[0] == 200  # the worker answers again
        expect_no_answer(page)
    assert seen == []


def test_undo_and_clear(page: Page) -> None:
    """Undo removes one stroke and asks again; without strokes, and after Clear, there is no answer."""
    one, zero = TWO_DIGITS
    draw(page, [one])
    expect_answer(page, "1")
    draw(page, [zero])
    expect(page.locator("#verdict")).to_have_text(SEVERAL)
    button(page, "Undo").click()
    expect_answer(page, "1")
    page.keyboard.press("Control+z")
    expect_no_answer(page)
    expect(page.locator("[aria-live=polite]")).to_have_text("Cleared")
    draw(page, DIGITS["8"][1])
    expect_answer(page, "8")
    button(page, "Clear").click()
    expect_no_answer(page)


def test_what_is_not_a_digit_is_explained(page: Page) -> None:
    """A letter, a scribble and two digits are not recognised, and the page says why."""
    for drawing, verdict in [(LETTER, UNFAMILIAR), (SCRIBBLE, UNFAMILIAR), (TWO_DIGITS, SEVERAL)]:
        draw(page, drawing)
        expect(page.locator("#verdict")).to_have_text(verdict)
        expect(page.locator("#explanation")).not_to_be_empty()
        button(page, "Clear").click()
        expect_no_answer(page)


def test_drawing_with_the_keyboard(page: Page) -> None:
    """Arrow keys move the pen, Space puts it down and lifts it, Escape clears."""
    page.locator("#pad").focus()
    for key, times in [
        ("Shift+ArrowUp", 3), ("Shift+ArrowLeft", 2), (" ", 1), ("Shift+ArrowRight", 4),
        *[("ArrowLeft", 1), ("ArrowDown", 2)] * 12, (" ", 1),
    ]:  # fmt: skip
        for _ in range(times):
            page.keyboard.press(key)
    expect_answer(page, "7")
    page.keyboard.press("Escape")
    expect_no_answer(page)


def test_everything_can_be_reached_with_the_keyboard(page: Page) -> None:
    """Tab leads through all controls in the order of the page, each shows its focus, and the last one lets go."""
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
                const focused = document.activeElement;
                const style = getComputedStyle(focused);
                const name = focused.ariaLabel || focused.textContent.trim() || focused.querySelector("img")?.alt;
                return [focused === document.body ? "" : name, style.outlineStyle];
            }"""
        )
        if not name:
            break
        assert outline != "none", name
        reached.append(name)
    else:
        pytest.fail(f"the focus never leaves the page: {reached}")
    expected = ["Drawing pad", "Undo", "Clear", "Choose a picture", "A letter", "API description", "Metrics"]
    assert [name for name in reached if name in expected] == expected


def test_answers_are_announced(page: Page) -> None:
    """A screen reader reads label, confidence and verdict, once the drawing has ended, and that it was cleared."""
    expect(page.get_by_text(INVITATION)).to_be_visible()
    draw(page, DIGITS["7"][1])
    expect(page.locator("[aria-live=polite]")).to_have_text(re.compile(r"^7, .*99\.9 %\. Recognised as a digit\.$"))
    button(page, "Clear").click()
    expect(page.locator("[aria-live=polite]")).to_have_text("Cleared")


def test_an_uncertain_answer_names_the_second_label(page: Page) -> None:
    """If the confidence is low, the second label is named on the page, and read by a screen reader."""
    response = {
        "predictions": [
            {
                "label": "3", "class_index": 3, "confidence": 0.59, "verdict": "VERDICT_ACCEPTED",
                "top": [
                    {"label": "3", "class_index": 3, "confidence": 0.59},
                    {"label": "8", "class_index": 8, "confidence": 0.41},
                ],
            }
        ],
        "model_name": "digits", "model_version": "1",
        "timing": {"queue_s": 0, "preprocess_s": 0, "inference_s": 0, "batch_size": 1},
    }  # fmt: skip
    page.route("**/v1/classify*", lambda route: route.fulfill(json=response))
    draw(page, DIGITS["3"][0])
    words = re.compile(r"It may also be 8: 41\.0.%\.")
    expect(page.locator("#explanation")).to_have_text(words)
    expect(page.locator("[aria-live=polite]")).to_have_text(words)
