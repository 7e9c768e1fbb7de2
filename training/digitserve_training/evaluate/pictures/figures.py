"""The figures of an evaluation on image files: accuracy, verdicts, confusion and mistakes.

``report`` fills them in and calls ``as_json``; ``table`` and ``gallery`` render them. Does not import TensorFlow.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from digitserve.protocol.names import Verdict
from digitserve_training.evaluate.pictures.classifier import Answer
from digitserve_training.evaluate.pictures.listing import Picture

REPORTED = (Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL)
"""The verdicts in the order of tables."""


@dataclass(frozen=True)
class Judged:
    """An image file with its answer."""

    picture: Picture
    answer: Answer

    @property
    def accepted(self) -> bool:
        """Whether the verdict is ACCEPTED."""
        return self.answer.verdict is Verdict.ACCEPTED

    @property
    def right(self) -> bool:
        """Whether the answer has the label of the file, whatever the verdict; False if the file has no label."""
        return bool(self.picture.label) and self.answer.label == self.picture.label

    @property
    def mistaken(self) -> bool:
        """Whether the answer is a mistake: a wrong label, or ACCEPTED for an image that is not a single digit."""
        return not self.right if self.picture.label else self.accepted


@dataclass(frozen=True)
class Figures:
    """Figures of some files, all of them with a label.

    Shares are 0 if there are no files to divide by.
    """

    judged: Sequence[Judged] = field(repr=False)

    @property
    def num_images(self) -> int:
        """Number of files."""
        return len(self.judged)

    @cached_property
    def num_right(self) -> int:
        """Number of files with the right label."""
        return sum(one.right for one in self.judged)

    @property
    def num_wrong(self) -> int:
        """Number of files with another label, blank ones included."""
        return self.num_images - self.num_right

    @cached_property
    def num_right_accepted(self) -> int:
        """Number of files with the right label and ACCEPTED."""
        return sum(one.right and one.accepted for one in self.judged)

    @cached_property
    def num_wrong_accepted(self) -> int:
        """Number of files with another label and ACCEPTED."""
        return sum(not one.right and one.accepted for one in self.judged)

    @cached_property
    def num_by_verdict(self) -> dict[Verdict, int]:
        """Number of files by verdict."""
        counts = Counter(one.answer.verdict for one in self.judged)
        return {verdict: counts[verdict] for verdict in REPORTED}

    @property
    def accuracy(self) -> float:
        """Share of files with the right label."""
        return _share(self.num_right, self.num_images)

    @property
    def right_accepted(self) -> float:
        """Share of all files with the right label and ACCEPTED."""
        return _share(self.num_right_accepted, self.num_images)

    @property
    def wrong_accepted(self) -> float:
        """Share of all files with another label and ACCEPTED."""
        return _share(self.num_wrong_accepted, self.num_images)

    @property
    def accepted_among_right(self) -> float:
        """Share ACCEPTED of the files with the right label."""
        return _share(self.num_right_accepted, self.num_right)

    @property
    def accepted_among_wrong(self) -> float:
        """Share ACCEPTED of the files with another label."""
        return _share(self.num_wrong_accepted, self.num_wrong)

    @cached_property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy; the confidence of a blank image is 0."""
        return fmean(one.answer.confidence for one in self.judged) - self.accuracy if self.judged else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {
            "num_images": self.num_images,
            "num_right": self.num_right,
            "accuracy": self.accuracy,
            "right_and_accepted": self.right_accepted,
            "wrong_and_accepted": self.wrong_accepted,
            "accepted_among_right": self.accepted_among_right,
            "accepted_among_wrong": self.accepted_among_wrong,
            "confidence_minus_accuracy": self.overconfidence,
            "verdicts": _verdicts_as_json(self.num_by_verdict),
        }


@dataclass(frozen=True)
class Failure:
    """A file without an answer.

    Attributes:
        picture: the file.
        reason: why not.
    """

    picture: Picture
    reason: str


@dataclass(frozen=True)
class PictureEvaluation:
    """All results of an evaluation on a folder of image files.

    Attributes:
        model: name of the model.
        labels: the labels that the model knows.
        folder: path of the folder, as the user wrote it.
        judged: the files with their answers.
        failures: the files without an answer; they are in no figure.
    """

    model: str
    labels: tuple[str, ...]
    folder: str
    judged: tuple[Judged, ...] = field(repr=False)
    failures: tuple[Failure, ...] = ()

    @cached_property
    def overall(self) -> Figures:
        """Figures of all files with a label."""
        return Figures([one for one in self.judged if one.picture.label])

    @cached_property
    def by_set(self) -> dict[str, Figures]:
        """Figures of the files with a label by set, sorted by name."""
        return _grouped(self.overall.judged, lambda one: one.picture.set)

    @cached_property
    def by_label(self) -> dict[str, Figures]:
        """Figures by label, in the order of the model's labels."""
        found = _grouped(self.overall.judged, lambda one: one.picture.label)
        return {label: found[label] for label in self.labels if label in found}

    @cached_property
    def others(self) -> Figures:
        """All files that are not a single digit; only its verdicts have a meaning."""
        return Figures([one for one in self.judged if not one.picture.label])

    @cached_property
    def others_by_set(self) -> dict[str, Figures]:
        """``others`` by set, sorted by name."""
        return _grouped(self.others.judged, lambda one: one.picture.set)

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Number of files by label (row) and answer (column); the last column counts blank images."""
        columns = {label: column for column, label in enumerate((*self.labels, ""))}
        counts = [[0] * len(columns) for _ in self.labels]
        for one in self.overall.judged:
            counts[columns[one.picture.label]][columns[one.answer.label]] += 1
        return counts

    @cached_property
    def mistakes(self) -> list[Judged]:
        """The mistakes: first the accepted ones, then by falling confidence."""
        wrong = (one for one in self.judged if one.mistaken)
        return sorted(wrong, key=lambda one: (not one.accepted, -one.answer.confidence, one.picture.file))


def as_json(evaluation: PictureEvaluation) -> dict[str, Any]:
    """Return an evaluation as a JSON object."""
    return {
        "model": evaluation.model,
        "labels": evaluation.labels,
        "folder": evaluation.folder,
        "overall": evaluation.overall.as_json(),
        "sets": {name: figures.as_json() for name, figures in evaluation.by_set.items()},
        "by_label": {name: figures.as_json() for name, figures in evaluation.by_label.items()},
        "not_a_single_digit": {
            "overall": _others_as_json(evaluation.others),
            "sets": {name: _others_as_json(figures) for name, figures in evaluation.others_by_set.items()},
        },
        "confusion": {"columns": [*evaluation.labels, "blank"], "rows": evaluation.confusion},
        "mistakes": [
            {
                "file": one.picture.file,
                "set": one.picture.set,
                "label": one.picture.label,
                "answer": one.answer.label,
                "verdict": one.answer.verdict.name,
                "confidence": one.answer.confidence,
                "ood_score": one.answer.ood_score,
            }
            for one in evaluation.mistakes
        ],
        "not_measured": [{"file": one.picture.file, "reason": one.reason} for one in evaluation.failures],
    }


def _others_as_json(figures: Figures) -> dict[str, Any]:
    return {"num_images": figures.num_images, "verdicts": _verdicts_as_json(figures.num_by_verdict)}


def _verdicts_as_json(counts: dict[Verdict, int]) -> dict[str, int]:
    return {verdict.name: count for verdict, count in counts.items()}


def _grouped(judged: Iterable[Judged], key: Callable[[Judged], str]) -> dict[str, Figures]:
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(key(one), []).append(one)
    return {name: Figures(groups[name]) for name in sorted(groups)}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
