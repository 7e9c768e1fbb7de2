"""Fits the calibration of a line's confidence, ``LINE_SLOPE`` and ``LINE_OFFSET`` of ``digitserve.reading.confidence``.

Run ``python -m digitserve_training.evaluate.numbers.fit BUNDLE`` after a new network was exported, or after a change of the reader,
and copy the constants that it prints. Synthetic fields show digits that were held out from MNIST's training set, so that neither
the network nor the test saw them: one half of these to fit the constants, the other half to measure them.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.confidence import LINE_OFFSET, LINE_SLOPE
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate.numbers import simulated
from digitserve_training.evaluate.numbers.local_reader import LocalReader, open_reader
from digitserve_training.evaluate.numbers.report import evaluate
from digitserve_training.evaluate.numbers.samples import Digits, Sample, Shown
from digitserve_training.synth import numbers

NUM_FIELDS = 100
"""Fields of each share of touching digits, in each half: a minute on one idle core."""

NUM_STEPS = 25
"""Steps of Newton's method; it converges in about 8."""

RIDGE = 0.1
"""Penalty on the distance of slope and offset from 1 and 0, so that the fit exists if all texts are right."""

NUM_BINS = 5
"""Bins of the calibration error, of equal numbers of lines."""


class Lines(NamedTuple):
    """Lines that were read.

    Attributes:
        log_odds: float64[N], of the posterior.
        right: bool[N], whether the text is right.
        touching: float64[N], share of touching digits of the field.
    """

    log_odds: NDArray[np.float64]
    right: NDArray[np.bool_]
    touching: NDArray[np.float64]


def read_lines(reader: LocalReader, digits: Labelled, number: int, name: str) -> Lines:
    """Read synthetic fields of 5 digits.

    Args:
        reader: of the network.
        digits: that the fields show.
        number: of fields of each share of touching digits.
        name: of the set, for errors.
    """
    samples = [
        Sample(f"{share} {index}", f"{share}", simulated.LINE, partial(_draw, digits, share, index))
        for index in range(number)
        for share in simulated.TOUCHING_SHARES
    ]
    # Lines with a digit that cannot be read have a confidence of 0 without calibration.
    judged = [one for one in evaluate(reader, name, samples).judged if 0 < one.confidence < 1]
    confidence = np.array([one.confidence for one in judged])
    return Lines(
        (np.log(confidence / (1 - confidence)) - LINE_OFFSET) / LINE_SLOPE,
        np.array([one.text.exact for one in judged]),
        np.array([float(one.sample.group) for one in judged]),
    )


def _draw(digits: Labelled, touching: float, index: int) -> Shown:
    generator = np.random.default_rng([simulated.SEED, index, round(100 * touching), len(digits)])
    drawn = numbers.field(generator, digits.images, digits.labels, touching_share=touching)
    return Shown(drawn.pixels[..., np.newaxis], drawn.text, Digits(drawn.boxes, tuple(map(str, drawn.labels))))


def fit_logistic(log_odds: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the slope and the offset with the highest likelihood, by Newton's method."""
    inputs = np.stack([log_odds, np.ones_like(log_odds)], axis=1)
    start = np.array([1.0, 0.0])
    weights = start
    for _ in range(NUM_STEPS):
        likely = _logistic(inputs @ weights)
        gradient = inputs.T @ (likely - right) + RIDGE * (weights - start)
        curvature = (inputs * (likely * (1 - likely))[:, None]).T @ inputs + RIDGE * np.eye(2)
        weights = weights - np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the mean distance of confidence and share of right texts, in bins of equally many lines."""
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, NUM_BINS)
    return sum(abs(float(confidence[one].sum() - right[one].sum())) for one in bins) / len(order)


def log_loss(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the mean negative logarithm of the probability of what happened, in nats."""
    return -float(np.log(np.where(right, confidence, 1 - confidence)).mean())


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    likely: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    return likely


def _describe(name: str, confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> str:
    return (
        f"{name}: {len(right)} lines, {right.mean():.1%} right, mean confidence {confidence.mean():.1%},"
        f" calibration error {calibration_error(confidence, right):.1%}, log loss {log_loss(confidence, right):.3f}"
    )


def main(bundle: Path, number: int) -> None:
    """Print the constants for a bundle, and how well they describe other digits."""
    held_out = splits.split(splits.read_training()).validation
    half = len(held_out) // 2
    reader = open_reader(bundle, None)
    fitted = read_lines(reader, held_out.take(np.arange(half)), number, "fit")
    other = read_lines(reader, held_out.take(np.arange(half, len(held_out))), number, "other")
    slope, offset = fit_logistic(fitted.log_odds, fitted.right)
    print(f"LINE_SLOPE, LINE_OFFSET = {slope:.2f}, {offset:.2f}")  # noqa: T201 - a command
    for name, constants in (("posterior", (1.0, 0.0)), ("calibrated", (slope, offset))):
        confidence = _logistic(constants[0] * other.log_odds + constants[1])
        print(_describe(f"{name}, other digits", confidence, other.right))  # noqa: T201
        for share in simulated.TOUCHING_SHARES:
            chosen = other.touching == share
            print(_describe(f"  {share:.0%} touching", confidence[chosen], other.right[chosen]))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else NUM_FIELDS)
