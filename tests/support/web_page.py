"""The parts of the page at ``/``, found as a user finds them, and what they must show."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, expect

ACCEPTED = "Recognised as a digit"
UNFAMILIAR = "Not recognised as a digit"
SEVERAL = "Several separate shapes"
BLANK = "Blank"

INVITATION = "Draw a digit, or choose an example."

LABELS_SEEN = """() => {
    const [section, label] = [document.querySelector("#answer"), document.querySelector("#label")];
    window.accepted = [];
    new MutationObserver(() => {
        if (section.dataset.kind === "accepted") window.accepted.push(label.textContent);
    }).observe(section, {childList: true, subtree: true, attributes: true, characterData: true});
}"""


def ready(page: Page) -> Page:
    """Wait until a page shows that the service is ready."""
    expect_state(page, "ready")
    return page


def expect_state(page: Page, state: str) -> None:
    """Wait until the page is in a state, and says so."""
    expect(page.locator("html")).to_have_attribute("data-state", state)
    words = {
        "starting": "Not ready", "ready": "Ready", "overloaded": "Overloaded", "gone": "No connection",
        "unauthorised": "Token required",
    }  # fmt: skip
    expect(page.get_by_role("status")).to_contain_text(words[state])


def button(page: Page, name: str) -> Locator:
    """Return a button by its name."""
    return page.get_by_role("button", name=name, exact=True)


def answer(page: Page) -> Locator:
    """Return the section with the answer."""
    return page.get_by_role("region", name="Answer")


def bars(page: Page) -> Locator:
    """Return the probabilities."""
    return page.get_by_role("list", name="Probabilities").get_by_role("listitem")


def expect_answer(page: Page, label: str, verdict: str = ACCEPTED) -> None:
    """Wait for an answer: its label, its verdict, and ten bars of which the largest is that of the label."""
    expect(page.locator("#label")).to_have_text(label)
    expect(page.locator("#verdict")).to_have_text(verdict)
    expect(bars(page)).to_have_count(10)
    shares = dict(map(_share, bars(page).all_text_contents()))
    assert max(shares, key=lambda name: shares[name]) == label
    assert 99 < sum(shares.values()) < 101


def expect_no_answer(page: Page) -> None:
    """Wait until the page shows no answer."""
    expect(page.locator("#verdict")).to_have_text(INVITATION)
    expect(page.locator("#label")).to_have_text("\N{EN DASH}")
    expect(page.locator("#confidence")).to_have_text("")
    expect(bars(page).filter(has_text="%")).to_have_count(0)


def _share(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"(\d): >?(\d+\.\d) %", text.replace("\N{NO-BREAK SPACE}", " "))
    assert found, text
    return found[1], float(found[2])


def numbers(page: Page) -> Page:
    """Change to the mode "Numbers"."""
    page.get_by_role("navigation", name="Mode").get_by_role("link", name="Numbers").click()
    expect(page.locator("html")).to_have_attribute("data-mode", "number")
    return page


def lines(page: Page) -> Locator:
    """Return the lines that were read."""
    return page.get_by_role("list", name="Lines").get_by_role("listitem")


def texts(page: Page) -> Locator:
    """Return the fields with the texts of the lines."""
    return lines(page).get_by_role("textbox")


def marks(page: Page) -> Locator:
    """Return the buttons of all marks."""
    return lines(page).get_by_role("toolbar").get_by_role("button")


def expect_lines(page: Page, *expected: str) -> None:
    """Wait until the page shows exactly these texts."""
    expect(texts(page)).to_have_count(len(expected))
    for index, text in enumerate(expected):
        expect(texts(page).nth(index)).to_have_value(text)


def drop(page: Page, content: bytes, name: str, kind: str) -> None:
    """Drop a file on the pad."""
    transfer = page.evaluate_handle(
        """([content, name, type]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], name, {type}));
            return transfer;
        }""",
        [list(content), name, kind],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#pad", event, {"dataTransfer": transfer})


def choose(page: Page, file: Any) -> None:
    """Choose a file with the button: its path, or ``{"name": ..., "mimeType": ..., "buffer": ...}``."""
    with page.expect_file_chooser() as chooser:
        button(page, "Choose a picture").click()
    chooser.value.set_files(file)


@contextmanager
def accepted_labels(page: Page) -> Iterator[list[str]]:
    """Collect the labels of digits that the page shows as recognised during the ``with`` block."""
    seen: list[str] = []
    page.evaluate(LABELS_SEEN)
    yield seen
    seen.extend(page.evaluate("window.accepted"))
