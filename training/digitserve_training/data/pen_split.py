"""The UniPen characters that training uses: digits of aligned files, split by writer, and non-digits.

``cli`` and ``evaluate.converted_model`` read them; ``fit.pen_images`` draws them. Needs no TensorFlow.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from digitserve_training.data import unipen
from digitserve_training.data.unipen import DIGITS, LETTERS_AND_SYMBOLS, MISALIGNED_SOURCES, PenCharacter
from digitserve_training.errors import DataError

ENVIRONMENT = "DIGITSERVE_STROKES"
"""Environment variable with the path of the archive; used if ``--strokes`` is not given."""

LABELS = frozenset("0123456789")

VALIDATION_SHARE = 1 / 8
"""Share of the writers whose digits are held out."""

AMBIGUOUS = frozenset("OoQDIlijJ|ZzSsBbGgqyTY&?/\\()[]{}!1'`,.-_:;") | {"\\@", "\\\\"}
"""Letters and symbols that some people write like a digit, and those that are only a dot or a line after framing.

A network that rejects them would also reject digits."""


@dataclass(frozen=True)
class PenSplit:
    """The pen characters of a training.

    Attributes:
        training: digits to train on.
        validation: digits of writers that occur in no other part.
        non_digits: letters and symbols to train on.
        fingerprint: sha256 (hexadecimal) of all labels and pen positions.
    """

    training: tuple[PenCharacter, ...] = field(repr=False, compare=False)
    validation: tuple[PenCharacter, ...] = field(repr=False, compare=False)
    non_digits: tuple[PenCharacter, ...] = field(repr=False, compare=False)
    fingerprint: str


def find_path(path: Path | None) -> Path | None:
    """Return the path of the archive: the given one, else the one in ``DIGITSERVE_STROKES``, else None."""
    variable = os.environ.get(ENVIRONMENT)
    return path or (Path(variable) if variable else None)


def read(path: Path) -> PenSplit:
    """Read and split UniPen; the same split every time.

    Args:
        path: the archive or its unpacked folder, as ``unipen.read`` takes it.

    Raises:
        DataError: as of ``unipen.read``; or there are too few writers to hold one out.
    """
    found = unipen.read(path, (DIGITS, *LETTERS_AND_SYMBOLS))
    misaligned = misaligned_files()
    digits = [digit for digit in found[DIGITS] if digit.file not in misaligned and digit.label in LABELS]
    held_out = held_out_writers(digits)
    if not held_out:
        raise DataError(f"{path}: too few writers of digits to hold one out; expected {unipen.ORIGIN}")
    non_digits = [
        character
        for category in LETTERS_AND_SYMBOLS
        for character in found[category]
        if character.label not in AMBIGUOUS
        and character.writer not in held_out
        and character.writer.partition("/")[0] not in MISALIGNED_SOURCES
    ]
    return PenSplit(
        training=tuple(digit for digit in digits if digit.writer not in held_out),
        validation=tuple(digit for digit in digits if digit.writer in held_out),
        non_digits=tuple(non_digits),
        fingerprint=_fingerprint([*digits, *non_digits]),
    )


def misaligned_files() -> frozenset[str]:
    """Return the files of category 1a whose segments do not match their coordinates.

    A file is listed if a network that was trained without UniPen classifies fewer than 60 % of its digits correctly.
    Only whole files are listed, so no single unusual digit is omitted. ``python -m scripts.find_misaligned_pen_files``
    prints the list.
    """
    lines = files(__package__).joinpath("unipen_misaligned.txt").read_text().splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def held_out_writers(digits: Sequence[PenCharacter]) -> frozenset[str]:
    """Choose an eighth of the writers by the hash of their names."""
    writers = sorted({digit.writer for digit in digits}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return frozenset(writers[: int(len(writers) * VALIDATION_SHARE)])


def _fingerprint(characters: Iterable[PenCharacter]) -> str:
    digest = hashlib.sha256()
    for character in characters:
        digest.update(f"{character.file} {character.label} {len(character.strokes)}\n".encode())
        for stroke in character.strokes:
            digest.update(stroke.astype("<f4").tobytes())
    return digest.hexdigest()
