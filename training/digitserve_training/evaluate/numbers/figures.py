"""The figures of an evaluation of the reader: exact lines and images, digits right, and mistakes.

``report`` fills them in; ``table``, ``gallery`` and ``results`` render them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from digitserve_training.evaluate.numbers.samples import Sample
from digitserve_training.evaluate.numbers.scoring import DigitScore, TextScore


@dataclass(frozen=True)
class Judged:
    """An image with what was read.

    Attributes:
        sample: the image.
        shown: its text.
        read: text that was read.
        confidence: smallest confidence of a line; 1 without lines.
        text: the comparison of the texts.
        digits: the comparison of the digits; None if the image's boxes are not known.
    """

    sample: Sample
    shown: str
    read: str
    confidence: float
    text: TextScore
    digits: DigitScore | None = None

    @property
    def mistaken(self) -> bool:
        """Whether anything is wrong."""
        return not self.text.exact or bool(self.digits and self.digits.num_right < self.digits.num_digits)


@dataclass(frozen=True)
class Figures:
    """Figures of some images; shares are 0 if there is nothing to divide by."""

    judged: Sequence[Judged] = field(repr=False)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.judged)

    @cached_property
    def num_exact(self) -> int:
        """Number of images whose whole text is right."""
        return sum(one.text.exact for one in self.judged)

    @cached_property
    def text(self) -> TextScore:
        """Sums over the images; exact if all of them are."""
        scores = [one.text for one in self.judged]
        return TextScore(
            self.num_exact == self.num_images,
            sum(score.num_lines for score in scores),
            sum(score.num_exact_lines for score in scores),
            sum(score.num_characters for score in scores),
            sum(score.num_edits for score in scores),
        )

    @cached_property
    def digits(self) -> DigitScore | None:
        """Sums over the images with known boxes; None if there are none."""
        scores = [one.digits for one in self.judged if one.digits]
        return DigitScore(*map(sum, zip(*scores, strict=True))) if scores else None

    @property
    def exact(self) -> float:
        """Share of images whose whole text is right."""
        return share(self.num_exact, self.num_images)

    @property
    def exact_lines(self) -> float:
        """Share of lines that are right."""
        return share(self.text.num_exact_lines, self.text.num_lines)

    @property
    def characters_right(self) -> float:
        """1 minus edits per character, at least 0."""
        return max(0.0, 1 - share(self.text.num_edits, self.text.num_characters))

    @property
    def digits_right(self) -> float:
        """Share of digits that were found and read right."""
        return share(self.digits.num_right, self.digits.num_digits) if self.digits else 0.0

    @property
    def digits_false(self) -> float:
        """Digits read where there is none, per digit shown."""
        return share(self.digits.num_false, self.digits.num_digits) if self.digits else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        shown: dict[str, Any] = {
            "num_images": self.num_images,
            "num_exact": self.num_exact,
            "exact": self.exact,
            "num_lines": self.text.num_lines,
            "exact_lines": self.exact_lines,
            "num_characters": self.text.num_characters,
            "num_edits": self.text.num_edits,
            "characters_right": self.characters_right,
        }
        if self.digits:
            shown |= self.digits._asdict() | {"digits_right": self.digits_right, "digits_false": self.digits_false}
        return shown


@dataclass(frozen=True)
class Failure:
    """An image that was not read.

    Attributes:
        sample: the image.
        reason: why not.
    """

    sample: Sample
    reason: str


@dataclass(frozen=True)
class NumberEvaluation:
    """All results of an evaluation of the reader.

    Attributes:
        model: name of the model.
        source: path of the table, or what the synthetic images are.
        judged: the images with what was read.
        failures: images that were not read; they are in no figure.
    """

    model: str
    source: str
    judged: tuple[Judged, ...] = field(repr=False)
    failures: tuple[Failure, ...] = ()

    @cached_property
    def overall(self) -> Figures:
        """Figures of all images."""
        return Figures(self.judged)

    @cached_property
    def by_group(self) -> dict[str, Figures]:
        """Figures by set or kind, in the order of the images."""
        names = dict.fromkeys(one.sample.group for one in self.judged)
        return {name: Figures([one for one in self.judged if one.sample.group == name]) for name in names}

    @cached_property
    def mistakes(self) -> list[Judged]:
        """The mistakes in the order of the images."""
        return [one for one in self.judged if one.mistaken]


def as_json(evaluation: NumberEvaluation) -> dict[str, Any]:
    """Return an evaluation as a JSON object."""
    return {
        "model": evaluation.model,
        "source": evaluation.source,
        "overall": evaluation.overall.as_json(),
        "groups": {name: figures.as_json() for name, figures in evaluation.by_group.items()},
        "mistakes": [
            {
                "image": one.sample.name,
                "group": one.sample.group,
                "shown": one.shown,
                "read": one.read,
                "confidence": one.confidence,
            }
            for one in evaluation.mistakes
        ],
        "not_measured": [{"image": one.sample.name, "reason": one.reason} for one in evaluation.failures],
    }


def share(part: int, whole: int) -> float:
    """Divide; 0 if there is nothing to divide by."""
    return part / whole if whole else 0.0
