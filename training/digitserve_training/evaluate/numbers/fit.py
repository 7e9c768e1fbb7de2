"""Fits the constants of ``digitserve.reading.confidence.FITTED``: how much each way to cut a piece weighs.

Run ``python -m digitserve_training.evaluate.numbers.fit BUNDLE`` after a new network was exported or the reader cuts differently, and
copy the constants that it prints. Synthetic fields show digits that were held out from MNIST's training set, so that neither the
network nor the test saw them, and letters and scribbles. One half of the doubtful pieces is fitted, the other half shows what the constants are worth.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digitserve.reading.confidence import FITTED, TextModel
from digitserve.reading.drafts import PieceDraft
from digitserve.reading.reader import Draft
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate.numbers import simulated
from digitserve_training.evaluate.numbers.local_reader import LocalReader, open_reader
from digitserve_training.synth import non_digits, numbers
from digitserve_training.synth.numbers import CHARACTERS, Number

NUM_FIELDS, TOUCHING_SHARE = 1200, 0.25
"""Fields of five marks: about one doubtful piece each."""

NO_DIGIT, NO_DIGIT_SHARE = CHARACTERS.index("?"), 0.05
"""Label of images that show no digit, and their share: the reader must not find digits in them."""

NUM_TRIALS = 350
"""Trials of the random search: six minutes on one core."""

CHANGED_SHARE = 0.35
"""Share of the constants that a trial changes."""

STEPS = TextModel(0.3, 0.6, 0.08, 4.0, 1.0, 1.0, 0.15, 1.0, 0.5, 3.0, 8.0, 0.5, 3.0, 0.4)
"""Standard deviation of the change of each constant; half of it in the second half of the trials."""

FLOOR = 1e-4
"""Probability of a text that is not found, so that one such piece does not decide."""


class Doubtful(NamedTuple):
    """A piece that was cut.

    Attributes:
        height: of the digits of its line.
        odds: that a mark of its line is no digit.
        piece: with the scores of its parts.
        text: that it shows; None if that is no digit, or not only digits.
    """

    height: float
    odds: float
    piece: PieceDraft
    text: str | None


class Quality(NamedTuple):
    """How well constants describe pieces.

    Attributes:
        log_likelihood: mean natural logarithm of the probability of the true text.
        right: share of pieces whose most probable text is true.
    """

    log_likelihood: float
    right: float


def with_non_digits(digits: Labelled, number: int) -> Labelled:
    """Return digits and images that show none, with the label ``NO_DIGIT``."""
    others = non_digits.for_training(number, simulated.SEED)
    labels = np.concatenate([digits.labels, np.full(number, NO_DIGIT)])
    return Labelled(np.concatenate([digits.images, others]), labels)


def collect(reader: LocalReader, digits: Labelled, number: int) -> list[Doubtful]:
    """Read synthetic fields of five digits, and list the pieces that were cut."""
    found: list[Doubtful] = []
    for index in range(number):
        generator = np.random.default_rng([simulated.SEED, index, len(digits)])
        drawn = numbers.field(generator, digits.images, digits.labels, touching_share=TOUCHING_SHARE)
        draft = reader.draft(drawn.pixels[..., np.newaxis], simulated.LINE)
        found += [
            Doubtful(line.height, line.unknown_odds(piece), piece, text)
            for line in draft.lines
            for piece in line.pieces
            if piece.scored and (text := _text_of(piece, draft, drawn)) != ""
        ]
    return found


def _text_of(piece: PieceDraft, draft: Draft, drawn: Number) -> str | None:
    """Return the digits of which a piece has more than half of the width; None if one of them is no digit."""
    box = draft.scale.box(piece.piece.box)
    shared = [min(box.right, other.right) - max(box.left, other.left) for other in drawn.boxes]
    labels = [
        label for width, other, label in zip(shared, drawn.boxes, drawn.labels, strict=True) if 2 * width > other.width
    ]
    return None if NO_DIGIT in labels else "".join(map(str, labels))


def measure(model: TextModel, pieces: Sequence[Doubtful]) -> Quality:
    """Weigh the texts of pieces with other constants."""
    likely = right = 0.0
    for height, odds, piece, text in pieces:
        piece.find_texts(height, odds, model)
        of_text = [found for found in piece.texts if (not found.is_cut if text is None else found.text == text)]
        likely += float(np.log(max(sum(found.weight for found in of_text), FLOOR)))
        right += piece.texts[0] in of_text
    return Quality(likely / len(pieces), right / len(pieces))


def search(pieces: Sequence[Doubtful], start: TextModel, num_trials: int, seed: int) -> TextModel:
    """Return the constants with the highest likelihood that a random search finds."""
    generator = np.random.default_rng(seed)
    best, best_likely = start, measure(start, pieces).log_likelihood
    for trial in range(num_trials):
        changed = generator.random(len(start)) < CHANGED_SHARE
        changed[generator.integers(len(start))] = True
        steps = changed * generator.standard_normal(len(start)) * STEPS * (1 if 2 * trial < num_trials else 0.5)
        model = TextModel(*(np.array(best) + steps).tolist())
        model = model._replace(link_cost=max(model.link_cost, 1.0))  # 0 times an infinite distance is nothing
        likely = measure(model, pieces).log_likelihood
        if likely > best_likely:
            best, best_likely = model, likely
    return best


def main(bundle: Path, num_fields: int = NUM_FIELDS, num_trials: int = NUM_TRIALS) -> None:
    """Print the constants for a bundle, and how well they describe other pieces."""
    digits = splits.split(splits.read_training()).validation
    shown = with_non_digits(digits, round(NO_DIGIT_SHARE * len(digits)))
    pieces = collect(open_reader(bundle, None), shown, num_fields)
    fitted, other = pieces[::2], pieces[1::2]
    if not all(any(piece.text is None for piece in half) for half in (fitted, other)):
        raise SystemExit(f"got {len(pieces)} doubtful pieces of {num_fields} fields; expected more: draw more fields")
    model = search(fitted, FITTED, num_trials, simulated.SEED)
    print(f"FITTED = {TextModel(*(float(f'{value:.3g}') for value in model))}")  # noqa: T201 - a command
    for name, constants in (("as they are", FITTED), ("fitted", model)):
        for share, of in (("fitted pieces", fitted), ("other pieces", other)):
            quality = measure(constants, of)
            unknown = measure(constants, [piece for piece in of if piece.text is None])
            print(  # noqa: T201
                f"{name}: {len(of)} {share}, mean log-likelihood {quality.log_likelihood:.3f}, {quality.right:.1%} right,"
                f" of those that show no digit {unknown.right:.1%}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
