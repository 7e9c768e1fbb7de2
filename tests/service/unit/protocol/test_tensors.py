"""Encoding of ``ModelInferResponse``."""

import numpy as np
import pytest

from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.infer import InferDecoder
from digitserve.protocol.names import Verdict
from digitserve.protocol.records import Answer
from digitserve.protocol.tensors import NO_LABEL
from support.decode_checks import LIMITS
from support.infer_checks import OUTPUTS, infer_request, new_decoder, tensors

PROBABILITIES = np.array(
    [
        [0.5, 0.25, 0.25, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0.1, 0.1, 0.8],
        [0.1] * 10,
    ], np.float32,
)  # fmt: skip
ANSWERS: list[Answer] = [
    (0, 0.5, Verdict.ACCEPTED, -2.5, PROBABILITIES[0]),
    (9, 0.8, Verdict.UNFAMILIAR, 3.0, PROBABILITIES[1]),
    (0, 0.1, Verdict.BLANK, 0.125, PROBABILITIES[2]),
]


def encode(*outputs: str, raw: bool = True, decoder: InferDecoder | None = None) -> oip.ModelInferResponse:
    """Return the response to a request for these outputs, of three images with ``ANSWERS``."""
    message = infer_request(bytes(45), (3, 3, 5), raw=raw, outputs=outputs, id="the id")
    form = (decoder or new_decoder()).decode(message.SerializeToString(), LIMITS).form
    assert form is not None
    return oip.ModelInferResponse.FromString(form.encode(ANSWERS))


@pytest.mark.parametrize("raw", [True, False])
def test_all_outputs_are_returned_in_the_form_of_the_request(raw: bool) -> None:
    """Without requested outputs there are all: shapes and datatypes of the metadata; raw if the request was, typed otherwise."""
    response = encode(raw=raw)

    assert (response.model_name, response.model_version, response.id) == ("digits", "7", "the id")
    described = [(output.name, output.datatype, [*output.shape]) for output in response.outputs]
    assert described == [
        ("probabilities", "FP32", [3, 10]), ("ood_score", "FP32", [3]), ("label", "INT64", [3]), ("verdict", "BYTES", [3]),
    ]  # fmt: skip
    assert bool(response.raw_output_contents) is raw
    arrays = tensors(response)
    assert np.array_equal(arrays["probabilities"], PROBABILITIES)
    assert arrays["ood_score"].tolist() == [-2.5, 3.0, 0.125]
    assert arrays["label"].tolist() == [0, 9, NO_LABEL]
    assert arrays["verdict"].tolist() == [b"ACCEPTED", b"UNFAMILIAR", b"BLANK"]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("outputs", [("label",), ("verdict", "probabilities"), OUTPUTS[::-1]])
def test_requested_outputs_are_returned_in_the_requested_order(outputs: tuple[str, ...], raw: bool) -> None:
    """A request gets the outputs that it names, in its order, with the same values as all outputs together."""
    every, some = tensors(encode(raw=raw)), tensors(encode(*outputs, raw=raw))

    assert tuple(some) == outputs
    for name, array in some.items():
        assert np.array_equal(array, every[name])


@pytest.mark.parametrize("raw", [True, False])
def test_classification_returns_the_most_probable_classes(raw: bool) -> None:
    """``classification`` gives "value:index:label", the most probable first, of equal ones the lower index first."""
    response = encode("probabilities:3", "label", raw=raw)

    (described, _) = response.outputs
    assert (described.name, described.datatype, [*described.shape]) == ("probabilities", "BYTES", [3, 3])
    assert tensors(response)["probabilities"].tolist() == [
        [b"0.500000:0:0", b"0.250000:1:1", b"0.250000:2:2"],
        [b"0.800000:9:9", b"0.100000:7:7", b"0.100000:8:8"],
        [b"0.100000:0:0", b"0.100000:1:1", b"0.100000:2:2"],
    ]


def test_more_classes_than_labels_are_all_classes() -> None:
    """As in Triton, a count above the number of labels returns all of them."""
    assert tensors(encode("probabilities:1000"))["probabilities"].shape == (3, 10)


def test_labels_of_a_model_are_those_of_its_manifest() -> None:
    """A model with other labels states them in classifications; ``label`` is their index."""
    decoder = InferDecoder("digits", "7", tuple("ABCDEFGHIJ"))
    arrays = tensors(encode("probabilities:1", "label", decoder=decoder))

    assert arrays["probabilities"].tolist() == [[b"0.500000:0:A"], [b"0.800000:9:J"], [b"0.100000:0:A"]]
    assert arrays["label"].tolist() == [0, 9, NO_LABEL]
