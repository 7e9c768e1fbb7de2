"""Small archives in the format of UniPen, with digits and letters that are drawn from a few pen strokes."""

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from digitserve_training.synth.strokes import DIGIT_STROKES, LETTER_STROKES

NUM_WRITERS = 16

Strokes = Sequence[Sequence[tuple[float, float]]]


def write_archive(path: Path, num_writers: int = NUM_WRITERS, seed: int = 1) -> Path:
    """Write an archive: each writer has written each digit, the letters A and k, and the symbol %, slightly differently."""
    generator = np.random.default_rng(seed)
    folder = path.with_name(f"{path.name}.unpacked")
    others = {"1b": {"A": LETTER_STROKES["A"]}, "1c": {"k": LETTER_STROKES["k"]}, "1d": {"%": LETTER_STROKES["X"]}}
    for number in range(num_writers):
        digits = {label: styles[number % len(styles)] for label, styles in DIGIT_STROKES.items()}
        for category, drawings in {"1a": digits, **others}.items():
            write_file(folder, f"{category}/abc/{number}.dat", drawings, f"writer{number}", generator)
    return pack(folder, path)


def write_file(
    folder: Path, place: str, drawings: Mapping[str, Strokes], writer: str, generator: np.random.Generator
) -> None:
    """Write one file of segments, and the file of pen coordinates that it includes."""
    category, source, name = place.split("/")
    segments, components = [], []
    for label, strokes in drawings.items():
        first, last = len(components), len(components) + len(strokes) - 1
        segments.append(f'.SEGMENT CHARACTER {first}-{last} ? "{label}"\n')
        for stroke in strokes:
            points = 100 * np.array(stroke) + generator.normal(0, 3, (len(stroke), 2))
            # UniPen's y points up.
            components.append(".PEN_DOWN\n" + "".join(f"{x:.0f} {-y:.0f}\n" for x, y in points) + ".PEN_UP\n")
    included = f"{source}/{category}-{name}"
    _write(folder / "unipen" / "data" / place, f".INCLUDE {included}\n{''.join(segments)}")
    _write(folder / "unipen" / "include" / included, f".COORD X Y\n.WRITER_ID {writer}\n{''.join(components)}")


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as the published archive is packed."""
    with tarfile.open(path, "w:xz") as packed:
        packed.add(folder / "unipen", "unipen")
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
