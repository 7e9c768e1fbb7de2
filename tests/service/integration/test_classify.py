"""``Classify`` and the methods beside it: a real worker and client, and a network whose output encodes its input."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper

from digitserve.inference.bundle import Golden, write_bundle
from digitserve.protocol.encoder import Encoder
from digitserve.protocol.names import CLASSIFY, GET_MODEL, REFLECTION, SERVICE
from digitserve.protocol.status import INTERNAL
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, echo_request, make_graph, manifest, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

if TYPE_CHECKING:
    from concurrent.futures import Future


def scores(response: pb.ClassifyResponse) -> list[int]:
    """Return the numbers that the images of a response encode."""
    return [int(prediction.ood_score) for prediction in response.predictions]


def test_one_image_gets_its_answer(worker: RunningWorker) -> None:
    """A single image is answered with its label, confidence, verdict, model and timing."""
    response = worker.classify(echo_request(1234567))

    (prediction,) = response.predictions
    assert (prediction.label, prediction.class_index, prediction.confidence) == ("7", 7, 1.0)
    assert prediction.verdict == pb.VERDICT_ACCEPTED
    assert prediction.ood_score == 1234567
    assert (response.model_name, response.model_version) == ("digits", "1")
    assert response.timing.batch_size == 1
    assert response.timing.inference_s > 0


@pytest.mark.parametrize("num_images", [2, 63, 64, 65, 100, 1000])
def test_many_images_are_answered_in_order(worker: RunningWorker, num_images: int) -> None:
    """A request of any number of images gets one prediction per image, in order, also when it is split over batches."""
    numbers = [n * 7919 % 2**24 for n in range(num_images)]

    assert numbers == scores(worker.classify(echo_request(*numbers)))


def test_top_k_lists_the_most_probable_first(worker: RunningWorker) -> None:
    """``top_k`` lists that many classes, the label included and first."""
    (prediction,) = worker.classify(echo_request(3, top_k=3)).predictions

    assert [(score.label, score.confidence) for score in prediction.top][0] == ("3", 1.0)
    assert len(prediction.top) == 3


def test_colour_images_of_any_size_are_framed(worker: RunningWorker) -> None:
    """RGB and RGBA images of another size reach the network as framed 28x28 images."""
    paper = np.full((60, 40, 3), 255, np.uint8)
    paper[10:50, 18:23] = 0
    rgba = np.zeros((60, 40, 4), np.uint8)
    rgba[10:50, 18:23] = [0, 0, 0, 255]

    for pixels, pixel_format in ((paper, pb.PIXEL_FORMAT_RGB8), (rgba, pb.PIXEL_FORMAT_RGBA8)):
        response = worker.classify(
            pb.ClassifyRequest(pixels=pixels.tobytes(), height=60, width=40, pixel_format=pixel_format)
        )
        assert response.predictions[0].verdict == pb.VERDICT_ACCEPTED
        assert response.timing.preprocess_s > 0


def test_blank_and_several_are_verdicts_not_errors(worker: RunningWorker) -> None:
    """A blank image and one with two shapes are answered with their verdicts, in one request with a valid image."""
    blank = np.zeros((28, 28), np.uint8)
    two = blank.copy()
    two[5:23, 3:9] = 255
    two[5:23, 18:24] = 255
    pixels = blank.tobytes() + two.tobytes() + echo_image(42).tobytes()

    predictions = worker.classify(pb.ClassifyRequest(pixels=pixels)).predictions

    assert [p.verdict for p in predictions] == [pb.VERDICT_BLANK, pb.VERDICT_SEVERAL, pb.VERDICT_ACCEPTED]
    assert [p.label for p in predictions][0] == ""
    assert predictions[2].ood_score == 42


def test_scores_above_the_threshold_are_unfamiliar(tmp_path: Path, transport: str) -> None:
    """``VERDICT_UNFAMILIAR`` is returned above the manifest's threshold, and not at it."""
    write_echo_bundle(tmp_path, ood_threshold=100.0)
    with run_worker(tmp_path, transport=transport) as worker:
        predictions = worker.classify(echo_request(100, 101)).predictions

    assert [p.verdict for p in predictions] == [pb.VERDICT_ACCEPTED, pb.VERDICT_UNFAMILIAR]


BAD = {
    "no pixels": (pb.ClassifyRequest(), "INVALID_ARGUMENT", "got none"),
    "a length that does not fit": (pb.ClassifyRequest(pixels=bytes(800)), "INVALID_ARGUMENT", "image 1 has only 16"),
    "one dimension zero": (pb.ClassifyRequest(pixels=bytes(784), height=28), "INVALID_ARGUMENT", "height 28 and width 0"),
    "huge dimensions": (pb.ClassifyRequest(pixels=b"1", height=2**31, width=2**31), "INVALID_ARGUMENT", "at most 4096"),
    "an unknown pixel format": (pb.ClassifyRequest(pixels=bytes(784), pixel_format=99), "INVALID_ARGUMENT", "got 99"),
    "an unknown ink": (pb.ClassifyRequest(pixels=bytes(784), ink=9), "INVALID_ARGUMENT", "ink: got 9"),
    "an unknown framing": (pb.ClassifyRequest(pixels=bytes(784), framing=9), "INVALID_ARGUMENT", "framing: got 9"),
    "as is at another size": (
        pb.ClassifyRequest(pixels=bytes(100), height=10, width=10, framing=pb.FRAMING_AS_IS), "INVALID_ARGUMENT", "10x10",
    ),
    "a disagreeing num_images": (pb.ClassifyRequest(pixels=bytes(784), num_images=2), "INVALID_ARGUMENT", "got 2"),
    "too many images": (pb.ClassifyRequest(pixels=bytes(5000), height=1, width=1), "INVALID_ARGUMENT", "at most 4096"),
    "a version that is not served": (
        pb.ClassifyRequest(pixels=bytes(784), model_version="9"), "NOT_FOUND", "expected '1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_rejected_with_a_reason(worker: RunningWorker, name: str) -> None:
    """A bad request gets its status code, and a message that states what was received; the next request is answered."""
    request, code, part = BAD[name]

    with pytest.raises(grpc.RpcError) as rejected:
        worker.classify(request)

    assert rejected.value.code().name == code
    assert part in rejected.value.details()
    assert scores(worker.classify(echo_request(5))) == [5]


def test_bytes_that_are_not_a_message_are_rejected(worker: RunningWorker) -> None:
    """Bytes that protobuf cannot parse are INVALID_ARGUMENT."""
    with pytest.raises(grpc.RpcError) as rejected:
        worker.raw(b"\xff\xff\xff")

    assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 bytes" in rejected.value.details()


def test_a_call_without_a_message_is_answered(worker: RunningWorker) -> None:
    """A call that half-closes without a message gets a status."""
    call = worker.channel.stream_unary(CLASSIFY.path)

    with pytest.raises(grpc.RpcError) as rejected:
        call(iter(()), timeout=PATIENCE_S)

    assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in rejected.value.details()


def test_a_message_over_the_limit_is_rejected_and_recorded(worker: RunningWorker) -> None:
    """A message over the limit gets RESOURCE_EXHAUSTED with the limit, and is counted in the metrics."""
    with pytest.raises(grpc.RpcError) as rejected:
        worker.raw(bytes(17_000_000))

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "16842752" in rejected.value.details()
    wait_until(lambda: worker.handled() == {"ResourceExhausted": 1}, "the rejection is recorded")
    assert scores(worker.classify(echo_request(5))) == [5]


def test_a_message_far_over_the_limit_is_rejected_unread(worker: RunningWorker, transport: str) -> None:
    """100 MB of zeros get RESOURCE_EXHAUSTED at once. gRPC core discards them itself, which looks like a cancellation."""
    with pytest.raises(grpc.RpcError) as rejected:
        worker.raw(bytes(100_000_000))

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    recorded = "ResourceExhausted" if transport == "native" else "Canceled"
    wait_until(lambda: worker.handled() == {recorded: 1}, "the rejection is recorded")
    assert scores(worker.classify(echo_request(5))) == [5]


def test_a_full_queue_rejects_with_a_time_to_retry(models: Path, transport: str) -> None:
    """Beyond ``max_pending_images`` requests get RESOURCE_EXHAUSTED with ``RetryInfo``; all others are answered."""
    with run_worker(models, transport=transport, max_pending_images=64, max_batch_size=8) as worker:
        call = worker.channel.unary_unary(CLASSIFY.path)
        body = echo_request(*range(32)).SerializeToString()
        futures = [call.future(body, timeout=PATIENCE_S) for _ in range(200)]
        outcomes = Counter(future.code() for future in futures)
        rejected = next(future for future in futures if future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)

        assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        details = dict(rejected.trailing_metadata())["grpc-status-details-bin"]
        (packed,) = status_pb2.Status.FromString(details).details
        retry = error_details_pb2.RetryInfo()
        assert packed.Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() > 0
        for future in futures:
            if future.code() is grpc.StatusCode.OK:
                assert scores(pb.ClassifyResponse.FromString(future.result())) == list(range(32))
        assert worker.handled() == {"OK": outcomes[grpc.StatusCode.OK],
                                    "ResourceExhausted": outcomes[grpc.StatusCode.RESOURCE_EXHAUSTED]}  # fmt: skip


def test_of_2000_calls_each_caller_gets_its_own_answer(worker: RunningWorker) -> None:
    """Of 2 000 simultaneous calls a third is cancelled or expires; every other caller gets its own answer, none is
    rejected by gRPC core, and started equals handled afterwards.
    """
    chance = random.Random(7)
    call = worker.channel.unary_unary(CLASSIFY.path)
    kept: dict[int, grpc.Future] = {}
    others: list[Future] = []
    for number in range(2000):
        body = echo_request(number).SerializeToString()
        fate = chance.random()
        future = call.future(body, timeout=0.001 if fate < 1 / 6 else PATIENCE_S)
        if fate < 1 / 6:
            others.append(future)
        elif fate < 1 / 3:
            others.append(future)
            future.cancel()
        else:
            kept[number] = future

    answers = {number: scores(pb.ClassifyResponse.FromString(future.result())) for number, future in kept.items()}
    codes = {future.code() for future in others}

    assert answers == {number: [number] for number in kept}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    wait_until(lambda: sum(worker.handled().values()) == worker.started(), "every call has ended")
    assert worker.handled()["OK"] >= len(kept)
    assert set(worker.handled()) <= {"OK", "Canceled", "DeadlineExceeded"}


def test_calls_of_many_connections_are_never_rejected_by_core(models: Path, transport: str) -> None:
    """All of 5,000 concurrent calls are answered; core cancels none."""
    with run_worker(models, transport=transport, max_pending_images=10_000) as worker:
        channels = [
            grpc.insecure_channel(worker.address, options=(("grpc.use_local_subchannel_pool", 1),)) for _ in range(10)
        ]
        calls = [channel.unary_unary(CLASSIFY.path) for channel in channels]
        futures = [calls[n % 10].future(echo_request(n).SerializeToString(), timeout=PATIENCE_S) for n in range(5000)]
        answers = [scores(pb.ClassifyResponse.FromString(future.result())) for future in futures]
        for channel in channels:
            channel.close()

        assert answers == [[n] for n in range(5000)]
        assert worker.handled() == {"OK": 5000}


def test_a_request_that_cannot_meet_its_deadline_never_reaches_the_network(worker: RunningWorker) -> None:
    """Requests of 4 000 images with a deadline of a millisecond are rejected or dropped, and not classified."""
    call = worker.channel.unary_unary(CLASSIFY.path)
    body = echo_request(*range(4000)).SerializeToString()
    futures = [call.future(body, timeout=0.001) for _ in range(20)]

    assert {future.code() for future in futures} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert scores(worker.classify(echo_request(5))) == [5]
    wait_until(lambda: sum(worker.handled().values()) == worker.started(), "every call has ended")
    assert set(worker.handled()) <= {"OK", "DeadlineExceeded", "Canceled"}
    assert worker.num_images() == 1


def test_small_requests_pass_a_large_one(worker: RunningWorker) -> None:
    """While a request of 4 000 images runs, small ones are answered before it ends."""
    order: list[str] = []
    call = worker.channel.unary_unary(CLASSIFY.path)
    large = call.future(echo_request(*range(4000)).SerializeToString(), timeout=PATIENCE_S)
    large.add_done_callback(lambda _: order.append("large"))
    wait_until(lambda: worker.num_images() > 0, "the large request is running")
    small = call.future(echo_request(9).SerializeToString(), timeout=PATIENCE_S)
    small.add_done_callback(lambda _: order.append("small"))
    large.result()
    small.result()
    wait_until(lambda: len(order) == 2, "both are answered")

    assert order == ["small", "large"]


def test_health_reflection_and_metadata_share_the_port(worker: RunningWorker) -> None:
    """``grpc.health.v1`` reports SERVING for the server and for the service, and NOT_FOUND for an unknown name."""
    health = health_pb2_grpc.HealthStub(worker.channel)
    serving = health_pb2.HealthCheckResponse.SERVING

    assert health.Check(health_pb2.HealthCheckRequest()).status == serving
    assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status == serving
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="nonesuch"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_open_streams_do_not_delay_health_checks(worker: RunningWorker) -> None:
    """A health check is answered while forty reflection streams are open: none of them occupies a thread."""
    reflect = worker.channel.stream_stream(REFLECTION.path)
    gate = threading.Event()

    def silent() -> Iterator[bytes]:
        gate.wait(PATIENCE_S)
        yield from ()

    streams = [reflect(silent()) for _ in range(40)]
    wait_until(lambda: worker.started(REFLECTION.name) == 40, "all streams are open")
    status = (
        health_pb2_grpc.HealthStub(worker.channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S / 2).status
    )
    gate.set()
    for stream in streams:
        stream.cancel()

    assert status == health_pb2.HealthCheckResponse.SERVING


def test_a_health_watcher_is_notified_of_the_drain(models: Path, transport: str) -> None:
    """A client that watches the health gets SERVING, then NOT_SERVING when the worker drains."""
    statuses: list[int] = []
    with run_worker(models, transport=transport) as worker:
        stub = health_pb2_grpc.HealthStub(worker.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        statuses.append(next(watch).status)
        reader = threading.Thread(target=lambda: statuses.append(next(watch).status))
        reader.start()
        worker.worker.drain()
        reader.join(PATIENCE_S)

    assert statuses == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_get_model_describes_the_model(worker: RunningWorker) -> None:
    """``GetModel`` returns the manifest, the provider and the limits; another version is NOT_FOUND, and bytes that are not
    its request are INVALID_ARGUMENT.
    """
    call = worker.channel.unary_unary(
        GET_MODEL.path, pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
    )
    model = call(pb.GetModelRequest()).model

    assert (model.name, model.version, list(model.labels)) == ("digits", "1", list("0123456789"))
    assert model.execution_provider == "CPUExecutionProvider"
    assert (model.max_request_bytes, model.max_images_per_request, model.max_batch_size) == (
        (16 << 20) + (64 << 10),
        4096,
        64,
    )
    assert len(model.sha256) == 64
    with pytest.raises(grpc.RpcError) as rejected:
        call(pb.GetModelRequest(model_version="2"))
    assert rejected.value.code() is grpc.StatusCode.NOT_FOUND
    assert "expected '1'" in rejected.value.details()
    with pytest.raises(grpc.RpcError) as rejected:
        worker.channel.unary_unary(GET_MODEL.path)(b"\xff")
    assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    expected = {"OK": 1, "NotFound": 1, "InvalidArgument": 1}
    wait_until(lambda: worker.handled(GET_MODEL.name) == expected, "each call is recorded with its code")
    assert worker.num_rejected() == 0


def test_everything_admitted_is_answered_while_draining(models: Path, transport: str) -> None:
    """Calls that were accepted before the drain are answered with status OK. With grpcio, an answer may be lost with its
    connection; the caller then gets UNAVAILABLE.
    """
    with run_worker(models, transport=transport) as worker:
        call = worker.channel.unary_unary(CLASSIFY.path)
        futures = [call.future(echo_request(n).SerializeToString(), timeout=PATIENCE_S) for n in range(500)]
        wait_until(lambda: worker.started() == 500, "all calls were accepted")
        worker.worker.drain()
        codes = {future.code() for future in futures}
        answers = {
            n: scores(pb.ClassifyResponse.FromString(future.result()))
            for n, future in enumerate(futures)
            if future.code() is grpc.StatusCode.OK
        }
        assert worker.handled() == {"OK": 500}

    lost = codes - {grpc.StatusCode.OK}
    assert lost <= ({grpc.StatusCode.UNAVAILABLE} if transport == "grpcio" else set())
    assert answers == {n: [n] for n in answers}


def test_an_answer_that_cannot_be_encoded_affects_no_other(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one answer of a batch cannot be encoded, its caller gets INTERNAL, the other callers get their answers, and each
    call is recorded once.
    """

    def failing_encode(_self: Encoder, *_arguments: Any) -> bytes:
        raise ValueError("cannot")

    # Only one of the requests asks for what this method encodes.
    monkeypatch.setattr(Encoder, "encode", failing_encode)
    call = worker.channel.unary_unary(CLASSIFY.path)
    futures = [call.future(echo_request(n, explain=n == 7).SerializeToString(), timeout=PATIENCE_S) for n in range(30)]
    outcomes = [future.code() for future in futures]

    assert outcomes.count(grpc.StatusCode.OK) == 29
    assert outcomes[7] is grpc.StatusCode.INTERNAL
    assert worker.handled() == {"OK": 29, "Internal": 1}


def test_a_failure_is_internal_with_a_fixed_text(tmp_path: Path, transport: str) -> None:
    """When the network fails on a batch, its callers get INTERNAL with a fixed text, the log gets the detail, and the
    next batch is answered.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Gather", ["rows", "first"], ["index"], axis=1),
        # Any first pixel above 0 is an index beyond the table.
        helper.make_node("Gather", ["table", "index"], ["ood_score"]),
        helper.make_node("Gather", ["rows", "some"], ["digits"], axis=1),
        helper.make_node("Cast", ["digits"], ["probabilities"], to=TensorProto.FLOAT),
    ]
    constants = {
        "flat": np.array([-1, 784], np.int64),
        "first": np.array(0, np.int64),
        "some": np.arange(10),
        "table": np.zeros(1, np.float32),
    }
    blank = np.zeros((1, 28, 28, 1), np.uint8)
    golden = Golden(blank, np.zeros((1, 10), np.float32), np.zeros(1, np.float32))
    write_bundle(tmp_path, manifest(), make_graph(nodes, constants), golden)
    with run_worker(tmp_path, transport=transport) as worker:
        with pytest.raises(grpc.RpcError) as failed:
            worker.classify(pb.ClassifyRequest(pixels=b"\x09" * 784))

        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert failed.value.details() == INTERNAL.message
        assert worker.classify(pb.ClassifyRequest(pixels=bytes(784))).predictions[0].verdict == pb.VERDICT_BLANK
        assert worker.handled() == {"Internal": 1, "OK": 1}
        assert worker.num_pending() == 0
