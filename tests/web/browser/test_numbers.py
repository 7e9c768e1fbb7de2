"""The mode "Numbers" of the page in a real browser: numbers that are written on the pad, and pictures, read by a real service."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from support.browser import PHONE, SMALL_PHONE, draw, touch
from support.pen_strokes import DIGITS, LETTER, number
from support.serving import Service
from support.web_page import (
    answer,
    button,
    choose,
    expect_answer,
    expect_lines,
    lines,
    marks,
    numbers,
    ready,
    texts,
)

OpenPage = Callable[..., Page]

INVITATION = "Write a number, or choose an example."

SEVERAL_LINES = ["40718", "2569", "93350"]
"""Of the example "Lines on paper"."""


@pytest.fixture
def numbers_page(page: Page) -> Page:
    """Return the page in the mode "Numbers"."""
    return numbers(page)


def example(page: Page, name: str) -> None:
    """Choose an example."""
    page.get_by_role("list", name="Examples").get_by_role("button", name=name).click()


def test_a_number_written_with_the_mouse_is_read(numbers_page: Page) -> None:
    """Its line has the text, a mark and a box per digit, the confidence in words, and the times of the service."""
    draw(numbers_page, number("50728"))
    expect_lines(numbers_page, "50728")
    expect(marks(numbers_page)).to_have_text(list("50728"))
    expect(numbers_page.locator(".boxes rect:not(.ignored)")).to_have_count(5)
    expect(numbers_page.get_by_text("1 line with 5 digits")).to_be_visible()
    expect(lines(numbers_page).locator(".confidence")).to_have_text(re.compile(r"sure.*: >?[0-9.]+.%", re.IGNORECASE))
    for term, value in [("Queue", " ms"), ("Segmentation", " ms"), ("Network", " ms"), ("Model", "digits ")]:
        expect(answer(numbers_page).locator("dl > div", has_text=term).locator("dd")).to_contain_text(value)


def test_a_number_written_with_a_finger_is_read(open_page: OpenPage, service: Service) -> None:
    """On a small phone, pad and text are on the screen together, and the finger does not scroll the page."""
    page = numbers(ready(open_page(service.http_url, **SMALL_PHONE)))
    before = page.evaluate("scrollY")
    touch(page, number("3706"))
    expect_lines(page, "3706")
    assert page.evaluate("scrollY") == before
    expect(page.locator("#pad")).to_be_in_viewport(ratio=1)
    expect(texts(page)).to_be_in_viewport(ratio=1)


def test_undo_and_clear(numbers_page: Page) -> None:
    """Undo removes the last stroke and asks again; after Clear there is no answer."""
    draw(numbers_page, number("82"))
    expect_lines(numbers_page, "82")
    button(numbers_page, "Undo").click()
    expect(texts(numbers_page)).to_have_count(1)
    expect(marks(numbers_page)).to_have_count(1)
    button(numbers_page, "Clear").click()
    expect(numbers_page.get_by_text(INVITATION)).to_be_visible()
    expect(lines(numbers_page)).to_have_count(0)
    expect(numbers_page.locator(".boxes")).to_have_count(0)


def test_the_url_states_the_mode(page: Page, service: Service) -> None:
    """The URL of a mode opens it, and the history of the browser leads back; each mode has a drawing of its own."""
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")
    numbers(page)
    assert urlsplit(page.url).fragment == "number"
    expect(page.get_by_text(INVITATION)).to_be_visible()
    draw(page, number("51"))
    expect_lines(page, "51")
    page.go_back()
    expect(page.locator("html")).to_have_attribute("data-mode", "digit")
    expect_answer(page, "3")
    page.go_forward()
    expect_lines(page, "51")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-mode", "number")
    expect(page.get_by_role("link", name="Numbers")).to_have_attribute("aria-current", "page")


def test_a_picture_stays_when_the_mode_changes(page: Page) -> None:
    """Two digits are no digit, but a number."""
    example(page, "Two digits")
    expect(page.locator("#verdict")).to_have_text("Several separate shapes")
    numbers(page)
    expect_lines(page, "87")
    expect(page.get_by_role("img", name="Two digits")).to_be_visible()
    expect(page.locator("#picture .boxes rect:not(.ignored)")).to_have_count(2)


@pytest.mark.parametrize(
    ("name", "expected"), [("A number", ["28306"]), ("A date", ["14/07/26"]), ("Lines", SEVERAL_LINES)]
)
def test_examples_are_read(numbers_page: Page, name: str, expected: list[str]) -> None:
    """The lines of a picture are shown in order."""
    example(numbers_page, name)
    expect_lines(numbers_page, *expected)


def test_cells_of_a_form(numbers_page: Page) -> None:
    """With the arrangement "Cells" an empty cell is shown too; the picture is sent again when the option changes."""
    example(numbers_page, "Cells of a form")
    expect(texts(numbers_page)).to_have_value("80124")
    numbers_page.get_by_role("radio", name="Cells").check()
    expect(marks(numbers_page)).to_have_count(6)
    expect(marks(numbers_page).last).to_have_accessible_name("Empty cell")


def test_options_are_sent(numbers_page: Page) -> None:
    """Arrangement, number of digits and pattern are parameters of the request; a line that does not match says so."""
    draw(numbers_page, number("507"))
    expect_lines(numbers_page, "507")
    numbers_page.get_by_role("radio", name="One line").check()
    numbers_page.get_by_label("Pattern").fill(r"[0-9]\d{2}")
    with numbers_page.expect_request("**num_digits=5**") as request:
        numbers_page.get_by_label("Digits per line").fill("5")
        numbers_page.keyboard.press("Enter")
    query = parse_qs(urlsplit(request.value.url).query)
    assert (query["layout"], query["num_digits"], query["pattern"]) == (["line"], ["5"], [r"[0-9]\d{2}"])


def test_a_line_that_does_not_match_says_so(numbers_page: Page) -> None:
    """A line with another number of digits than required is shown, with a warning."""
    draw(numbers_page, number("507"))
    expect_lines(numbers_page, "507")
    numbers_page.get_by_label("Pattern").fill(r"\d")
    numbers_page.keyboard.press("Enter")
    expect(lines(numbers_page)).to_contain_text("does not have the pattern")


def test_a_bad_pattern_gets_the_words_of_the_service(numbers_page: Page) -> None:
    """The page shows the error of the service in the place of the answer, and reads again when the pattern is right."""
    draw(numbers_page, number("507"))
    expect_lines(numbers_page, "507")
    numbers_page.get_by_label("Pattern").fill(r"\d{")
    numbers_page.keyboard.press("Enter")
    expect(numbers_page.locator("#reading")).to_have_attribute("data-kind", "refused")
    expect(numbers_page.locator("#message")).to_contain_text("pattern")
    expect(lines(numbers_page)).to_have_count(0)
    numbers_page.get_by_label("Pattern").fill(r"\d{3}")
    numbers_page.keyboard.press("Enter")
    expect_lines(numbers_page, "507")


def test_a_mark_has_details(numbers_page: Page) -> None:
    """The pointer or the focus on a mark, or the pointer on its box, shows its label, confidence and alternatives."""
    draw(numbers_page, number("507"))
    expect(numbers_page.locator(".boxes .sure")).to_have_count(3)
    details = numbers_page.locator("#mark")
    marks(numbers_page).nth(1).hover()
    expect(details.locator(".character")).to_have_text("0")
    expect(details.get_by_role("listitem")).to_have_count(3)
    expect(details.get_by_role("listitem").first).to_have_text(re.compile(r"^0: >?9\d\.\d.%$"))
    box = numbers_page.locator(".boxes .sure").nth(2).bounding_box()
    assert box
    numbers_page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(details.locator(".character")).to_have_text("7")
    expect(numbers_page.locator(".boxes .selected")).to_have_count(1)
    marks(numbers_page).first.focus()
    expect(details.locator(".character")).to_have_text("5")


def test_marks_with_the_keyboard(numbers_page: Page) -> None:
    """Tab leads from the text to Copy and to the marks; arrow keys, Home and End move between them."""
    # A drawing is read again while it grows; a picture is read once.
    example(numbers_page, "A number")
    expect_lines(numbers_page, "28306")
    texts(numbers_page).focus()
    for key, label in [
        ("Tab", None),
        ("Tab", "2"),
        ("ArrowRight", "8"),
        ("End", "6"),
        ("ArrowRight", "6"),
        ("ArrowLeft", "0"),
    ]:
        numbers_page.keyboard.press(key)
        focused = numbers_page.locator("#lines :focus")
        expect(focused).to_have_text(label or "Copy")
    numbers_page.keyboard.press("Shift+Tab")
    expect(numbers_page.locator("#lines :focus")).to_have_text("Copy")


def test_texts_are_edited_and_copied(numbers_page: Page) -> None:
    """A line is corrected in its field, and copied alone or with the others."""
    numbers_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    example(numbers_page, "Lines on paper")
    expect_lines(numbers_page, *SEVERAL_LINES)
    texts(numbers_page).nth(1).fill("2568")
    button(numbers_page, "Copy line 2").click()
    expect(numbers_page.locator("[aria-live=polite]")).to_have_text("Copied")
    assert numbers_page.evaluate("navigator.clipboard.readText()") == "2568"
    button(numbers_page, "Copy all lines").click()
    numbers_page.wait_for_function(
        "async (text) => await navigator.clipboard.readText() === text", arg="40718\n2568\n93350"
    )


def test_without_the_clipboard_the_text_is_selected(open_page: OpenPage, service: Service) -> None:
    """Browsers have no clipboard over plain http to other hosts: the page selects the text and says what to press."""
    page = ready(open_page(service.http_url))
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    numbers(page)
    draw(page, number("507"))
    expect_lines(page, "507")
    button(page, "Copy line 1").click()
    expect(page.locator("[aria-live=polite]")).to_contain_text("Ctrl+C")
    assert page.evaluate("getSelection().toString()") == "507"


def test_a_letter_is_not_read_as_a_digit(numbers_page: Page) -> None:
    """What is no digit, or a part of it, is a placeholder with a box in another line style, or it is ignored with a box."""
    letter = [[(0.6 + 0.4 * x, 0.25 + 0.5 * y) for x, y in stroke] for stroke in LETTER]
    draw(numbers_page, [*number("7"), *letter])
    expect(numbers_page.locator(".boxes :is(.unread, .ignored, .check)")).not_to_have_count(0)
    expect(numbers_page.locator(".boxes .sure")).not_to_have_count(0)


def test_a_picture_is_not_replaced_by_a_stroke(open_page: OpenPage, service: Service) -> None:
    """A finger on a picture of numbers shows the mark there; the picture stays until it is cleared."""
    page = numbers(ready(open_page(service.http_url, **PHONE)))
    example(page, "A number")
    expect_lines(page, "28306")
    box = page.locator("#picture .boxes rect:not(.ignored)").nth(1).bounding_box()
    assert box
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#mark .character")).to_have_text("8")
    expect(page.get_by_role("img", name="A number").first).to_be_visible()
    button(page, "Clear").tap()
    expect(page.get_by_text(INVITATION)).to_be_visible()


def test_a_bad_file_gets_the_words_of_the_service(numbers_page: Page) -> None:
    """A file that is no image is refused, and a number is then read."""
    choose(numbers_page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    expect(numbers_page.get_by_text("The picture was rejected")).to_be_visible()
    expect(numbers_page.locator("#message")).not_to_be_empty()
    button(numbers_page, "Clear").click()
    draw(numbers_page, number("507"))
    expect_lines(numbers_page, "507")


def test_answers_are_announced(numbers_page: Page) -> None:
    """A screen reader reads how much was read, and the digits one by one."""
    draw(numbers_page, number("507"))
    expect(numbers_page.locator("[aria-live=polite]")).to_have_text(re.compile(r"^1 line with 3 digits.*\. 5 0 7\. "))
