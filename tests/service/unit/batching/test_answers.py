"""Answers of batches whose requests get different kinds of answers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.batching.batcher import Batcher
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pipeline import Pipeline
from digitserve.inference.session import Outputs
from digitserve.open_inference import open_inference_pb2
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.protocol.infer import InferDecoder
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.types import IMAGE_SIZE
from digitserve.v1 import digits_pb2 as pb
from support.responder import BUNDLE, LABELS, Responder

LIMITS = Limits("1", 4096, 4096, 1 << 24)
BATCH_SIZE = 16

KINDS: dict[str, dict[str, Any] | None] = {
    "plain": {},
    "three": {"top_k": 3},
    "all": {"top_k": 10},
    "more than all": {"top_k": 99},
    "explained": {"explain": True},
    "explained with alternatives": {"explain": True, "top_k": 2},
    "ModelInfer": None,
}


class Network:
    """A session whose outputs for an image depend on its pixels only."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the outputs."""
        generators = [
            np.random.default_rng(list(image.tobytes())) for image in np.ascontiguousarray(images[:, 10, 8:16])
        ]
        probabilities = [generator.dirichlet(np.ones(len(LABELS))) for generator in generators]
        scores = [generator.normal() for generator in generators]
        return Outputs(np.array(probabilities, np.float32), np.array(scores, np.float32))


def make_request(kind: str, num_images: int, seed: int) -> Request:
    """Make a request of a kind, with random images of which some are blank."""
    generator = np.random.default_rng(seed)
    images = np.zeros((num_images, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    images[:, 6:22, 8:20] = generator.integers(0, 256, (num_images, 16, 12), np.uint8)
    images[generator.random(num_images) < 0.2] = 0
    fields = KINDS[kind]
    if fields is not None:
        return decode(pb.ClassifyRequest(pixels=images.tobytes(), **fields).SerializeToString(), LIMITS)
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="images", datatype="UINT8", shape=[num_images, IMAGE_SIZE, IMAGE_SIZE]
    )
    message = open_inference_pb2.ModelInferRequest(
        model_name="digits", inputs=[tensor], raw_input_contents=[images.tobytes()]
    )
    return InferDecoder("digits", "1", LABELS).decode(message.SerializeToString(), LIMITS)


def answer(requests: list[Request], batch_size: int) -> list[bytes]:
    """Return the answers to requests that are admitted together, with a clock that is stopped."""
    batcher = Batcher[PendingRequest](
        max_batch_size=batch_size, max_pending_images=1000, max_pending_bytes=1 << 24, max_batch_s=1.0, image_s=1e-3,
        work_s=1e-9,
    )  # fmt: skip
    network: Any = Network()
    pipeline = Pipeline(batcher, network, BUNDLE, Recorder(Block(LABELS), LABELS), clock=lambda: 100.0)
    responders = [Responder() for _ in requests]
    for responder, request in zip(responders, requests, strict=True):
        pipeline.admit(responder, request)
    while pipeline.run_batch():
        pass
    assert [len(responder.bodies) for responder in responders] == [1] * len(requests)
    return [responder.bodies[0] for responder in responders]


def without_batch_size(body: bytes) -> bytes:
    """Return a ``ClassifyResponse`` without the size of its batch."""
    response = pb.ClassifyResponse.FromString(body)
    response.timing.batch_size = 0
    return response.SerializeToString()


@given(
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 24)), min_size=1, max_size=8), st.integers(0, 99)
)
@settings(max_examples=50)
def test_answers_do_not_depend_on_the_other_requests_of_a_batch(kinds: list[tuple[str, int]], seed: int) -> None:
    """Requests of all kinds that share batches, or are spread over several, get the answers that they get image by image."""
    requests = [make_request(kind, num_images, seed + row) for row, (kind, num_images) in enumerate(kinds)]
    together = answer(requests, BATCH_SIZE)
    for (kind, _), request, body in zip(kinds, requests, together, strict=True):
        (alone,) = answer([request], 1)
        if KINDS[kind] is None:
            assert body == alone
        else:
            assert without_batch_size(body) == without_batch_size(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_answered_in_a_batch_of_its_own(kind: str) -> None:
    """A request that fills the batch gets an answer for each image."""
    (body,) = answer([make_request(kind, BATCH_SIZE, 7)], BATCH_SIZE)
    if KINDS[kind] is None:
        assert open_inference_pb2.ModelInferResponse.FromString(body).outputs[0].shape == [BATCH_SIZE, 10]
    else:
        assert len(pb.ClassifyResponse.FromString(body).predictions) == BATCH_SIZE
