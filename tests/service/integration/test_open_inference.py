"""The Open Inference Protocol: a real worker on each transport, and grpcio as the client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw as draw_digit
from digitserve.inference.model_folder import find_bundle
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.names import (
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    OPEN_INFERENCE_SERVICE,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    Method,
)  # fmt: skip
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image
from support.digits import MODELS
from support.infer_checks import OUTPUTS, infer_request, tensors
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}
VERDICTS = {number: name.removeprefix("VERDICT_").encode() for name, number in pb.Verdict.items()}


def call(worker: RunningWorker, method: Method, request: Any = None) -> Any:
    """Call a method; without a request, with an empty one."""
    answer = getattr(oip, f"{method.name}Response")
    body = b"" if request is None else request.SerializeToString()
    return answer.FromString(worker.channel.unary_unary(method.path)(body, timeout=PATIENCE_S))


def echo_infer(*numbers: int, **options: Any) -> oip.ModelInferRequest:
    """Return a request whose answers have these numbers as OOD scores."""
    pixels = b"".join(echo_image(number).tobytes() for number in numbers)
    return infer_request(pixels, (len(numbers), 28, 28, 1), **options)


def numbers_of(response: oip.ModelInferResponse) -> list[int]:
    return [int(score) for score in tensors(response)["ood_score"]]


def test_images_are_answered_in_order(worker: RunningWorker) -> None:
    """Each image of a request of any size has its answer in its place, also when the request is split over batches."""
    for num_images in (1, 64, 1000):
        numbers = [n * 7919 % 2**24 for n in range(num_images)]
        response = call(worker, MODEL_INFER, echo_infer(*numbers, id=f"of {num_images}"))
        arrays = tensors(response)
        assert arrays["ood_score"].tolist() == numbers
        assert arrays["label"].tolist() == [number % 10 for number in numbers]
        assert np.array_equal(arrays["probabilities"], np.eye(10)[arrays["label"]])
        assert {*arrays["verdict"]} == {b"ACCEPTED"}
        assert (response.model_name, response.model_version, response.id) == ("digits", "1", f"of {num_images}")


def test_server_and_model_are_ready_and_described(worker: RunningWorker) -> None:
    """The server is live and ready, and so is the served model, by its name and version; its metadata is that of its answers."""
    assert call(worker, SERVER_LIVE).live
    assert call(worker, SERVER_READY).ready
    server = call(worker, SERVER_METADATA)
    assert (server.name, [*server.extensions]) == ("digitserve", ["classification"])
    assert server.version
    for version in ("", "1"):
        assert call(worker, MODEL_READY, oip.ModelReadyRequest(name="digits", version=version)).ready
    for name, version in (("digits", "2"), ("mnist", ""), ("", "")):
        assert not call(worker, MODEL_READY, oip.ModelReadyRequest(name=name, version=version)).ready
    model = call(worker, MODEL_METADATA, oip.ModelMetadataRequest(name="digits"))
    assert (model.name, [*model.versions], model.platform) == ("digits", ["1"], "onnx_onnxv1")
    (images,) = model.inputs
    assert (images.name, images.datatype, [*images.shape]) == ("images", "UINT8", [-1, -1, -1, -1])
    answered = call(worker, MODEL_INFER, echo_infer(1, 2, 3)).outputs
    assert [(o.name, o.datatype, [-1, *o.shape[1:]]) for o in answered] == [
        (o.name, o.datatype, [*o.shape]) for o in model.outputs
    ]


def test_the_model_has_the_name_of_the_setting(models: Path, transport: str) -> None:
    """With ``--served-name`` clients send and get this name; the name of the bundle is not found."""
    with run_worker(models, transport=transport, served_name="my-model") as worker:
        assert call(worker, MODEL_READY, oip.ModelReadyRequest(name="my-model")).ready
        assert call(worker, MODEL_METADATA, oip.ModelMetadataRequest(name="my-model")).name == "my-model"
        assert call(worker, MODEL_INFER, echo_infer(1, model_name="my-model")).model_name == "my-model"
        with pytest.raises(grpc.RpcError) as rejected:
            call(worker, MODEL_INFER, echo_infer(1))
    assert rejected.value.details() == "model name: got 'digits'; expected 'my-model', the model that is served"


FAILURES = {
    "another model": (MODEL_INFER, echo_infer(1, model_name="x"), "NOT_FOUND", "expected 'digits'"),
    "another version": (MODEL_INFER, echo_infer(1, model_version="9"), "NOT_FOUND", "expected '1'"),
    "metadata of another": (MODEL_METADATA, oip.ModelMetadataRequest(name="x"), "NOT_FOUND", "expected 'digits'"),
    "a shape": (MODEL_INFER, infer_request(bytes(784), (1, 784)), "INVALID_ARGUMENT", "got shape [1, 784]"),
    "too many images": (MODEL_INFER, infer_request(bytes(5000), (5000, 1, 1)), "INVALID_ARGUMENT", "at most 4096"),
    "too wide": (MODEL_INFER, infer_request(bytes(5000), (1, 5000, 1)), "INVALID_ARGUMENT", "at most 4096"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_bad_requests_are_rejected_with_a_reason(worker: RunningWorker, name: str) -> None:
    """A bad request gets its status code and what was received, and is recorded under its method; the next one is answered."""
    method, request, code, part = FAILURES[name]

    with pytest.raises(grpc.RpcError) as rejected:
        call(worker, method, request)

    assert rejected.value.code().name == code
    assert part in rejected.value.details()
    assert worker.handled(method.name) == {code.title().replace("_", ""): 1}
    assert numbers_of(call(worker, MODEL_INFER, echo_infer(5))) == [5]


def test_bytes_that_are_not_a_message_are_rejected(worker: RunningWorker) -> None:
    """Bytes that protobuf cannot parse are INVALID_ARGUMENT for each method, and a call without a message too."""
    for method in (MODEL_INFER, MODEL_METADATA, MODEL_READY, SERVER_LIVE, SERVER_METADATA, SERVER_READY):
        for messages in ([b"\xff\xff\xff"], []):
            with pytest.raises(grpc.RpcError) as rejected:
                worker.channel.stream_unary(method.path)(iter(messages), timeout=PATIENCE_S)
            assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert worker.handled(method.name) == {"InvalidArgument": 2}


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelConfig", "RepositoryIndex", "SystemSharedMemoryRegister"])
def test_extensions_of_triton_are_unimplemented(worker: RunningWorker, method: str) -> None:
    """Other methods of the service end at once with a text that lists what there is, also streams that stay open."""
    with pytest.raises(grpc.RpcError) as rejected:
        next(worker.channel.stream_stream(f"/{OPEN_INFERENCE_SERVICE}/{method}")(iter([b""]), timeout=PATIENCE_S))

    assert rejected.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"{OPEN_INFERENCE_SERVICE} has ModelInfer" in rejected.value.details()


def test_a_message_over_the_limit_is_rejected(worker: RunningWorker) -> None:
    """A message over the limit gets RESOURCE_EXHAUSTED with the limit."""
    with pytest.raises(grpc.RpcError) as rejected:
        call(worker, MODEL_INFER, infer_request(bytes(17_000_000), (1, 4096, 4096)))

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "16842752" in rejected.value.details()


def test_both_methods_share_the_queue(models: Path, transport: str) -> None:
    """Requests of both methods together fill the queue: others get RESOURCE_EXHAUSTED with ``RetryInfo``, and each is recorded
    under its method.
    """
    with run_worker(models, transport=transport, max_pending_images=64, max_batch_size=8) as worker:
        bodies = {
            "Classify": pb.ClassifyRequest(pixels=b"".join(echo_image(n).tobytes() for n in range(32))),
            "ModelInfer": echo_infer(*range(32)),
        }
        paths = {"Classify": "/digitserve.v1.DigitService/Classify", "ModelInfer": MODEL_INFER.path}
        futures = [
            (name, worker.channel.unary_unary(paths[name]).future(body.SerializeToString(), timeout=PATIENCE_S))
            for _ in range(100)
            for name, body in bodies.items()
        ]
        codes = [(name, future.code()) for name, future in futures]
        for name in bodies:
            handled = {code.name.title().replace("_", "") for one, code in codes if one == name}
            assert set(worker.handled(name)) == {"OK" if code == "Ok" else code for code in handled}
            assert worker.handled(name)["ResourceExhausted"] > 0
        rejected = next(future for (name, code), (_, future) in zip(codes, futures, strict=True)
                        if name == "ModelInfer" and code is grpc.StatusCode.RESOURCE_EXHAUSTED)  # fmt: skip
        (packed,) = status_pb2.Status.FromString(dict(rejected.trailing_metadata())["grpc-status-details-bin"]).details
        assert packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
        for name, future in futures:
            if name == "ModelInfer" and future.code() is grpc.StatusCode.OK:
                assert numbers_of(oip.ModelInferResponse.FromString(future.result())) == list(range(32))


def test_a_request_that_cannot_meet_its_deadline_is_not_classified(worker: RunningWorker) -> None:
    """A request of 4,000 images with a deadline of a millisecond gets DEADLINE_EXCEEDED."""
    body = echo_infer(*range(4000)).SerializeToString()
    future = worker.channel.unary_unary(MODEL_INFER.path).future(body, timeout=0.001)

    assert future.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert numbers_of(call(worker, MODEL_INFER, echo_infer(5))) == [5]
    wait_until(
        lambda: sum(worker.handled("ModelInfer").values()) == worker.started("ModelInfer"), "every call has ended"
    )
    assert worker.num_images() == 1


def test_readiness_is_false_while_a_worker_drains(models: Path, transport: str) -> None:
    """During the lame duck time server and model are not ready, as health says; the server is live and answers requests."""
    with run_worker(models, transport=transport, lame_duck_s=PATIENCE_S) as worker:
        health = health_pb2_grpc.HealthStub(worker.channel)
        request = health_pb2.HealthCheckRequest(service=OPEN_INFERENCE_SERVICE)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        worker.worker.drain()
        wait_until(lambda: not call(worker, SERVER_READY).ready, "the server is not ready")
        assert not call(worker, MODEL_READY, oip.ModelReadyRequest(name="digits")).ready
        assert health.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert call(worker, SERVER_LIVE).live
        assert numbers_of(call(worker, MODEL_INFER, echo_infer(5))) == [5]
        worker.worker.abandon()  # ends the lame duck time


@pytest.fixture(scope="module")
def real_worker() -> Iterator[RunningWorker]:
    """Run a worker that serves the shipped model."""
    with run_worker(MODELS, transport="native") as worker:
        yield worker


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Draw uint8[N, H, W, C]: digits of any size, light or dark, grey or in colour; some are noise."""
    num_images, first = draw(st.integers(1, 4)), draw(st.integers(0, 9))
    height, width = draw(st.sampled_from([(28, 28), None])) or (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    generator = np.random.default_rng(first)
    digits = [draw_digit((first + n) % 10, Size(height, width), generator) for n in range(num_images)]
    gray = np.stack(digits) ^ np.uint8(draw(st.sampled_from([0, 255])))
    if draw(st.integers(0, 5)) == 0:
        gray = generator.integers(0, 256, gray.shape, np.uint8)
    return np.repeat(gray[..., None], draw(st.sampled_from([1, 1, 3, 4])), axis=3)


@given(
    pictures(), st.sampled_from([None, *Ink]), st.sampled_from([None, Framing.MNIST, Framing.AS_IS]),
    st.lists(st.sampled_from(OUTPUTS), unique=True), st.booleans(), st.text(max_size=8), st.booleans(),
)  # fmt: skip
@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
def test_answers_are_those_of_classify(
    real_worker: RunningWorker,
    images: np.ndarray,
    ink: Ink | None,
    framing: Framing | None,
    outputs: list[str],
    raw: bool,
    request_id: str,
    stated: bool,
) -> None:
    """For any valid request the labels, verdicts, scores and, byte for byte, the probabilities are those of ``Classify``."""
    _, height, width, channels = images.shape
    if framing is Framing.AS_IS and (height, width) != (28, 28):
        framing = None
    shape = images.shape if channels > 1 or stated else images.shape[:3]
    parameters = [(name, v.value) for name, v in (("ink", ink), ("framing", framing)) if v]
    request = infer_request(
        images.tobytes(), shape, raw=raw, outputs=outputs, parameters=parameters, id=request_id,
        model_version=find_bundle(MODELS, "digits").name * stated,
    )  # fmt: skip
    expected = real_worker.classify(
        pb.ClassifyRequest(
            pixels=images.tobytes(),
            height=height,
            width=width,
            pixel_format=FORMATS[channels],
            top_k=10,
            ink=pb.Ink.Value(f"INK_{ink.name}") if ink else None,
            framing=pb.Framing.Value(f"FRAMING_{framing.name}") if framing else None,
        )
    ).predictions

    response = call(real_worker, MODEL_INFER, request)

    assert response.id == request_id
    arrays = tensors(response)
    assert [*arrays] == (outputs or [*OUTPUTS])
    for index, prediction in enumerate(expected):
        blank = prediction.verdict == pb.VERDICT_BLANK
        found = {name: array[index] for name, array in arrays.items()}
        if "label" in found:
            assert found["label"] == (-1 if blank else prediction.class_index)
        if "verdict" in found:
            assert found["verdict"] == VERDICTS[prediction.verdict]
        if "ood_score" in found:
            assert found["ood_score"] == np.float32(prediction.ood_score)
        if "probabilities" in found and not blank:
            by_index = sorted((score.class_index, score.confidence) for score in prediction.top)
            assert found["probabilities"].tobytes() == np.array([c for _, c in by_index], np.float32).tobytes()


@given(pictures(), st.data())
@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
def test_changed_requests_are_answered_or_rejected(
    real_worker: RunningWorker, images: np.ndarray, data: st.DataObject
) -> None:
    """A valid request with any bytes changed is answered, or gets INVALID_ARGUMENT or NOT_FOUND, and never INTERNAL."""
    request = infer_request(
        images.tobytes(), images.shape, outputs=("label", "probabilities:3"), parameters=[("ink", "auto")]
    )
    body = bytearray(request.SerializeToString())
    head = len(body) - images.size
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 255)), min_size=1, max_size=3)
    ):
        body[position] = value
    try:
        real_worker.channel.unary_unary(MODEL_INFER.path)(bytes(body), timeout=PATIENCE_S)
    except grpc.RpcError as error:
        assert error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
