"""Contact sheets of the mistakes as PNG files. ``report`` calls ``draw_pages``; equal mistakes give equal bytes."""

import io
from collections.abc import Iterator, Sequence

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from digitserve_training.evaluate.charts import ACCENT, GREY, INK, PALE
from digitserve_training.evaluate.formatting import percent
from digitserve_training.evaluate.pictures.thumbnails import SIDE_PX, Mistake

NUM_COLUMNS, NUM_ROWS = 5, 8
GAP_PX, MARGIN_PX, BORDER_PX, LINE_PX = 8, 14, 5, 17
CELL_WIDTH_PX = 2 * SIDE_PX + GAP_PX
CELL_HEIGHT_PX = SIDE_PX + 3 * LINE_PX + 4
FONT_PX = 13
PAPER, EMPTY = "#ffffff", "#f0f0f0"
CUT = "…"


def draw_pages(mistakes: Sequence[Mistake]) -> Iterator[bytes]:
    """Draw the mistakes in their order: left the file, right what the network saw, below file name, answer and verdict.

    Accepted mistakes have a border in the accent colour.

    Yields:
        One PNG file per page, cropped to its cells.
    """
    # matplotlib brings this font, so the pages are equal on all machines.
    font = ImageFont.truetype(findfont(FontProperties()), FONT_PX)
    per_page = NUM_COLUMNS * NUM_ROWS
    for start in range(0, len(mistakes), per_page):
        png = io.BytesIO()
        _page(mistakes[start : start + per_page], font).save(png, "PNG", optimize=True)
        yield png.getvalue()


def _page(mistakes: Sequence[Mistake], font: ImageFont.FreeTypeFont) -> Image.Image:
    num_columns, num_rows = min(NUM_COLUMNS, len(mistakes)), -(-len(mistakes) // NUM_COLUMNS)
    step_x, step_y = CELL_WIDTH_PX + 2 * MARGIN_PX, CELL_HEIGHT_PX + 2 * MARGIN_PX
    page = Image.new("RGB", (num_columns * step_x, num_rows * step_y), PAPER)
    for index, mistake in enumerate(mistakes):
        row, column = divmod(index, NUM_COLUMNS)
        _cell(page, column * step_x + MARGIN_PX, row * step_y + MARGIN_PX, mistake, font)
    return page


def _cell(page: Image.Image, left: int, top: int, mistake: Mistake, font: ImageFont.FreeTypeFont) -> None:
    drawing = ImageDraw.Draw(page)
    judged = mistake.judged
    colour = ACCENT if judged.accepted else INK
    if judged.accepted:
        box = (left - BORDER_PX, top - BORDER_PX, left + CELL_WIDTH_PX + BORDER_PX - 1, top + SIDE_PX + BORDER_PX - 1)
        drawing.rectangle(box, outline=ACCENT, width=2)
    seen = mistake.seen.resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST).convert("RGB")
    for image, x in ((mistake.picture, left), (seen, left + SIDE_PX + GAP_PX)):
        # White images would run into each other without an outline.
        drawing.rectangle((x - 1, top - 1, x + SIDE_PX, top + SIDE_PX), fill=EMPTY, outline=PALE)
        page.paste(image, (x + (SIDE_PX - image.width) // 2, top + (SIDE_PX - image.height) // 2))
    lines = (
        (mistake.title, colour),
        (f"{judged.answer.verdict.name}  {percent(judged.answer.confidence)}", colour),
        (judged.picture.file, GREY),
    )
    for number, (text, fill) in enumerate(lines):
        drawing.text((left, top + SIDE_PX + 6 + number * LINE_PX), _shorten(text, font), fill, font)


def _shorten(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Cut the middle out of a text that is wider than a cell: folder and number of a file are at its ends."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    kept = len(text)
    shortened = text
    while font.getlength(shortened) > CELL_WIDTH_PX and kept > 1:
        kept -= 1
        tail = kept * 2 // 3
        shortened = text[: kept - tail] + CUT + text[len(text) - tail :]
    return shortened
