"""Between bytes and pixels: what is refused and in which words, and that nothing is changed on the way."""

import numpy as np
import pytest
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.batching.batcher import framing_work
from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.codec import (
    ACCEPTED,
    BLANK,
    IMAGE_BYTES,
    SEVERAL,
    UNFAMILIAR,
    VERDICTS,
    Answer,
    Encoder,
    Limits,
    Request,
    decode,
    decode_on_stream,
    error_on_stream,
    response_on_stream,
    rows,
)  # fmt: skip
from digitserve.telemetry.block import VERDICTS as VERDICT_NAMES
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.framing import frame
from digitserve.vision.gray import to_gray
from support.memory import allocated_bytes

LIMITS = Limits(model_version="7", max_side=40, max_images=6, max_request_bytes=1 << 20)
LABELS = tuple("abcdefghij")
INK_AND_FRAMING = st.tuples(st.sampled_from(pb.Ink.values()), st.sampled_from(pb.Framing.values()))


def pixels(num_bytes: int, seed: int = 0) -> bytes:
    """Return noise."""
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8).tobytes()


def decode_fields(**fields: object) -> Request:
    """Decode a request with these fields."""
    return decode(pb.ClassifyRequest(**fields).SerializeToString(), LIMITS)


def refusal(**fields: object) -> str:
    """Return the words in which these fields are refused."""
    with pytest.raises(InvalidRequest) as caught:
        decode_fields(**fields)
    return str(caught.value)


def test_a_default_image_reaches_the_network_byte_for_byte() -> None:
    """28x28 grey pixels with every option at its default are the network's row, unchanged."""
    body = pixels(IMAGE_BYTES)
    request = decode_fields(pixels=body)
    assert rows(request, 0, 1) == (body, [])
    assert request.plain
    assert request.framing_work == 0


@given(st.binary(min_size=IMAGE_BYTES, max_size=IMAGE_BYTES))
def test_the_common_request_is_told_as_protobuf_tells_it(image: bytes) -> None:
    """What has the length of the commonest request, or its beginning, means what it means to protobuf."""
    common = pb.ClassifyRequest(pixels=image).SerializeToString()
    assert decode(common, LIMITS).pixels == image
    for longer in (common + common, common + pb.ClassifyRequest(top_k=3).SerializeToString()):
        message = pb.ClassifyRequest.FromString(longer)
        request = decode(longer, LIMITS)
        assert (request.pixels, request.top_k) == (message.pixels, message.top_k)
    as_long = pb.ClassifyRequest(pixels=image[:-2], top_k=3).SerializeToString()
    assert len(as_long) == len(common)
    with pytest.raises(InvalidRequest, match="got 782 bytes"):
        decode(as_long, LIMITS)


@given(st.integers(1, 5), st.booleans())
def test_a_stream_takes_the_same_requests(num_images: int, spelled_out: bool) -> None:
    """A request on a stream is the request alone, down to the quick way of a single image."""
    message = pb.ClassifyRequest(
        pixels=pixels(num_images * IMAGE_BYTES), height=28 * spelled_out, width=28 * spelled_out
    )

    on_stream = decode_on_stream(pb.ClassifyStreamRequest(request=message).SerializeToString(), LIMITS)

    assert on_stream == decode(message.SerializeToString(), LIMITS)


def test_an_empty_message_on_a_stream_is_refused_as_an_empty_request() -> None:
    """Without a request there are no pixels, and the words say so; noise is no ClassifyStreamRequest."""
    with pytest.raises(InvalidRequest, match="pixels: got none"):
        decode_on_stream(b"", LIMITS)
    with pytest.raises(InvalidRequest, match="3 bytes that are no ClassifyStreamRequest"):
        decode_on_stream(b"\xff\xff\xff", LIMITS)


@given(st.binary(max_size=70_000))
def test_answers_are_wrapped_for_streams_unparsed(version: bytes) -> None:
    """What is wrapped by hand is what protobuf would write, for lengths of one, two and three bytes."""
    response = pb.ClassifyResponse(model_version=version.hex())
    body = response.SerializeToString()

    assert response_on_stream(body) == pb.ClassifyStreamResponse(response=response).SerializeToString()


def test_errors_are_wrapped_for_streams() -> None:
    """An error takes the answer's place."""
    status = status_pb2.Status(code=3, message="no")

    assert pb.ClassifyStreamResponse.FromString(error_on_stream(status)).error == status


def test_many_default_images_reach_the_network_byte_for_byte() -> None:
    """The same for several in one request, whole or in slices."""
    body = pixels(3 * IMAGE_BYTES)
    request = decode_fields(pixels=body)
    assert request.num_images == 3
    assert rows(request, 0, 3) == (body, [])
    assert bytes(rows(request, 1, 3)[0]) == body[IMAGE_BYTES:]


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 28, "width": 28},
        {"num_images": 1},
        {"pixel_format": pb.PIXEL_FORMAT_GRAY8},
        {"ink": pb.INK_LIGHT_ON_DARK},
        {"framing": pb.FRAMING_AS_IS},
        {"model_version": "7"},
    ],
)
def test_spelling_a_default_out_changes_nothing(fields: dict[str, object]) -> None:
    """The fast path for the common request and the checks for all others come to the same request."""
    body = pixels(IMAGE_BYTES)
    assert decode_fields(pixels=body, **fields) == decode_fields(pixels=body)


def test_a_field_from_a_newer_client_is_passed_over() -> None:
    """Protobuf's promise: fields that this version does not know do no harm."""
    body = pb.ClassifyRequest(pixels=pixels(IMAGE_BYTES)).SerializeToString()
    assert decode(body + bytes([99 << 3 & 127 | 128, 6, 1]), LIMITS) == decode(body, LIMITS)


def test_an_empty_message_is_refused_in_words() -> None:
    """A message of no bytes is a request without pixels, and refused as one."""
    with pytest.raises(InvalidRequest, match="pixels: got none; expected 784 bytes"):
        decode(b"", LIMITS)


def test_bytes_that_are_no_message_are_refused_in_words() -> None:
    """What is no protobuf is the caller's fault, and its size is named."""
    with pytest.raises(InvalidRequest, match="got 3 bytes that are no ClassifyRequest"):
        decode(b"\xff\xff\xff", LIMITS)


def test_empty_pixels_are_refused() -> None:
    """No pixels: the message says how many bytes an image would be."""
    assert refusal() == "pixels: got none; expected 784 bytes for each image of 28x28 GRAY8"
    assert decode_fields(pixels=b"\0" * 75, height=5, width=5, pixel_format=pb.PIXEL_FORMAT_RGB8).num_images == 1


def test_a_length_that_does_not_fit_names_the_image() -> None:
    """The message says which image is short, by how much, and what a whole one would be."""
    text = refusal(pixels=bytes(2 * 300 + 7), height=10, width=10, pixel_format=pb.PIXEL_FORMAT_RGB8)
    assert text == "pixels: got 607 bytes, which leaves image 2 with 7; expected 300 bytes for each image of 10x10 RGB8"


@pytest.mark.parametrize(("height", "width"), [(0, 28), (28, 0)])
def test_one_side_alone_is_refused(height: int, width: int) -> None:
    """Exactly one side at 0 is a contradiction, not a default."""
    assert refusal(pixels=bytes(784), height=height, width=width) == (
        f"got height {height} and width {width}; expected both, or neither for 28x28"
    )


@pytest.mark.parametrize(("height", "width"), [(41, 1), (1, 41), (2**32 - 1, 2**32 - 1)])
def test_huge_sides_are_refused(height: int, width: int) -> None:
    """A side over the limit is refused by the numbers alone."""
    assert refusal(pixels=b"x", height=height, width=width) == (
        f"got {height}x{width} pixels; expected at most 40 on a side"
    )


@pytest.mark.parametrize(
    ("field", "name"), [("pixel_format", "PIXEL_FORMAT_RGB8"), ("ink", "INK_AUTO"), ("framing", "FRAMING_MNIST")]
)
@pytest.mark.parametrize("value", [-1, 9, 2**31 - 1])
def test_an_unknown_enum_is_refused_with_those_known(field: str, name: str, value: int) -> None:
    """The number that came and the names there are stand in the message."""
    text = refusal(**{"pixels": bytes(784), "num_images": 1, field: value})
    assert text.startswith(f"{field}: got {value}; expected one of ")
    assert name in text


def test_a_disagreeing_num_images_is_refused() -> None:
    """The count that came and the one that pixels holds stand in the message."""
    assert refusal(pixels=bytes(1568), num_images=3).startswith("num_images: got 3; pixels holds 2 (784 bytes")


def test_too_many_images_are_refused() -> None:
    """More images than could ever wait are refused as such, and the caller is told what would do."""
    assert refusal(pixels=bytes(7 * 784)) == "got 7 images; expected at most 6: send them in several requests"


def test_as_is_at_another_size_is_refused() -> None:
    """FRAMING_AS_IS is only allowed at the model's size."""
    assert "FRAMING_AS_IS needs images of 28x28, got 10x12" in refusal(
        pixels=bytes(120), height=10, width=12, framing=pb.FRAMING_AS_IS
    )


def test_another_model_version_is_not_served() -> None:
    """A version that is not served is its own kind of error, which becomes NOT_FOUND."""
    with pytest.raises(NotServed, match="model_version: got '8'; served is '7'"):
        decode_fields(pixels=bytes(784), model_version="8")


def test_a_refusal_never_repeats_a_long_text_of_the_caller() -> None:
    """Status messages travel as headers of a few kilobytes: a long version name must not make the reply unsendable."""
    with pytest.raises(NotServed) as caught:
        decode_fields(pixels=bytes(784), model_version="8" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"height": 28, "width": 28}, (Ink.LIGHT_ON_DARK, Framing.AS_IS, True)),
        ({"height": 28, "width": 28, "framing": pb.FRAMING_MNIST}, (Ink.AUTO, Framing.MNIST, False)),
        ({"height": 14, "width": 56}, (Ink.AUTO, Framing.MNIST, False)),
        ({"height": 14, "width": 56, "ink": pb.INK_DARK_ON_LIGHT}, (Ink.DARK_ON_LIGHT, Framing.MNIST, False)),
        ({"ink": pb.INK_DARK_ON_LIGHT}, (Ink.DARK_ON_LIGHT, Framing.AS_IS, False)),
        ({"ink": pb.INK_AUTO}, (Ink.AUTO, Framing.AS_IS, False)),
    ],
)
def test_defaults_of_ink_and_framing_are_those_of_the_protocol(
    fields: dict[str, object], expected: tuple[Ink, Framing, bool]
) -> None:
    """What is left out means what the comments of the proto say."""
    wide = Limits("7", max_side=56, max_images=6, max_request_bytes=1 << 20)
    request = decode(pb.ClassifyRequest(pixels=pixels(784), **fields).SerializeToString(), wide)
    assert (request.ink, request.framing, request.plain) == expected


def test_framing_is_estimated_by_the_size_of_an_image() -> None:
    """The batcher hears how much framing one image takes."""
    assert decode_fields(pixels=bytes(600), height=20, width=30).framing_work == framing_work(20, 30)
    rgb = decode_fields(pixels=bytes(1800), height=20, width=30, pixel_format=pb.PIXEL_FORMAT_RGB8)
    assert rgb.framing_work == framing_work(20, 30, 3) > framing_work(20, 30)


def test_dark_ink_as_it_is_is_turned_over_and_nothing_else() -> None:
    """AS_IS with INK_DARK_ON_LIGHT inverts each byte in its place."""
    body = pixels(2 * IMAGE_BYTES)
    request = decode_fields(pixels=body, ink=pb.INK_DARK_ON_LIGHT)
    assert rows(request, 0, 2) == (bytes(255 - byte for byte in body), [])


def test_framed_images_carry_their_verdicts() -> None:
    """A blank image and one of two figures are told apart by framing, image by image."""
    images = np.zeros((3, 40, 40), np.uint8)
    images[1, 10:30, 15:22] = 255
    images[2, 5:35, 3:12] = images[2, 5:35, 26:36] = 255
    request = decode_fields(pixels=images.tobytes(), height=40, width=40)
    prepared, seen = rows(request, 0, 3)
    assert seen == [BLANK, ACCEPTED, SEVERAL]
    assert prepared[:IMAGE_BYTES] == bytes(IMAGE_BYTES)


@given(
    num_images=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    side=st.sampled_from([(28, 28), (28, 28), (9, 13), (1, 1), (40, 3)]),
    pixel_format=st.sampled_from(pb.PixelFormat.values()),
    ink_and_framing=INK_AND_FRAMING,
    seed=st.integers(0, 9),
)
@settings(max_examples=250)
def test_slices_of_a_request_are_prepared_as_the_whole_is(
    num_images: int, cut: tuple[int, int], side: tuple[int, int], pixel_format: int, ink_and_framing: tuple[int, int],
    seed: int,
) -> None:  # fmt: skip
    """A request split over batches reaches the network exactly as one that fits into one batch."""
    ink, framing = ink_and_framing
    if framing == pb.FRAMING_AS_IS and side != (28, 28):
        framing = pb.FRAMING_MNIST
    channels = {pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}.get(pixel_format, 1)
    request = decode_fields(
        pixels=pixels(num_images * side[0] * side[1] * channels, seed), height=side[0], width=side[1],
        pixel_format=pixel_format, ink=ink, framing=framing,
    )  # fmt: skip
    start, stop = min(cut[0], num_images - 1), max(min(cut[1], num_images), min(cut[0], num_images - 1) + 1)
    whole, seen = rows(request, 0, num_images)
    part, seen_in_part = rows(request, start, stop)
    assert len(whole) == num_images * IMAGE_BYTES
    assert bytes(part) == bytes(whole[start * IMAGE_BYTES : stop * IMAGE_BYTES])
    assert seen_in_part == seen[start:stop]
    assert len(seen) == (num_images if request.framing is Framing.MNIST else 0)


def test_framed_rows_are_those_of_preprocess() -> None:
    """Framing is defined once: rows gives what ``preprocess.frame`` gives for the grey image."""
    body = pixels(30 * 20 * 3)
    request = decode_fields(pixels=body, height=30, width=20, pixel_format=pb.PIXEL_FORMAT_RGB8)
    framed = frame(to_gray(body, 1, 30, 20, 3)[0], Ink.AUTO)
    assert rows(request, 0, 1)[0] == framed.pixels.tobytes()


def test_verdicts_are_in_the_order_of_the_metrics() -> None:
    """One position means the same verdict to the protocol and to what is counted."""
    assert [pb.Verdict.Name(verdict) for verdict in VERDICTS] == [f"VERDICT_{name.upper()}" for name in VERDICT_NAMES]
    assert tuple(range(4)) == (ACCEPTED, UNFAMILIAR, BLANK, SEVERAL)


def make_answer(seed: int, verdict: int = ACCEPTED) -> Answer:
    """Make an answer as the worker does, from ten probabilities."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(10)).astype(np.float32)
    index = int(probabilities.argmax())
    return Answer(index, float(probabilities[index]), verdict, float(generator.normal()), probabilities)


def read(body: bytes) -> pb.ClassifyResponse:
    """Parse what a client receives."""
    return pb.ClassifyResponse.FromString(body)


def test_a_response_says_what_was_answered_in_order() -> None:
    """Label, class, confidence, verdict and score of each image, the model, and the times."""
    encoder = Encoder("digits", "7", LABELS)
    answers = [make_answer(seed, verdict) for seed, verdict in enumerate((ACCEPTED, UNFAMILIAR, SEVERAL))]
    response = read(encoder.encode(answers, 0, (0.5, 0.25, 0.125), 48))
    assert (response.model_name, response.model_version) == ("digits", "7")
    timing = response.timing
    assert (timing.queue_s, timing.preprocess_s, timing.inference_s, timing.batch_size) == (0.5, 0.25, 0.125, 48)
    assert len(response.predictions) == 3
    for answer, prediction in zip(answers, response.predictions, strict=True):
        assert prediction.label == LABELS[answer.class_index]
        assert prediction.class_index == answer.class_index
        assert prediction.confidence == np.float32(answer.confidence)
        assert prediction.verdict == VERDICTS[answer.verdict]
        assert prediction.ood_score == np.float32(answer.ood_score)
        assert not prediction.top


def test_a_blank_image_has_no_label() -> None:
    """No ink: the verdict says so, and neither label, confidence nor alternatives pretend otherwise."""
    encoder = Encoder("digits", "7", LABELS)
    encoder.encode([make_answer(1)], 0, (0, 0, 0), 1)
    for top_k in (0, 3):
        (prediction,) = read(encoder.encode([make_answer(2, BLANK)], top_k, (0, 0, 0), 1)).predictions
        assert prediction.verdict == pb.VERDICT_BLANK
        assert (prediction.label, prediction.class_index, prediction.confidence) == ("", 0, 0.0)
        assert not prediction.top


@pytest.mark.parametrize(("top_k", "listed"), [(1, 1), (3, 3), (10, 10), (2**32 - 1, 10)])
def test_top_k_lists_the_most_probable_first_with_the_label_itself(top_k: int, listed: int) -> None:
    """The list is sorted, begins with the label, and is no longer than there are labels."""
    answer = make_answer(5)
    (prediction,) = read(Encoder("digits", "7", LABELS).encode([answer], top_k, (0, 0, 0), 1)).predictions
    assert len(prediction.top) == listed
    assert (prediction.top[0].label, prediction.top[0].confidence) == (prediction.label, prediction.confidence)
    confidences = [score.confidence for score in prediction.top]
    assert confidences == sorted(confidences, reverse=True)
    assert all(score.label == LABELS[score.class_index] for score in prediction.top)
    assert all(score.confidence == answer.probabilities[score.class_index] for score in prediction.top)


def test_the_label_leads_its_list_when_two_are_equally_probable() -> None:
    """Label and list break a tie the same way."""
    probabilities = np.array([0.1, 0.3, 0.3, 0.3, 0, 0, 0, 0, 0, 0], np.float32)
    answer = Answer(int(probabilities.argmax()), 0.3, ACCEPTED, 0.0, probabilities)
    (prediction,) = read(Encoder("digits", "7", LABELS).encode([answer], 4, (0, 0, 0), 1)).predictions
    assert [score.class_index for score in prediction.top] == [1, 2, 3, 0]
    assert prediction.label == prediction.top[0].label


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 3)), min_size=1, max_size=4), st.integers(0, 4)),
        min_size=2, max_size=8,
    )
)  # fmt: skip
@settings(max_examples=60)
def test_a_message_that_is_used_again_leaks_nothing_into_the_next(
    requests: list[tuple[list[tuple[int, int]], int]],
) -> None:
    """One encoder for all requests writes each response as a fresh encoder would."""
    encoder = Encoder("digits", "7", LABELS)
    for number, (wanted, top_k) in enumerate(requests):
        answers = [make_answer(seed, verdict) for seed, verdict in wanted]
        seconds = (float(number), number / 2, number / 4)
        fresh = Encoder("digits", "7", LABELS).encode(answers, top_k, seconds, number)
        assert read(encoder.encode(answers, top_k, seconds, number)) == read(fresh)


def test_answers_that_are_sent_leave_no_memory_behind() -> None:
    """What is allocated does not grow with the answers that were written: a worker that runs for months needs no more."""
    encoder = Encoder("digits", "7", LABELS)
    probabilities = np.full(10, 0.1, np.float32)
    answers = [Answer(index % 10, 0.9, index % 4, -3.0, probabilities) for index in range(64)]

    def write() -> None:
        encoder.encode(answers, 3, (0.001, 0.001, 0.001), 64)

    write()
    before = allocated_bytes()
    for _ in range(200):
        write()
    # Not 0: other threads of this process may be at work.
    assert allocated_bytes() - before < 8 * 200 * len(answers)
