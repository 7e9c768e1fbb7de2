"""Find the files of UniPen's digits whose segments do not match their coordinates.

    python -m scripts.find_misaligned_pen_files ARCHIVE --bundle BUNDLE

Prints the names for ``training/digitserve_training/data/unipen_misaligned.txt``: files of which the network classifies
fewer than 60 % of the digits correctly. It must not have been trained on UniPen.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from digitserve.inference.bundle import read_bundle
from digitserve.inference.session import Session
from digitserve_training.data import unipen
from digitserve_training.synth import pen_ink

MIN_SHARE = 0.6


def main() -> None:
    """Print the names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    digits = unipen.read(options.archive)[unipen.DIGITS]
    images = pen_ink.draw_plain([digit.strokes for digit in digits])
    predicted = Session(read_bundle(options.bundle)).run(images).probabilities.argmax(axis=1)
    right: dict[str, list[bool]] = defaultdict(list)
    for digit, label in zip(digits, predicted, strict=True):
        right[digit.file].append(digit.label == str(label))
    for file in sorted(file for file, flags in right.items() if np.mean(flags) < MIN_SHARE):
        print(file)


if __name__ == "__main__":
    main()
