"""The shadow: what it counts, and when it runs; the clock is that of the test, and a fake session advances it."""

from typing import Any

import numpy as np
import pytest

from digitserve.batching.prepare import Prepared
from digitserve.batching.shadow import Shadow
from digitserve.inference.session import Outputs
from digitserve.protocol.names import Verdict
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from support.bundles import manifest

SERVED = manifest(1, labels=("0", "1", "2"), ood_threshold=0.5)
SECOND = manifest(2, labels=("2", "1", "x"), ood_threshold=0.25)
ACCEPTED, UNFAMILIAR, BLANK, SEVERAL = Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL
NETWORK_S = 0.010


class Harness:
    """A shadow with a clock, and a session that takes ``NETWORK_S`` and returns ``outputs``."""

    def __init__(self, share: float = 0.1) -> None:
        self.now = 100.0
        self.block = Block(SERVED.labels)
        self.outputs: Outputs | None = None
        self.batches: list[np.ndarray] = []
        session: Any = self
        self.shadow = Shadow(session, SECOND, SERVED, share, Recorder(self.block, SERVED.labels), lambda: self.now)

    def run(self, images: np.ndarray) -> Outputs:
        self.now += NETWORK_S
        self.batches.append(images)
        if self.outputs is not None:
            return self.outputs
        return Outputs(np.full((len(images), 3), 1 / 3, np.float32), np.zeros(len(images), np.float32))

    def offer(self, *answers: tuple[int, Verdict], probability: float = 1.0) -> None:
        """Offer a batch whose answers have these indices of labels and verdicts."""
        index, verdicts = zip(*answers, strict=True)
        flags = [np.array([verdict is kind for verdict in verdicts]) for kind in (BLANK, SEVERAL)]
        images = np.zeros((len(answers), 28, 28, 1), np.uint8)
        prepared = Prepared(images, *flags, np.zeros(len(answers), np.bool_))
        self.shadow.offer(prepared, index, verdicts, probability * np.eye(3, dtype=np.float32)[list(index)])
        images[:] = 255  # a request's memory is reused

    def counts(self, metric: str) -> list[int]:
        """Return the cells of a metric."""
        return self.block.cells[metric][:, 0].astype(int).tolist()


def test_each_kind_of_difference_is_counted() -> None:
    """Labels are compared by name; images that neither version accepts are the same, whatever their labels."""
    harness = Harness()
    harness.offer(
        (2, ACCEPTED), (0, ACCEPTED), (1, ACCEPTED), (1, UNFAMILIAR), (1, UNFAMILIAR), (1, SEVERAL), (0, BLANK)
    )
    # The second version answers 2, 1, 1, 1, 2, 2, x; its threshold is 0.25.
    harness.outputs = Outputs(
        np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 0, 0, 2]], np.array([0.1, 0.1, 0.3, 0.1, 0.3, 0.1, 0.1], np.float32)
    )
    harness.shadow.run(busy=False)
    # same, label, rejected, accepted
    assert harness.counts("digitserve_shadow_images") == [4, 1, 1, 1]
    assert harness.counts("digitserve_shadow_skipped_images") == [0]


def test_differences_of_probabilities_are_those_of_the_same_label() -> None:
    """The largest difference over all labels of both versions is observed, for images that are not blank."""
    harness = Harness()
    harness.offer((1, ACCEPTED), (2, ACCEPTED), (0, BLANK), probability=0.75)
    probabilities = np.array([[0.25, 0.75, 0], [0.5, 0.0, 0.125], [0, 0, 1]], np.float32)
    harness.outputs = Outputs(probabilities, np.zeros(3, np.float32))
    harness.shadow.run(busy=False)
    cells = harness.block.cells["digitserve_shadow_probability_difference"][0]
    # The first has 0.25 for the label 2, which the served version gave 0; the second 0.5 instead of 0.75.
    assert (cells[:-1].sum(), cells[-1]) == (2, 0.25 + 0.25)


def test_one_batch_waits_and_others_are_skipped() -> None:
    """The images of the batch that waits are a copy; after it has run, the next one is kept."""
    harness = Harness()
    assert not harness.shadow.waits
    harness.offer((1, ACCEPTED))
    harness.offer((1, ACCEPTED), (1, ACCEPTED))
    assert harness.shadow.waits
    harness.shadow.run(busy=False)
    assert not harness.shadow.waits
    assert [images.max() for images in harness.batches] == [0]
    assert harness.counts("digitserve_shadow_skipped_images") == [2]
    harness.offer((1, ACCEPTED))
    assert harness.shadow.waits


@pytest.mark.parametrize(("share", "pause_s"), [(0.1, 9 * NETWORK_S), (0.5, NETWORK_S), (1.0, 0.0)])
def test_the_share_of_a_busy_worker_is_limited(share: float, pause_s: float) -> None:
    """While requests are pending, the shadow pauses after each batch so that it uses at most its share; while none are, it runs."""
    harness = Harness(share)
    for _ in range(3):
        harness.offer((1, ACCEPTED))
        harness.shadow.run(busy=True)
        assert not harness.shadow.waits
        harness.offer((1, ACCEPTED))
        harness.now += 0.99 * pause_s
        harness.shadow.run(busy=True)
        assert harness.shadow.waits == (pause_s > 0)
        harness.now += 0.02 * pause_s
        harness.shadow.run(busy=True)
        assert not harness.shadow.waits
        harness.now += 1.01 * pause_s
    harness.offer((1, ACCEPTED))
    harness.shadow.run(busy=False)
    assert not harness.shadow.waits


def test_without_a_share_it_runs_only_while_idle() -> None:
    """With a share of 0 no batch runs while requests are pending."""
    harness = Harness(share=0.0)
    harness.offer((1, ACCEPTED))
    harness.shadow.run(busy=True)
    assert harness.shadow.waits
    harness.shadow.run(busy=False)
    assert not harness.shadow.waits


def test_a_shadow_that_fails_does_not_run_again() -> None:
    """An exception of the second version is logged once and affects nothing else; its images count as skipped."""
    harness = Harness()
    harness.outputs = Outputs(np.zeros((5, 3), np.float32), np.zeros(5, np.float32))
    for _ in range(2):
        harness.offer((1, ACCEPTED))
        harness.shadow.run(busy=False)
    assert len(harness.batches) == 1
    assert harness.counts("digitserve_shadow_skipped_images") == [2]
