"""Pictures on the page in a real browser: dropped, pasted, chosen, photographed, examples, and files that are not pictures."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import FileChooser, Page, expect

from support.bomb import bomb
from support.browser import PHONE, draw
from support.digits import MODELS
from support.pen_strokes import DIGITS
from support.serving import PATIENCE_S, Service, wait_until
from support.web_page import (
    ACCEPTED,
    BLANK,
    SEVERAL,
    UNFAMILIAR,
    answer,
    button,
    choose,
    drop,
    expect_answer,
    expect_no_answer,
    ready,
)

THREE = (MODELS.parent / "examples" / "three.png").read_bytes()


def blank() -> bytes:
    """Return a PNG of white paper."""
    file = io.BytesIO()
    Image.new("L", (200, 200), 255).save(file, "PNG")
    return file.getvalue()


def photo() -> bytes:
    """Return a JPEG of 12 million pixels with a digit on paper, as a phone takes it."""
    with Image.open(io.BytesIO(THREE)) as digit:
        page = Image.new("L", (4000, 3000), 235)
        page.paste(digit.convert("L").resize((900, 900)), (1500, 900))
    file = io.BytesIO()
    page.save(file, "JPEG")
    return file.getvalue()


def words_of_the_service(service: Service, body: bytes) -> str:
    """Return the error that the service has for a file."""
    request = urllib.request.Request(
        f"{service.http_url}/v1/classify", body, {"content-type": "application/octet-stream"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    return str(json.loads(caught.value.read())["message"])


def test_a_dropped_file_is_classified(page: Page) -> None:
    """The picture is shown with its name, and gets an answer."""
    drop(page, THREE, "three.png", "image/png")
    expect_answer(page, "3")
    expect(page.get_by_role("img", name="three.png")).to_be_visible()


def test_a_pasted_picture_is_classified(page: Page) -> None:
    """A picture of the clipboard gets an answer."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (encoded) => {
            const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        base64.b64encode(THREE).decode(),
    )
    page.keyboard.press("Control+v")
    expect_answer(page, "3")


def test_a_chosen_file_is_classified(page: Page) -> None:
    """The same file can be chosen twice; a photo is reduced by the service."""
    for _ in range(2):
        choose(page, {"name": "three.png", "mimeType": "image/png", "buffer": THREE})
        expect_answer(page, "3")
        button(page, "Clear").click()
        expect_no_answer(page)
    choose(page, {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo()})
    expect_answer(page, "3")


def test_a_phone_can_take_a_photo(open_page: Callable[..., Page], service: Service) -> None:
    """The button opens the camera, and the photo gets an answer. Without a touch screen there is no such button."""
    page = ready(open_page(service.http_url, **PHONE))
    with page.expect_file_chooser() as chooser:
        button(page, "Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files({"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo()})
    expect_answer(page, "3")


def test_the_file_chooser_opens_with_the_keyboard(page: Page) -> None:
    """Enter on the button opens it."""
    choosers: list[FileChooser] = []

    def opened(chooser: FileChooser) -> None:
        choosers.append(chooser)

    page.on("filechooser", opened)
    button(page, "Choose a picture").focus()
    expect(button(page, "Choose a picture")).to_be_focused()
    page.keyboard.press("Enter")
    wait_until(lambda: page.evaluate("true") and choosers, "the file chooser is open")


def test_all_examples_have_an_answer(page: Page) -> None:
    """A click on an example shows it, and each verdict is the answer of one of them."""
    verdicts = set()
    examples = page.get_by_role("list", name="Examples").get_by_role("button")
    for example in examples.all():
        with page.expect_response("**/v1/classify*") as response:
            example.click()
        verdict = json.loads(response.value.text())["predictions"][0]["verdict"]
        words = {"ACCEPTED": ACCEPTED, "UNFAMILIAR": UNFAMILIAR, "SEVERAL": SEVERAL, "BLANK": BLANK}
        expect(page.locator("#verdict")).to_have_text(words[verdict.removeprefix("VERDICT_")])
        verdicts.add(verdict)
    assert len(verdicts) == 4


def test_blank_paper_is_blank(page: Page) -> None:
    """A picture without ink has no label, and the page says so."""
    drop(page, blank(), "paper.png", "image/png")
    expect(page.locator("#verdict")).to_have_text(BLANK)


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", b"no image"), ("bomb.png", bomb()), ("cut.png", THREE[:200]), ("empty.png", b"")],
    ids=["text", "bomb", "cut", "empty"],
)
def test_bad_files_get_the_words_of_the_service(page: Page, service: Service, name: str, content: bytes) -> None:
    """The page shows the error of the service in the place of the answer; a drawing then gets an answer."""
    draw(page, DIGITS["7"][0])
    expect_answer(page, "7")
    choose(page, {"name": name, "mimeType": "application/octet-stream", "buffer": content})
    expect(answer(page).get_by_text(words_of_the_service(service, content))).to_be_visible()
    expect(page.locator("#label")).not_to_have_text("7")
    expect(page.locator("html")).to_have_attribute("data-state", "ready")
    draw(page, DIGITS["3"][0])
    expect_answer(page, "3")


def test_a_file_that_is_too_large_gets_the_words_of_the_service(page: Page, service: Service, tmp_path: Path) -> None:
    """A file of more than 16 MiB is refused with the same words, and the service stays ready."""
    content = blank() + bytes(17 << 20)
    file = tmp_path / "large.png"
    file.write_bytes(content)
    choose(page, file)
    expect(answer(page).get_by_text(words_of_the_service(service, content))).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-state", "ready")


def test_what_is_dropped_without_a_file_gets_words(page: Page) -> None:
    """Text, or a picture of another page, is not a file: the page says so, and does not open it."""
    transfer = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            transfer.setData("text/plain", "three");
            return transfer;
        }"""
    )
    page.dispatch_event("#pad", "drop", {"dataTransfer": transfer})
    expect(answer(page).get_by_text("not a file")).to_be_visible()


def drop_paths(page: Page, *paths: Path) -> None:
    """Drop files or folders from outside of the browser on the pad."""
    session = page.context.new_cdp_session(page)
    box = page.locator("#pad").bounding_box()
    assert box
    for kind in ("dragEnter", "dragOver", "drop"):
        files = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 50, "y": box["y"] + 50, "data": files})
    session.detach()


def test_a_dropped_folder_gets_words(page: Page, tmp_path: Path) -> None:
    """A folder cannot be read: the page says so, sends nothing, and does not take the service for gone."""
    draw(page, DIGITS["7"][0])
    expect_answer(page, "7")
    drop_paths(page, tmp_path)
    expect(answer(page).get_by_text(f"{tmp_path.name} cannot be read")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-state", "ready")


def test_the_first_of_several_dropped_files_is_classified(page: Page, tmp_path: Path) -> None:
    """The page shows which of the files has the answer."""
    files = [tmp_path / "three.png", tmp_path / "other.png"]
    for file in files:
        file.write_bytes(THREE)
    drop_paths(page, *files)
    expect_answer(page, "3")
    expect(page.get_by_text("three.png (first of 2 files)")).to_be_visible()
