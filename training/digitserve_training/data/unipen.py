"""Reader of UniPen: isolated characters by several hundred writers, as pen coordinates.

    archive ─┬─▶ data/<category>/…: segments and labels ─┬─▶ PenCharacter
             └─▶ include/…: pen coordinates ─────────────┘

Categories: 1a digits, 1b upper-case letters, 1c lower-case letters, 1d symbols. A segment such as
``.SEGMENT CHARACTER 3-4 ? "7"`` names components of the included file: its ``.PEN_DOWN`` statements, counted from 0.
Used by ``pen_split``. Needs no TensorFlow.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve_training.errors import DataError

CREDIT = (
    'I. Guyon, L. Schomaker, R. Plamondon, M. Liberman, S. Janet, "UNIPEN project of on-line data exchange and '
    'recognizer benchmarks", ICPR 1994; data: UniPen train_r01_v07, Zenodo, doi 10.5281/zenodo.1195803, CC BY 4.0'
)
"""Attribution that the licence of the data requires."""

ORIGIN = "UniPen train_r01_v07 from Zenodo, doi 10.5281/zenodo.1195803 (CC BY 4.0)"

DIGITS = "1a"
LETTERS_AND_SYMBOLS = ("1b", "1c", "1d")

MISALIGNED_SOURCES = frozenset({"tos", "pri", "cea"})
"""Contributors nearly all of whose segments name other components than those of the labelled character."""

MAX_COORDINATE = 1e9
"""Components with larger coordinates, or NaN, are damaged and have no positions."""

Stroke = NDArray[np.float32]
"""Pen positions float32[P,2], x to the right and y down, in units of the tablet."""

_SEGMENT = re.compile(r'^\.SEGMENT\s+CHARACTER\s+(\S+)\s+\S+\s+"(.*)"\s*$', re.MULTILINE)
_INCLUDE = re.compile(r"^\.INCLUDE\s+(\S+)", re.MULTILINE)
_WRITER = re.compile(r"^\.WRITER_ID\s+(\S+)", re.MULTILINE)
_PEN_DOWN = re.compile(r"^\.PEN_DOWN\b(.*(?:\n(?!\.).*)*)", re.MULTILINE)
_RANGE = re.compile(r"(\d+)(?::(\d+))?(?:-(\d+)(?::(\d+))?)?")


class PenCharacter(NamedTuple):
    """One handwritten character.

    Attributes:
        label: the character.
        strokes: in the order of writing, at least one; each has at least one position.
        writer: contributor and writer, such as ``apa/01``; equal for all characters of one person.
        file: name of the segment's file, relative to the folder of its category.
    """

    label: str
    strokes: tuple[Stroke, ...]
    writer: str
    file: str


def read(path: Path, categories: Sequence[str] = (DIGITS,)) -> dict[str, list[PenCharacter]]:
    """Read the characters of some categories, in the order of file names.

    Segments that name components which their file does not have, or without pen positions, are omitted.

    Args:
        path: the archive (.tar, .tar.gz, .tar.xz), or its unpacked folder.
        categories: ``1a``, ``1b``, ``1c`` or ``1d``.

    Raises:
        DataError: the path is missing or damaged, or has no characters of a category; the message says what was found.
    """
    files = _read_files(path)
    found = {category: list(characters(files, category)) for category in categories}
    for category, read_characters in found.items():
        if not read_characters:
            raise DataError(f"{path}: no UniPen characters under data/{category}/; expected {ORIGIN}")
    return found


def characters(files: Mapping[str, str], category: str) -> Iterator[PenCharacter]:
    """Parse the characters of one category from an archive's texts by file name, in the order of file names."""
    pattern = re.compile(rf"(?:^|/)data/{category}/(.+)$")
    for place, name in sorted((match[1], name) for name in files if (match := pattern.search(name))):
        yield from _characters(place, name, files)


def _read_files(path: Path) -> Mapping[str, str]:
    try:
        if path.is_dir():
            found = ((file.relative_to(path).as_posix(), file.read_bytes()) for file in path.rglob("*.dat"))
            return {name: content.decode("latin-1") for name, content in found}
        with tarfile.open(path) as archive:
            return {
                member.name: content.read().decode("latin-1")
                for member in archive
                if member.name.endswith(".dat") and (content := archive.extractfile(member)) is not None
            }
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as an archive or folder of UniPen: {error}; expected {ORIGIN}"
        ) from None


def _characters(place: str, name: str, files: Mapping[str, str]) -> Iterator[PenCharacter]:
    text = files[name]
    root = name[: name.index("data/")]
    included = [files[target] for entry in _INCLUDE.findall(text) if (target := f"{root}include/{entry}") in files]
    components = [_positions(body) for content in included for body in _PEN_DOWN.findall(content)]
    source = PurePosixPath(place).parts[0]
    writers = [writer for content in included for writer in _WRITER.findall(content)]
    # Some files do not name their writer. Then all characters of the file count as one person's.
    writer = f"{source}/{writers[0] if writers else PurePosixPath(place).with_suffix('').as_posix()}"
    for delineation, label in _SEGMENT.findall(text):
        strokes = _strokes(delineation, components)
        if strokes:
            yield PenCharacter(label, strokes, writer, place)


def _positions(body: str) -> Stroke:
    """Parse a component's first two columns, which are X and Y in all files; UniPen's y points up.

    Returns:
        No position if a line does not begin with two finite numbers.
    """
    rows = [line.split()[:2] for line in body.splitlines() if line.strip()]
    try:
        positions = np.array([(float(row[0]), -float(row[1])) for row in rows], np.float64).reshape(-1, 2)
    except (ValueError, IndexError):
        return np.zeros((0, 2), np.float32)
    usable = np.abs(positions).max(initial=0) < MAX_COORDINATE
    return (positions if usable else positions[:0]).astype(np.float32)


def _strokes(delineation: str, components: list[Stroke]) -> tuple[Stroke, ...]:
    """Cut out the strokes that a delineation such as ``3``, ``3-4``, ``3:10-4:2`` or ``3,5`` names; () if one is missing."""
    strokes: list[Stroke] = []
    for part in delineation.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return ()
        first, first_point, last, last_point = match.groups()
        start, stop = int(first), int(last or first)
        if stop >= len(components) or stop < start:
            return ()
        for index in range(start, stop + 1):
            low = int(first_point) if first_point and index == start else 0
            high = int(last_point) + 1 if last_point and index == stop else None
            strokes.append(components[index][low:high])
    return tuple(stroke for stroke in strokes if len(stroke))
