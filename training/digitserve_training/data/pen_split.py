"""Which UniPen characters training uses: aligned files only, split by writer, with letters and symbols as non-digits.

``fit.pool`` draws the images; ``fit.settings`` says whether a run has pen strokes at all. Needs no TensorFlow.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from digitserve_training.data import unipen
from digitserve_training.data.unipen import DIGITS, LETTERS_AND_SYMBOLS, MISALIGNED_SOURCES, PenCharacter

ENVIRONMENT = "DIGITSERVE_STROKES"
"""Environment variable that names the archive where ``--strokes`` does not."""

VALIDATION_SHARE = 1 / 8
"""Share of the writers whose digits are held out."""

AMBIGUOUS = frozenset("OoQDIlijJ|ZzSsBbGgqyTY&?/\\()[]{}!1'`,.-_:;") | {"\\@", "\\\\"}
"""Letters and symbols that some people write as others write a digit, or that show nothing but a dot or a line once they
are scaled to a digit's size: to reject them would be to reject digits."""


@dataclass(frozen=True)
class PenSplit:
    """Pen characters of one training.

    Attributes:
        training: digits to train on.
        validation: digits of writers that training never sees.
        non_digits: letters and symbols of the training writers and of writers without digits.
        fingerprint: sha256 (hexadecimal) of all labels and pen positions.
    """

    training: tuple[PenCharacter, ...]
    validation: tuple[PenCharacter, ...]
    non_digits: tuple[PenCharacter, ...]
    fingerprint: str


def read(path: Path) -> PenSplit:
    """Read and split the archive or folder that ``unipen.read`` takes.

    Raises:
        DataError: see ``unipen.read``.
    """
    misaligned = misaligned_files()
    digits = [digit for digit in unipen.read(path, DIGITS) if digit.file not in misaligned and digit.label.isdigit()]
    held_out = held_out_writers(digits)
    others = [
        character
        for category in LETTERS_AND_SYMBOLS
        for character in unipen.read(path, category)
        if character.label not in AMBIGUOUS
        and character.writer not in held_out
        and character.writer.partition("/")[0] not in MISALIGNED_SOURCES
    ]
    return PenSplit(
        training=tuple(digit for digit in digits if digit.writer not in held_out),
        validation=tuple(digit for digit in digits if digit.writer in held_out),
        non_digits=tuple(others),
        fingerprint=_fingerprint([*digits, *others]),
    )


def misaligned_files() -> frozenset[str]:
    """Return the files of category 1a whose segments do not match their coordinates.

    A file is listed when a network that was trained without UniPen reads fewer than 60 % of its digits right; whole files
    only, so that no single unusual digit is left out. Made by ``python -m scripts.find_misaligned_pen_files``.
    """
    lines = files(__package__).joinpath("unipen_misaligned.txt").read_text().splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def held_out_writers(digits: list[PenCharacter]) -> frozenset[str]:
    """Choose an eighth of the writers, by a hash of their names: the same ones in every run."""
    writers = sorted({digit.writer for digit in digits}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return frozenset(writers[: int(len(writers) * VALIDATION_SHARE)])


def _fingerprint(characters: list[PenCharacter]) -> str:
    digest = hashlib.sha256()
    for character in characters:
        digest.update(f"{character.file} {character.label} {len(character.strokes)}\n".encode())
        for stroke in character.strokes:
            digest.update(stroke.tobytes())
    return digest.hexdigest()
