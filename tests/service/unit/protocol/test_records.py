"""Encoding of predictions with alternatives, for all images of a batch in one pass."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.protocol.encoder import Encoder
from digitserve.protocol.names import Verdict
from digitserve.protocol.records import Outcome
from digitserve.v1 import digits_pb2 as pb

DIGITS = tuple("0123456789")
LABELS = (DIGITS, ("", "a", "\u0451" * 20), ("cat", "x" * 130), ("y" * 2000, "z"), tuple(map(str, range(300))))
VERDICTS = (Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL)


def draw_outcome(num_images: int, num_labels: int, verdicts: Sequence[Verdict], seed: int) -> Outcome:
    """Draw the outcome for images; of their numbers some are zero and some are equal."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(num_labels), num_images).astype(np.float32)
    if seed % 3 == 0:
        probabilities = np.round(probabilities, 1)
    ood_score = generator.normal(size=num_images).astype(np.float32)
    if seed % 5 == 0:
        ood_score[seed % num_images] = 0
    chosen = [verdicts[index] for index in generator.integers(0, len(verdicts), num_images)]
    return Outcome(probabilities.argmax(axis=1), probabilities.max(axis=1), chosen, ood_score, probabilities)


def by_protobuf(labels: Sequence[str], outcome: Outcome, row: int, top_k: int) -> bytes:
    """Serialize the prediction for an image with protobuf."""
    prediction = pb.Prediction(ood_score=float(outcome.ood_score[row]))
    prediction.verdict = outcome.verdicts[row]  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
    probabilities = outcome.probabilities[row]
    if outcome.verdicts[row] is not Verdict.BLANK:
        ranked = sorted(range(len(labels)), key=lambda index: (-probabilities[index], index))
        scores = [
            pb.ClassScore(label=labels[index], class_index=index, confidence=float(probabilities[index]))
            for index in ranked[:top_k]
        ]
        best = scores[0]
        prediction.MergeFrom(
            pb.Prediction(label=best.label, class_index=best.class_index, confidence=best.confidence, top=scores)
        )
    return pb.ClassifyResponse(predictions=[prediction]).SerializeToString()


@given(
    st.sampled_from(LABELS), st.integers(1, 70), st.integers(1, 12) | st.just(2**32 - 1),
    st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=4), st.integers(0, 10_000),
)  # fmt: skip
def test_records_have_the_bytes_of_protobuf(
    labels: tuple[str, ...], num_images: int, top_k: int, verdicts: list[Verdict], seed: int
) -> None:
    """Each record is what protobuf writes: few or many images, long labels, blank images, zeros and ties included."""
    outcome = draw_outcome(num_images, len(labels), verdicts, seed)
    records = Encoder("digits", "7", labels).records(outcome, top_k)
    assert records == [by_protobuf(labels, outcome, row, top_k) for row in range(num_images)]


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("class_index", range(10))
def test_every_label_and_verdict_is_encoded(class_index: int, verdict: Verdict) -> None:
    """A batch of images of one label and verdict has the bytes of protobuf, for each label of the digits and each verdict."""
    probabilities = np.full((64, 10), 0.05, np.float32)
    probabilities[:, class_index] = 0.55
    ood_score = np.linspace(-9, -1, 64, dtype=np.float32)
    best = probabilities.argmax(axis=1)
    outcome = Outcome(best, probabilities.max(axis=1), [verdict] * 64, ood_score, probabilities)
    records = Encoder("digits", "7", DIGITS).records(outcome, 3)
    assert records == [by_protobuf(DIGITS, outcome, row, 3) for row in range(64)]


def test_a_response_of_records_has_times_and_model() -> None:
    """It is the response that the encoder writes for the same answers one by one."""
    encoder = Encoder("digits", "7", DIGITS)
    outcome = draw_outcome(20, 10, VERDICTS, 1)
    columns = outcome.class_index.tolist(), outcome.confidence.tolist(), outcome.verdicts, outcome.ood_score.tolist()
    answers = list(zip(*columns, outcome.probabilities, strict=True))
    seconds = (0.5, 0.25, 0.125)
    assert encoder.encode_records(encoder.records(outcome, 3), seconds, 48) == encoder.encode(answers, 3, seconds, 48)


def test_the_outcome_for_some_images_is_encoded_as_in_the_whole_batch() -> None:
    """The records of chosen rows are those of the whole batch."""
    encoder = Encoder("digits", "7", DIGITS)
    outcome = draw_outcome(40, 10, VERDICTS, 2)
    rows = [*range(3, 12), 30, 39]
    records = encoder.records(outcome, 3)
    assert encoder.records(outcome.rows(rows), 3) == [records[row] for row in rows]
