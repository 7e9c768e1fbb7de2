"""The key figures of a report, each with one sentence that explains it. Called by ``page``."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from digitserve_training.evaluate import scores
from digitserve_training.evaluate.evaluation import Evaluation, Measurement
from digitserve_training.evaluate.formatting import group_thousands, percent

grouped = partial(group_thousands, separator="\N{NARROW NO-BREAK SPACE}")


@dataclass(frozen=True)
class KeyFigure:
    """One figure at the top of the report.

    Attributes:
        name: what was measured.
        value: formatted value.
        meaning: explanation in one sentence.
    """

    name: str
    value: str
    meaning: str


def key_figures(evaluation: Evaluation) -> list[KeyFigure]:
    """Return all key figures in the order of the report.

    Args:
        evaluation: all measurements.
    """
    return [
        *chain(
            _test(evaluation.test),
            _calibration(evaluation),
            _corruptions(evaluation),
            _framed(evaluation),
            _non_digits(evaluation),
        )
    ]


def _test(test: Measurement) -> Iterator[KeyFigure]:
    num_images = len(test.labelled)
    num_right = num_images - test.num_wrong
    low, high = scores.interval(num_right, num_images)
    yield KeyFigure(
        "Test accuracy",
        percent(test.accuracy),
        f"The predicted label is right for {grouped(num_right)} of {grouped(num_images)} images that were not used in "
        f"training. 95 % confidence interval (Wilson): {percent(low)} to {percent(high)}.",
    )
    yield KeyFigure(
        "Test loss",
        f"{test.loss:.4f}",
        "Mean cross-entropy in nats. It is 0 if the network is always right with full confidence, and "
        f"{np.log(len(test.labelled.names)):.2f} if it guesses.",
    )


def _calibration(evaluation: Evaluation) -> Iterator[KeyFigure]:
    tendency = "too low" if evaluation.temperature < 1 else "too high"
    yield KeyFigure(
        "Calibration error",
        percent(evaluation.test.reliability.error),
        "Mean difference between the confidence of a prediction and its probability of being right, on the test images.",
    )
    if evaluation.corrupted_reliability is not None:
        yield KeyFigure(
            "Calibration error, corrupted images",
            percent(evaluation.corrupted_reliability.error),
            "The same over the whole corruption suite.",
        )
    yield KeyFigure(
        "Temperature",
        f"{evaluation.temperature:.3f}",
        "The logits are divided by this number, which was fitted on the validation images; 1 means no change. "
        f"Without it, the network's confidence was {tendency}.",
    )


def _corruptions(evaluation: Evaluation) -> Iterator[KeyFigure]:
    if not evaluation.corruptions:
        return
    num_unseen = sum(not one.trained for one in evaluation.corruptions)
    yield KeyFigure(
        "Accuracy on corrupted images",
        percent(evaluation.corruption_accuracy),
        f"Mean over {len(evaluation.corruptions)} kinds of corruption of the test images. "
        f"Kinds without a similar one in the augmentation: {num_unseen}.",
    )


def _framed(evaluation: Evaluation) -> Iterator[KeyFigure]:
    for one in evaluation.framed:
        yield KeyFigure(
            one.name,
            percent(one.accuracy),
            "Accuracy after segmentation and framing as in the service.",
        )


def _non_digits(evaluation: Evaluation) -> Iterator[KeyFigure]:
    if not evaluation.non_digits:
        return
    all_kinds = evaluation.non_digits[0]
    yield KeyFigure(
        "Detection of non-digits",
        f"AUROC {all_kinds.auroc:.4f}",
        "Probability that an image without a digit has a higher OOD score than a digit: 1 is perfect, 0.5 is chance. "
        f"{percent(all_kinds.rejected)} of the images without a digit are rejected.",
    )
    yield KeyFigure(
        "Mistaken verdicts",
        percent(evaluation.mistaken_verdicts),
        "Share of test digits that the service would report as blank or as several shapes.",
    )
