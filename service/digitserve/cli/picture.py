"""Draws images in half-blocks, and probabilities as bars.

    drawing ──pixels, probabilities──▶ picture, bars ──▶ terminal.Block

Used by ``classify``, on the main thread.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve.terminal import RESET, Block, Terminal, join, num_columns, printable, shorten

TRANSPARENT = 192
"""Grey level below transparent pixels: both black and white ink can be seen on it."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_CUBE = np.array([0, 95, 135, 175, 215, 255])
"""Levels of red, green and blue in the colours 16 to 231 of xterm."""


def picture(pixels: NDArray[np.uint8], terminal: Terminal, columns: int) -> Block:
    """Draw an image, reduced to at most ``columns`` x ``columns`` pixels; two rows of pixels are one line.

    Args:
        pixels: uint8[H,W], or uint8[H,W,C] with 1, 3 or 4 channels; H and W at least 1.
        terminal: without ``unicode``, each pair of pixels has its mean colour.
        columns: width of the block.
    """
    shown = _reduce(pixels, columns)
    lines = []
    for top in range(0, len(shown), 2):
        pair = shown[top : top + 2]
        lines.append((shown.shape[1], _pixel_line(pair, terminal)))
    return Block(columns, lines)


def _reduce(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return uint8[h,w,3] with sides of at most ``side``, on grey where the image is transparent."""
    channels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels  # noqa: PLR2004 - [H,W,C]
    image = Image.fromarray(channels)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (TRANSPARENT, TRANSPARENT, TRANSPARENT, 255))
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _pixel_line(pair: NDArray[np.uint8], terminal: Terminal) -> str:
    """Return one line of text for one or two rows of pixels: uint8[1 or 2,w,3]."""
    if not terminal.unicode:
        means = pair.astype(np.uint16).mean(axis=0).astype(np.uint8)
        return _with_colours((_colour(48, pixel, terminal), " ") for pixel in means)
    if len(pair) == 1:
        # The lower half of the last line keeps the colour of the terminal.
        return _with_colours((_colour(38, pixel, terminal), "▀") for pixel in pair[0])
    return _with_colours(
        (f"{_colour(38, upper, terminal)};{_colour(48, lower, terminal)}", "▀")
        for upper, lower in zip(*pair, strict=True)
    )


def _with_colours(cells: Iterable[tuple[str, str]]) -> str:
    """Join characters, each with the parameters of its colour; equal ones are written once."""
    text, last = "", ""
    for colour, character in cells:
        text += character if colour == last else f"\x1b[{colour}m{character}"
        last = colour
    return text + RESET


def _colour(kind: int, pixel: NDArray[np.uint8], terminal: Terminal) -> str:
    """Return the parameters of a colour: ``kind`` is 38 for the character, 48 for its background."""
    red, green, blue = pixel.tolist()
    if terminal.true_colour:
        return f"{kind};2;{red};{green};{blue}"
    if red == green == blue:
        # 24 levels of grey from 8 to 238; 16 and 231 are black and white.
        level = round((red - 8) / 10)
        number = 16 if level < 0 else 231 if level > 23 else 232 + level  # noqa: PLR2004 - see above
        return f"{kind};5;{number}"
    steps = np.abs(_CUBE - pixel.astype(np.int16)[:, np.newaxis]).argmin(axis=1).tolist()
    return f"{kind};5;{16 + 36 * steps[0] + 6 * steps[1] + steps[2]}"


def bars(scores: Sequence[tuple[str, float]], chosen: str, colour: str, terminal: Terminal, width: int) -> Block:
    """Draw probabilities as horizontal bars: label, bar, percent.

    Args:
        scores: labels and probabilities from 0 to 1, at least one.
        chosen: the label whose line has a colour.
        colour: its SGR parameters, such as ``1;32``.
        terminal: without ``unicode``, bars consist of ``#``.
        width: of the block.
    """
    labels = [shorten(printable(label), max(1, width // 3)) for label, _ in scores]
    margin = max(map(num_columns, labels))
    length = max(1, width - margin - len(" 100.0%") - 1)
    lines = []
    for label, (name, score) in zip(labels, scores, strict=True):
        text = f"{' ' * (margin - num_columns(label))}{label} {_bar(score, length, terminal)} {score:6.1%}"
        lines.append(join([(text, colour if name == chosen else "")], terminal, num_columns(text)))
    return Block(width, lines)


def _bar(share: float, length: int, terminal: Terminal) -> str:
    """Return a bar of ``length`` columns, filled to a share from 0 to 1."""
    if not terminal.unicode:
        return ("#" * round(share * length)).ljust(length)
    whole, eighths = divmod(round(min(1.0, share) * length * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths].strip()).ljust(length)
