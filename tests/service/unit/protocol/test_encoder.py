"""Encoding of responses: plain ones, those with alternatives, and those with preparations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.protocol.codec import IMAGE_BYTES
from digitserve.protocol.encoder import Encoder, Preparation, Removed
from digitserve.protocol.names import Artefact, Verdict
from digitserve.protocol.records import Answer, Outcome
from digitserve.types import Box, Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from support.memory import allocated_bytes

LABELS = tuple("abcdefghij")
VERDICTS = (Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL)


def test_verdicts_have_the_numbers_of_the_proto() -> None:
    """``Verdict`` is the enum of the proto, name by name."""
    assert {f"VERDICT_{verdict.name}": verdict.value for verdict in Verdict} == dict(pb.Verdict.items())


def make_answer(seed: int, verdict: Verdict = Verdict.ACCEPTED) -> Answer:
    """Make an answer as the pipeline does, from ten probabilities."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(10)).astype(np.float32)
    index = int(probabilities.argmax())
    return index, float(probabilities[index]), verdict, float(generator.normal()), probabilities


def parsed(body: bytes) -> pb.ClassifyResponse:
    """Parse a response."""
    return pb.ClassifyResponse.FromString(body)


def test_a_response_holds_the_answers_in_order() -> None:
    """It has label, class, confidence, verdict and score of each image, the model, and the times."""
    encoder = Encoder("digits", "7", LABELS)
    answers = [
        make_answer(seed, verdict)
        for seed, verdict in enumerate((Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.SEVERAL))
    ]
    response = parsed(encoder.encode(answers, 0, (0.5, 0.25, 0.125), 48))
    assert (response.model_name, response.model_version) == ("digits", "7")
    timing = response.timing
    assert (timing.queue_s, timing.preprocess_s, timing.inference_s, timing.batch_size) == (0.5, 0.25, 0.125, 48)
    assert len(response.predictions) == 3
    for answer, prediction in zip(answers, response.predictions, strict=True):
        class_index, confidence, verdict, ood_score, _ = answer
        assert prediction.label == LABELS[class_index]
        assert prediction.class_index == class_index
        assert prediction.confidence == np.float32(confidence)
        assert prediction.verdict == verdict
        assert prediction.ood_score == np.float32(ood_score)
        assert not prediction.top


def plain_answers(verdicts: list[Verdict]) -> st.SearchStrategy[list[tuple[int, float, Verdict, float]]]:
    """Return lists of the fields of answers with these verdicts, without probabilities."""
    score = st.floats(-1e9, 1e9, width=32)
    fields = st.tuples(st.integers(0, 9), st.floats(0, 1, width=32), st.sampled_from(verdicts), score)
    return st.lists(fields, min_size=1, max_size=70)


@given(
    plain_answers(VERDICTS) | plain_answers([verdict for verdict in VERDICTS if verdict is not Verdict.BLANK]),
    st.tuples(*[st.floats(0, 1e6, width=32)] * 3),
    st.integers(1, 65_536),
)
def test_plain_responses_have_the_fields_of_the_message(
    answers: list[tuple[int, float, Verdict, float]], seconds: tuple[float, float, float], size: int
) -> None:
    """Responses that are assembled without a message parse to the message that they stand for, blank images included. Their
    bytes are those of protobuf, unless a number is zero, which protobuf omits.
    """
    labels = ("", *LABELS[1:-1], "\u0451" * 200)
    encoder = Encoder("digits", "7", labels)

    class_indices, confidences, verdicts, scores = zip(*answers, strict=True)
    body = encoder.encode_records(encoder.plain_records(class_indices, confidences, verdicts, scores), seconds, size)

    timing = pb.Timing(queue_s=seconds[0], preprocess_s=seconds[1], inference_s=seconds[2], batch_size=size)
    expected = pb.ClassifyResponse(model_name="digits", model_version="7", timing=timing)
    for class_index, confidence, verdict, ood_score in answers:
        prediction = expected.predictions.add(verdict=verdict, ood_score=ood_score)
        if verdict is not Verdict.BLANK:
            prediction.MergeFrom(
                pb.Prediction(label=labels[class_index], class_index=class_index, confidence=confidence)
            )
    assert parsed(body) == expected
    if all(scores) and all(confidences) and all(seconds):
        model = pb.ClassifyResponse(model_name="digits", model_version="7").SerializeToString()
        expected.ClearField("model_name")
        expected.ClearField("model_version")
        assert body == expected.SerializeToString() + model


def test_a_blank_image_has_no_label() -> None:
    """A blank image has its verdict, and neither label, confidence nor alternatives."""
    encoder = Encoder("digits", "7", LABELS)
    encoder.encode([make_answer(1)], 0, (0, 0, 0), 1)
    for top_k in (0, 3):
        (prediction,) = parsed(encoder.encode([make_answer(2, Verdict.BLANK)], top_k, (0, 0, 0), 1)).predictions
        assert prediction.verdict == pb.VERDICT_BLANK
        assert (prediction.label, prediction.class_index, prediction.confidence) == ("", 0, 0.0)
        assert not prediction.top


def test_preparations_are_encoded_beside_their_predictions() -> None:
    """Every field is encoded; a preparation without ink has none; without preparations there is no such field."""
    encoder = Encoder("digits", "7", LABELS)
    full = Preparation(
        bytes(index % 256 for index in range(IMAGE_BYTES)), Framing.MNIST, Ink.DARK_ON_LIGHT, Box(1, 20, 3, 40),
        (Removed(Artefact.PAGE_EDGE), Removed(Artefact.BORDER, Box(0, 2, 0, 50))),
    )  # fmt: skip
    blank = Preparation(bytes(IMAGE_BYTES), Framing.MNIST, None)
    answers = [make_answer(1), make_answer(2, Verdict.BLANK)]
    first, second = parsed(encoder.encode(answers, 0, (0, 0, 0), 2, [full, blank])).predictions
    assert first.preparation == pb.Preparation(
        pixels=full.pixels, framing=pb.FRAMING_MNIST, ink=pb.INK_DARK_ON_LIGHT,
        box=pb.Box(top=1, bottom=20, left=3, right=40),
        removed=[
            pb.Removed(artefact=pb.ARTEFACT_PAGE_EDGE),
            pb.Removed(artefact=pb.ARTEFACT_BORDER, box=pb.Box(bottom=2, right=50)),
        ],
    )  # fmt: skip
    assert second.preparation == pb.Preparation(pixels=blank.pixels, framing=pb.FRAMING_MNIST)
    assert not any(one.HasField("preparation") for one in parsed(encoder.encode(answers, 0, (0, 0, 0), 2)).predictions)


@pytest.mark.parametrize("artefact", Artefact)
def test_artefacts_have_the_numbers_of_the_protocol(artefact: Artefact) -> None:
    """An artefact is encoded as its number."""
    assert pb.Artefact.Name(artefact.value) == f"ARTEFACT_{artefact.name}"


@pytest.mark.parametrize(("top_k", "listed"), [(1, 1), (3, 3), (10, 10), (2**32 - 1, 10)])
def test_top_k_lists_the_most_probable_first_including_the_label(top_k: int, listed: int) -> None:
    """The list is sorted, begins with the label, and has at most as many classes as there are labels."""
    answer = make_answer(5)
    (prediction,) = parsed(Encoder("digits", "7", LABELS).encode([answer], top_k, (0, 0, 0), 1)).predictions
    assert len(prediction.top) == listed
    assert (prediction.top[0].label, prediction.top[0].confidence) == (prediction.label, prediction.confidence)
    confidences = [score.confidence for score in prediction.top]
    assert confidences == sorted(confidences, reverse=True)
    assert all(score.label == LABELS[score.class_index] for score in prediction.top)
    assert all(score.confidence == answer[-1][score.class_index] for score in prediction.top)


def test_the_label_is_first_in_its_list_when_classes_tie() -> None:
    """Label and list break a tie the same way."""
    probabilities = np.array([0.1, 0.3, 0.3, 0.3, 0, 0, 0, 0, 0, 0], np.float32)
    answer = int(probabilities.argmax()), 0.3, Verdict.ACCEPTED, 0.0, probabilities
    (prediction,) = parsed(Encoder("digits", "7", LABELS).encode([answer], 4, (0, 0, 0), 1)).predictions
    assert [score.class_index for score in prediction.top] == [1, 2, 3, 0]
    assert prediction.label == prediction.top[0].label


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(VERDICTS)), min_size=1, max_size=4), st.integers(0, 4)),
        min_size=2, max_size=8,
    )
)  # fmt: skip
@settings(max_examples=60)
def test_responses_of_one_encoder_are_independent(
    requests: list[tuple[list[tuple[int, Verdict]], int]],
) -> None:
    """One encoder for all requests encodes each response as a new encoder would."""
    encoder = Encoder("digits", "7", LABELS)
    for number, (wanted, top_k) in enumerate(requests):
        answers = [make_answer(seed, verdict) for seed, verdict in wanted]
        seconds = (float(number), number / 2, number / 4)
        fresh = Encoder("digits", "7", LABELS).encode(answers, top_k, seconds, number)
        assert parsed(encoder.encode(answers, top_k, seconds, number)) == parsed(fresh)


def test_encoding_does_not_leak_memory() -> None:
    """Allocated memory does not grow with the number of encoded responses, whether protobuf builds them or not."""
    encoder = Encoder("digits", "7", LABELS)
    class_index, seconds = [index % 10 for index in range(64)], (0.001, 0.001, 0.001)
    verdicts = [VERDICTS[index % 4] for index in range(64)]
    confidence, ood_score = [0.9] * 64, [-3.0] * 64
    probabilities = np.full((64, 10), 0.1, np.float32)
    outcome = Outcome(
        np.array(class_index),
        np.array(confidence, np.float32),
        verdicts,
        np.array(ood_score, np.float32),
        probabilities,
    )
    answers = outcome.answers(0, 64)

    def encode() -> None:
        encoder.encode(answers, 3, seconds, 64)
        encoder.encode_records(encoder.plain_records(class_index, confidence, verdicts, ood_score), seconds, 64)
        encoder.encode_records(encoder.records(outcome, 3), seconds, 64)

    encode()
    before = allocated_bytes()
    for _ in range(200):
        encode()
    # Not 0: other threads of this process may allocate.
    assert allocated_bytes() - before < 8 * 200 * len(answers)
