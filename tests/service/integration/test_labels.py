"""A worker that serves other labels than the ten digits: the bundle defines their number and names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from digitserve.protocol.names import GET_MODEL
from digitserve.telemetry.collector import ServiceCollector
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker

LONG = 'a "long" label, of ' + "many words " * 20
LABELS = ("お", LONG, *"CDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.fixture
def collector() -> ServiceCollector:
    return ServiceCollector(LABELS, list)


@pytest.fixture
def worker(tmp_path: Path, collector: ServiceCollector) -> Iterator[RunningWorker]:
    write_echo_bundle(tmp_path, labels=LABELS)
    with run_worker(tmp_path, collector) as running:
        yield running


def test_26_labels_are_served(worker: RunningWorker) -> None:
    """Each of 26 labels is returned by its name, including a long one and one in another script, and all 26 are listed."""
    pixels = b"".join(echo_image(number, len(LABELS)).tobytes() for number in range(26))

    plain = worker.classify(pb.ClassifyRequest(pixels=pixels))
    listed = worker.classify(pb.ClassifyRequest(pixels=pixels, top_k=100))

    assert [prediction.label for prediction in plain.predictions] == list(LABELS)
    for number, prediction in enumerate(listed.predictions):
        assert prediction.class_index == number
        assert (prediction.top[0].label, prediction.top[0].confidence) == (LABELS[number], 1.0)
        assert {score.label for score in prediction.top} == set(LABELS)


def test_get_model_returns_the_labels(worker: RunningWorker) -> None:
    """``GetModel`` returns all labels in the order of their indices."""
    get_model = worker.channel.unary_unary(
        GET_MODEL.path, pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
    )

    assert tuple(get_model(pb.GetModelRequest(), timeout=PATIENCE_S).model.labels) == LABELS


def test_each_label_is_counted(worker: RunningWorker, collector: ServiceCollector) -> None:
    """Prometheus gets a series for each label, under the label's own name."""
    worker.classify(pb.ClassifyRequest(pixels=b"".join(echo_image(n, 26).tobytes() for n in (0, 1, 1, 25, 25, 25))))
    registry = CollectorRegistry()
    registry.register(collector)

    def counted(label: str) -> float | None:
        return registry.get_sample_value("digitserve_predictions_total", {"label": label, "verdict": "accepted"})

    assert [counted(label) for label in ("お", LONG, "C", "Z")] == [1, 2, 0, 3]
    assert b'label="a \\"long\\" label, of many words' in generate_latest(registry)
