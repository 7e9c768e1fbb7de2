"""The images that networks are evaluated on: which sets there are, and what an evaluation of them contains."""

from dataclasses import replace

import numpy as np
import pytest

from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate import evaluation_sets
from digitserve_training.evaluate.corruption_suite import CORRUPTIONS
from digitserve_training.evaluate.formatting import group_thousands, percent
from digitserve_training.synth.digits import synthetic_digits
from digitserve_training.synth.non_digits import EVALUATION_KINDS


@pytest.fixture
def test_images(monkeypatch: pytest.MonkeyPatch) -> Labelled:
    """Return 20 synthetic digits as test images, and draw only three non-digits of each kind."""
    monkeypatch.setattr(evaluation_sets, "NUM_NON_DIGITS", 3)
    return Labelled(*synthetic_digits(20, seed=2))


def test_sets_for_digits(test_images: Labelled) -> None:
    """For digits there is a set per corruption, sets of scanned digits, and images of each kind of non-digit."""
    sets = evaluation_sets.build(test_images, digits=True)

    corrupted = [one for one in sets.labelled if one.corruption]
    assert [one.name for one in corrupted] == [corruption.name for corruption in CORRUPTIONS]
    assert all(np.array_equal(one.labelled.labels, test_images.labels) for one in corrupted)
    scanned = {one.name: len(one.labelled) for one in sets.labelled if not one.corruption}
    assert scanned == {
        "test images as simulated scans": 20,
        "load_digits, light on dark": 1_797,
        "load_digits, dark on light": 1_797,
    }
    assert all(one.labelled.images.shape == (len(one.labelled), 28, 28, 1) for one in sets.labelled)
    assert {name: images.shape for name, images in sets.non_digits.items()} == dict.fromkeys(
        EVALUATION_KINDS, (3, 28, 28, 1)
    )
    assert 0 <= sets.mistaken_verdicts <= 0.1


def test_sets_for_other_datasets(test_images: Labelled) -> None:
    """For a dataset without digits there are only corruptions, and they keep the dataset's names of labels."""
    letters = replace(test_images, names=tuple("ABCDEFGHIJ"))

    sets = evaluation_sets.build(letters, digits=False)

    assert len(sets.labelled) == len(CORRUPTIONS)
    assert all(one.labelled.names == letters.names for one in sets.labelled)
    assert not sets.non_digits


def test_formatting() -> None:
    """Percentages have a space before the sign and fixed decimals; thousands are separated by the given character."""
    assert (percent(0.9965), percent(0.00042, decimals=3), percent(1)) == ("99.65 %", "0.042 %", "100.00 %")
    assert (group_thousands(999), group_thousands(1_234_567), group_thousands(10_000, " ")) == (
        "999",
        "1,234,567",
        "10 000",
    )
