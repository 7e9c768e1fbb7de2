"""What a worker counts is what can be read, in the memory that it shares."""

import mmap
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.telemetry.block import (
    BATCH_BUCKETS,
    CLASSIFY_ROW,
    CODES,
    CONFIDENCE_BUCKETS,
    LATENCY_BUCKETS_S,
    METHOD_ROWS,
    METHODS,
    OTHER_ROW,
    REASONS,
    UNAVAILABLE,
    VERDICTS,
    Block,
    Histogram,
    Tally,
    specs,
)  # fmt: skip

LABELS = tuple("0123456789")
ACCEPTED, UNFAMILIAR, BLANK, SEVERAL = range(4)


def test_buckets_of_latency_start_at_a_tenth_of_a_millisecond() -> None:
    """A service that answers in a fraction of a millisecond needs buckets there."""
    assert LATENCY_BUCKETS_S[0] == 0.0001
    for spec in specs(LABELS):
        if spec.kind == "histogram":
            assert list(spec.buckets) == sorted(set(spec.buckets))
            if spec.name.endswith("_seconds"):
                assert spec.buckets == LATENCY_BUCKETS_S


def test_codes_stand_at_their_numbers() -> None:
    """The position of a code's name is gRPC's number of it, so that a number can be counted as it is."""
    numbers = {
        "OK": 0,
        "Canceled": 1,
        "InvalidArgument": 3,
        "DeadlineExceeded": 4,
        "NotFound": 5,
        "Unauthenticated": 16,
    }
    assert {name: CODES.index(name) for name in numbers} == numbers
    assert (CODES.index("ResourceExhausted"), CODES.index("Internal"), UNAVAILABLE) == (8, 13, 14)
    assert len(CODES) == len(set(CODES)) == 17


def test_every_method_has_its_row() -> None:
    """A full method name leads to its row; all unknown ones share the last."""
    assert METHOD_ROWS["/digitserve.v1.DigitService/Classify"] == CLASSIFY_ROW
    assert METHODS[CLASSIFY_ROW] == ("unary", "digitserve.v1.DigitService", "Classify")
    assert METHODS[METHOD_ROWS["/grpc.health.v1.Health/Watch"]][0] == "server_stream"
    assert METHODS[OTHER_ROW] == ("unary", "other", "other")


def test_a_new_block_is_all_zero_and_has_room_for_everything() -> None:
    """A worker that has not counted yet counts nothing."""
    block = Block(LABELS)
    assert {name: cells.shape for name, cells in block.cells.items()} == {
        spec.name: (len(spec.label_values), spec.width) for spec in specs(LABELS)
    }
    assert not any(cells.any() for cells in block.cells.values())
    assert block.heartbeat == 0.0
    block.close()


def test_two_mappings_of_one_descriptor_see_the_same_values() -> None:
    """What the worker writes through the inherited descriptor, the supervisor reads, and nothing of it overlaps."""
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
    """The layout is that of ``specs`` and nothing else: the same labels give another process the same places."""
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


def test_a_closed_block_gives_its_descriptor_back() -> None:
    """A supervisor that replaces workers for years does not run out of descriptors."""
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
    """Each bucket holds what is at most its bound, one by one or many at once, bounds themselves included."""
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


def test_an_empty_batch_of_values_counts_nothing() -> None:
    """A batch without an accepted prediction adds no confidence."""
    row = np.zeros(len(CONFIDENCE_BUCKETS) + 2)
    Histogram(row, CONFIDENCE_BUCKETS).observe_many(np.array([], np.float32))
    assert not row.any()


def test_each_tally_writes_into_its_own_cells() -> None:
    """Every name of a tally leads to the metric of that name."""
    block = Block(LABELS)
    tally = Tally(block, LABELS)
    tally.started[CLASSIFY_ROW] += 3
    tally.handled[CLASSIFY_ROW, UNAVAILABLE] += 2
    tally.handling_s[OTHER_ROW].observe(0.02)
    tally.batch_size.observe(64)
    tally.queue_s.observe(0.0001)
    tally.inference_s.observe_many([0.1, 0.2])
    tally.preprocess_s.observe(99.0)
    tally.confidence.observe_many(np.array([0.5, 1.0], np.float32))
    tally.images[0] += 65
    tally.pending_images[0] = 7
    tally.cpu_s[0] = 4.5
    tally.heartbeat[0] = 1.5
    tally.reject("deadline")
    sums = {name: cells.sum() for name, cells in block.cells.items()}
    assert sums == pytest.approx(
        {
            "grpc_server_started": 3, "grpc_server_handled": 2, "grpc_server_handling_seconds": 1.02,
            "digitserve_images": 65, "digitserve_batch_size": 65, "digitserve_queue_seconds": 1.0001,
            "digitserve_inference_seconds": 2.3, "digitserve_preprocess_seconds": 100, "digitserve_pending_images": 7,
            "digitserve_rejected": 1, "digitserve_predictions": 0, "digitserve_confidence": 3.5, "digitserve_cpu_seconds": 4.5, "heartbeat": 1.5,
        }
    )  # fmt: skip
    handled = dict(zip(block.specs[1].label_values, block.cells["grpc_server_handled"][:, 0], strict=True))
    assert handled[("unary", "digitserve.v1.DigitService", "Classify", "Unavailable")] == 2
    assert block.cells["digitserve_rejected"][REASONS.index("deadline"), 0] == 1
    assert block.cells["grpc_server_handling_seconds"][OTHER_ROW].sum() == pytest.approx(1.02)
    block.close()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40))
@settings(max_examples=60)
def test_predictions_are_counted_by_label_and_verdict(drawn: list[tuple[int, int]]) -> None:
    """Each prediction adds one to the series of its label and verdict; blank images have no label."""
    block = Block(LABELS)
    tally = Tally(block, LABELS)
    tally.predictions(np.array([c for c, _ in drawn], int), np.array([v for _, v in drawn], int))
    (spec,) = (spec for spec in block.specs if spec.name == "digitserve_predictions")
    counts = dict(zip(spec.label_values, block.cells["digitserve_predictions"][:, 0], strict=True))
    expected = dict.fromkeys(counts, 0)
    for class_index, verdict in drawn:
        expected[("" if verdict == BLANK else LABELS[class_index], VERDICTS[verdict])] += 1
    assert counts == expected
    block.close()
