"""What ``digitserve classify`` and ``read`` draw on a terminal: each image with its probabilities, many images on a sheet, pages.

    classify, read ──▶ Drawing ──▶ picture, terminal

Used on the main thread. Without a terminal that can show it, the commands print plain text instead.
"""

from collections.abc import Iterator, Sequence

from digitserve.cli.picture import bars, picture
from digitserve.client import Line, Mark, MarkKind, Prediction, Verdict
from digitserve.terminal import BOLD, DIM, GAP, GREEN, RED, RESET, YELLOW, Block, Terminal, flow, stack, text_block
from digitserve.vision.image_files import Pixels

COLUMNS = 28
"""Width of a picture: as many pixels as the network sees."""

PAGE_COLUMNS = 80
"""Width of the picture of a page, and its height in pixels: 40 lines."""

SURE = 0.95
"""Confidence from which a digit of a page is drawn as accepted: of those with less, one in twenty or more is wrong."""

TILE_COLUMNS = 18
"""Width of an image on a sheet: four fit into 80 columns."""

NUM_BARS = 10
"""Most probabilities that are drawn: all of a model for digits."""

MAX_LARGE = 3
"""More images than this are drawn on a sheet."""

_MIN_BARS, _MAX_BARS = 18, 40

_ACCEPTED, _NOT_ACCEPTED = f"{BOLD};{GREEN}", f"{BOLD};{YELLOW}"


class Drawing:
    """The images that one command draws; it holds those of an unfinished row of a sheet."""

    def __init__(self, terminal: Terminal) -> None:
        """Start a drawing on a terminal."""
        self._terminal = terminal
        self._tiles: list[Block] = []

    def large(self, pixels: Pixels, prediction: Prediction) -> Iterator[str]:
        """Yield the lines of an image with its probabilities and, if it was explained, what the network saw.

        Args:
            pixels: uint8[H,W,C], the image.
            prediction: the answer, with up to ``NUM_BARS`` classes.
        """
        blocks = [picture(pixels, self._terminal, self._columns)]
        if prediction.preparation is not None:
            seen = picture(prediction.preparation.pixels, self._terminal, self._columns)
            height, width = pixels.shape[:2]
            blocks = [
                stack(text_block(f"{width}x{height}", self._terminal, self._columns), blocks[0]),
                stack(text_block("seen by the network", self._terminal, self._columns), seen),
            ]
        if prediction.top:
            drawn = self._bars(prediction, sum(block.width + len(GAP) for block in blocks))
            blocks.append(
                drawn
                if prediction.preparation is None
                else stack(text_block("probabilities", self._terminal, drawn.width), drawn)
            )
        yield from flow(blocks, self._terminal.width)
        yield ""

    def page(self, pixels: Pixels) -> Iterator[str]:
        """Yield the lines of a picture: uint8[H,W,C], with numbers."""
        yield from flow(
            [picture(pixels, self._terminal, max(1, min(PAGE_COLUMNS, self._terminal.width)))], self._terminal.width
        )

    def reading(self, line: Line) -> str:
        """Return the text of a line of a page: each digit in the colour of its confidence, then the confidence of the line."""
        marks = list(reversed(line.marks))
        shown = ""
        for character in line.text:
            # A space that no cell stands for is a wide gap.
            is_mark = bool(marks) and marks[-1].text == character
            colour = _colour(marks.pop()) if is_mark else ""
            shown += f"\x1b[{colour}m{character}{RESET}" if colour else character
        return f"{shown}{GAP}\x1b[{DIM}m{line.confidence:.1%}{RESET}"

    @property
    def _columns(self) -> int:
        return max(1, min(COLUMNS, self._terminal.width))

    def _bars(self, prediction: Prediction, used: int) -> Block:
        """Draw probabilities to the right of the pictures, which have ``used`` columns; below them if there is no room."""
        free = self._terminal.width - used
        width = min(_MAX_BARS, free if free >= _MIN_BARS else self._terminal.width)
        scores = list(prediction.top)
        if {score.class_index for score in scores} == set(range(len(scores))):
            # All classes: a digit is found at its place.
            scores.sort(key=lambda score: score.class_index)
        colour = _ACCEPTED if prediction.verdict is Verdict.ACCEPTED else _NOT_ACCEPTED
        return bars(
            [(score.label, score.confidence) for score in scores], prediction.label, colour, self._terminal, width
        )

    def add_to_sheet(self, name: str, pixels: Pixels, prediction: Prediction) -> Iterator[str]:
        """Add an image to the sheet; yield the lines of a row that is now complete."""
        tile = min(TILE_COLUMNS, self._terminal.width)
        colour = _ACCEPTED if prediction.verdict is Verdict.ACCEPTED else _NOT_ACCEPTED
        caption = text_block(name, self._terminal, tile), text_block(_summary(prediction), self._terminal, tile, colour)
        self._tiles.append(stack(*caption, picture(pixels, self._terminal, tile)))
        if (len(self._tiles) + 1) * (tile + len(GAP)) - len(GAP) > self._terminal.width:
            yield from self.finish_row()

    def finish_row(self) -> Iterator[str]:
        """Yield the lines of the images that were added since the last complete row."""
        if self._tiles:
            yield from flow(self._tiles, self._terminal.width)
            yield ""
        self._tiles = []


def is_sheet(files: Sequence[str], num_images: int, *, detailed: bool) -> bool:
    """Return whether the images of a file go on a sheet: there are many, and no further details were requested."""
    return max(len(files), num_images) > MAX_LARGE and not detailed


def _colour(mark: Mark) -> str:
    if mark.kind is MarkKind.UNREAD:
        return RED
    return (_ACCEPTED if mark.confidence >= SURE else _NOT_ACCEPTED) if mark.kind is MarkKind.DIGIT else ""


def _summary(prediction: Prediction) -> str:
    """Return a prediction in at most ``TILE_COLUMNS`` columns, for labels of one character."""
    answer = f"{prediction.label} {prediction.confidence:.0%}"
    return {
        Verdict.ACCEPTED: f"{prediction.label}  {prediction.confidence:.1%}",
        Verdict.BLANK: "blank",
        Verdict.UNFAMILIAR: f"unfamiliar ({answer})",
        Verdict.SEVERAL: f"several ({answer})",
    }.get(prediction.verdict, answer)
