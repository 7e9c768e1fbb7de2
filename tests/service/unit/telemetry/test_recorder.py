"""The shared memory of metrics, and what each method of the recorder adds to it."""

import mmap
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.protocol.names import CLASSIFY, HEALTH_WATCH, Code, MarkKind, Verdict
from digitserve.telemetry.block import (
    BATCH_BUCKETS,
    CONFIDENCE_BUCKETS,
    LATENCY_BUCKETS_S,
    METHOD_OF_PATH,
    METHODS,
    OTHER_METHOD,
    REASONS,
    Block,
    CloseReason,
    RefusalReason,
    ShadowResult,
    specs,
)  # fmt: skip
from digitserve.telemetry.recorder import Histogram, Recorder
from digitserve.telemetry.request_log import REPORT_S, RequestLog
from support.log_lines import capture_logs

LABELS = tuple("0123456789")
VERDICTS = (Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL)


def counts(block: Block, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a counter by its label values."""
    (spec,) = (spec for spec in block.specs if spec.name == name)
    return dict(zip(spec.label_values, block.cells[name][:, 0], strict=True))


def test_buckets_of_latency_start_at_a_tenth_of_a_millisecond() -> None:
    """A service that answers in a fraction of a millisecond needs buckets of that size."""
    assert LATENCY_BUCKETS_S[0] == 0.0001
    for spec in specs(LABELS):
        if spec.kind == "histogram":
            assert list(spec.buckets) == sorted(set(spec.buckets))
            if spec.name.endswith("_seconds"):
                assert spec.buckets == LATENCY_BUCKETS_S


def test_each_code_has_its_label() -> None:
    """``grpc_code`` has the names that go-grpc-prometheus uses."""
    labels = {
        Code.OK: "OK", Code.CANCELLED: "Canceled", Code.INVALID_ARGUMENT: "InvalidArgument",
        Code.DEADLINE_EXCEEDED: "DeadlineExceeded", Code.NOT_FOUND: "NotFound",
        Code.RESOURCE_EXHAUSTED: "ResourceExhausted", Code.INTERNAL: "Internal", Code.UNAVAILABLE: "Unavailable",
        Code.UNAUTHENTICATED: "Unauthenticated",
    }  # fmt: skip
    assert {code: code.label for code in labels} == labels
    assert len({code.label for code in Code}) == len(Code) == 17
    assert [code.value for code in Code] == list(range(17))


def test_every_method_has_its_series() -> None:
    """Methods are found by their paths; all unknown ones share one series."""
    assert METHOD_OF_PATH["/digitserve.v1.DigitService/Classify"] == CLASSIFY
    assert CLASSIFY == ("unary", "digitserve.v1.DigitService", "Classify")
    assert METHOD_OF_PATH["/grpc.health.v1.Health/Watch"] == HEALTH_WATCH
    assert HEALTH_WATCH.kind == "server_stream"
    assert METHODS[-1] == OTHER_METHOD == ("unary", "other", "other")
    assert OTHER_METHOD.path not in METHOD_OF_PATH


def test_a_new_block_is_all_zero_and_has_all_series() -> None:
    """Before a worker records anything, every value is 0."""
    block = Block(LABELS)
    assert {name: cells.shape for name, cells in block.cells.items()} == {
        spec.name: (len(spec.label_values), spec.width) for spec in specs(LABELS)
    }
    assert not any(cells.any() for cells in block.cells.values())
    assert block.heartbeat == 0.0
    block.close()


def test_two_mappings_of_one_descriptor_see_the_same_values() -> None:
    """The supervisor reads what the worker writes through the inherited descriptor; metrics do not overlap."""
    written = Block(LABELS)
    descriptor = os.dup(written.fd)
    read = Block(LABELS, descriptor)
    for number, cells in enumerate(written.cells.values(), start=1):
        cells[:] = number
    for number, cells in enumerate(read.cells.values(), start=1):
        assert np.all(cells == number)
    written.close()
    written.cells["heartbeat"][0, 0] = 12.5
    assert read.heartbeat == 12.5
    read.close()


def test_the_memory_holds_float64_in_the_order_of_the_specs() -> None:
    """The layout depends on ``specs`` only: with the same labels another process finds each metric in the same place."""
    block = Block(LABELS)
    for number, cells in enumerate(block.cells.values()):
        cells[:] = number
    size = 8 * sum(cells.size for cells in block.cells.values())
    with mmap.mmap(block.fd, size, access=mmap.ACCESS_READ) as memory:
        values = np.frombuffer(memory.read(), np.float64)
    assert os.fstat(block.fd).st_size == size
    assert values.tolist() == [
        float(number) for number, spec in enumerate(block.specs) for _ in range(len(spec.label_values) * spec.width)
    ]
    block.close()


def test_a_closed_block_frees_its_descriptor() -> None:
    """A supervisor that replaces many workers does not run out of file descriptors."""
    block = Block(LABELS)
    block.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(block.fd)


@given(
    buckets=st.sampled_from([LATENCY_BUCKETS_S, BATCH_BUCKETS, CONFIDENCE_BUCKETS]),
    drawn=st.lists(st.floats(0, 20), max_size=20),
    seed=st.integers(0, 99),
)
@settings(max_examples=100)
def test_a_histogram_counts_as_numpy_does(buckets: tuple[float, ...], drawn: list[float], seed: int) -> None:
    """Each bucket counts the values up to its bound, the bound included, added one by one or many at once."""
    edges = np.random.default_rng(seed).choice(buckets, 5)
    values = np.concatenate([drawn, edges])
    row_of_one, row_of_many = np.zeros((2, len(buckets) + 2))
    one, many = Histogram(row_of_one, buckets), Histogram(row_of_many, buckets)
    for value in values:
        one.observe(float(value))
    many.observe_many(values)
    expected = [int(np.sum(values <= bound)) for bound in (*buckets, np.inf)]
    assert row_of_many[:-1].cumsum().tolist() == expected
    assert row_of_one[:-1].cumsum().tolist() == expected
    assert row_of_one[-1] == pytest.approx(values.sum())
    assert row_of_many[-1] == pytest.approx(values.sum())


def test_an_empty_list_of_values_adds_nothing() -> None:
    """A batch without an accepted prediction adds no confidence."""
    row = np.zeros(len(CONFIDENCE_BUCKETS) + 2)
    Histogram(row, CONFIDENCE_BUCKETS).observe_many(np.array([], np.float32))
    assert not row.any()


def test_each_method_of_the_recorder_writes_its_own_cells() -> None:
    """Every call is found in the metric that it names, and nowhere else."""
    block = Block(LABELS)
    recorder = Recorder(block, LABELS, RequestLog(lines_per_s=1.0))
    assert [recorder.requests.admits("invalid", now=0.0) for _ in range(3)] == [True, False, False]
    for _ in range(3):
        recorder.call_started(CLASSIFY)
    recorder.call_ended(CLASSIFY, Code.UNAVAILABLE, 0.5)
    recorder.call_ended(OTHER_METHOD, Code.UNIMPLEMENTED, 0.02)
    recorder.calls_answered(CLASSIFY, [0.25, 0.125])
    recorder.stream_messages_ended(2, Code.OK)
    recorder.requests_queued([0.0001, 1.0])
    recorder.batch([7, 2], [Verdict.ACCEPTED, Verdict.SEVERAL], [0.75, 0.5], 99.0, 0.3, num_candidates=6)
    recorder.reading_step(0.01)
    recorder.reading(2, [MarkKind.DIGIT, MarkKind.DIGIT, MarkKind.UNREAD])
    recorder.pending_readings(9)
    recorder.pending(7)
    recorder.rejected("deadline")
    for _ in range(5):
        recorder.connection_accepted()
    recorder.connection_closed(CloseReason.AGE)
    recorder.connection_closed(CloseReason.FLOOD)
    recorder.stream_refused(RefusalReason.MALFORMED)
    recorder.shadow_compared([ShadowResult.SAME, ShadowResult.LABEL], np.array([0.5]))
    recorder.shadow_skipped(8)
    recorder.heartbeat(1.5, 4.5)

    sums = {name: cells.sum() for name, cells in block.cells.items()}
    assert sums == pytest.approx(
        {
            "grpc_server_started": 3, "grpc_server_handled": 4, "grpc_server_handling_seconds": 4 + 0.895,
            "digitserve_stream_messages": 2,
            "digitserve_images": 2, "digitserve_batch_size": 1 + 8, "digitserve_queue_seconds": 2 + 1.0001,
            "digitserve_inference_seconds": 1 + 0.3, "digitserve_preprocess_seconds": 1 + 99,
            "digitserve_pending_images": 7, "digitserve_rejected": 1, "digitserve_predictions": 2,
            "digitserve_readings": 1, "digitserve_reading_images": 6, "digitserve_reading_step_seconds": 1 + 0.01,
            "digitserve_read_lines": 2, "digitserve_read_marks": 3, "digitserve_pending_readings": 9,
            "digitserve_connections": 3, "digitserve_connections_accepted": 5, "digitserve_connections_closed": 2,
            "digitserve_streams_refused": 1, "digitserve_request_lines_omitted": 2,
            "digitserve_shadow_images": 2, "digitserve_shadow_skipped_images": 8,
            "digitserve_shadow_probability_difference": 1 + 0.5,
            "digitserve_confidence": 1 + 0.75, "digitserve_cpu_seconds": 4.5, "heartbeat": 1.5,
        }
    )  # fmt: skip
    handled = counts(block, "grpc_server_handled")
    assert handled[(*CLASSIFY, "Unavailable")] == 1
    assert handled[(*CLASSIFY, "OK")] == 2
    assert handled[(*OTHER_METHOD, "Unimplemented")] == 1
    assert counts(block, "digitserve_rejected")["deadline",] == 1
    assert block.cells["digitserve_rejected"][REASONS.index("deadline"), 0] == 1
    closed = counts(block, "digitserve_connections_closed")
    assert {reason: count for (reason,), count in closed.items() if count} == {"age": 1, "flood": 1}
    assert counts(block, "digitserve_streams_refused")["malformed",] == 1
    row = METHODS.index(OTHER_METHOD)
    assert block.cells["grpc_server_handling_seconds"][row].sum() == pytest.approx(1.02)
    assert block.heartbeat == 1.5
    block.close()


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(VERDICTS)), min_size=1, max_size=40))
@settings(max_examples=60)
def test_predictions_are_counted_by_label_and_verdict(predictions: list[tuple[int, Verdict]]) -> None:
    """Each prediction adds one to the series of its label and verdict; blank images have no label."""
    block = Block(LABELS)
    class_index, verdicts = [[*column] for column in zip(*predictions, strict=True)]
    Recorder(block, LABELS).batch(class_index, verdicts, [0.9] * len(predictions), 0.0, 0.0)
    counted = counts(block, "digitserve_predictions")
    expected = dict.fromkeys(counted, 0)
    for index, verdict in predictions:
        expected["" if verdict is Verdict.BLANK else LABELS[index], verdict.name.lower()] += 1
    assert counted == expected
    assert block.cells["digitserve_confidence"][0, :-1].sum() == verdicts.count(Verdict.ACCEPTED)
    block.close()


def test_confidences_are_counted_alike_in_batches_of_all_sizes() -> None:
    """A confidence belongs to the same bucket whether its batch is small or large, also beside the limit of a bucket."""
    limits = np.array(CONFIDENCE_BUCKETS, np.float32)
    small, large = Block(LABELS), Block(LABELS)
    for block, size in ((small, 1), (large, len(limits))):
        recorder = Recorder(block, LABELS)
        for start in range(0, len(limits), size):
            confidence = limits[start : start + size]
            class_index = np.zeros(len(confidence), np.int64)
            recorder.batch(class_index, [Verdict.ACCEPTED] * len(confidence), confidence, 0.0, 0.0)
    counted = [block.cells["digitserve_confidence"][0].tolist() for block in (small, large)]
    assert counted[0] == pytest.approx(counted[1])
    for block in (small, large):
        block.close()


def test_the_loop_reports_omitted_lines() -> None:
    """The number of omitted lines is logged once in an iteration of the worker's loop, a minute after the first of them."""
    recorder = Recorder(Block(LABELS), LABELS, RequestLog(lines_per_s=1.0))
    assert [recorder.requests.admits("invalid", now=5.0) for _ in range(4)] == [True, False, False, False]
    with capture_logs() as lines:
        for now in (5.0, 5.0 + REPORT_S - 0.1, 5.0 + REPORT_S, 5.1 + REPORT_S):
            recorder.heartbeat(now, 0.0)
    assert [(line["event"], line["num_lines"]) for line in lines] == [("request lines omitted", 3)]
