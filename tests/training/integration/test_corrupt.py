"""Corruptions of training images, and the loss with the additional outcome "no digit"."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve_training._tensorflow import tf
from digitserve_training.augment.corrupt import CORRUPTIONS, Corruption, corrupt
from digitserve_training.fit.pool import CERTAIN_OUTLIER, NO_LABEL
from digitserve_training.fit.train import cross_entropy, hard_targets
from digitserve_training.model.presets import PRESETS, Recipe

CLASSIC = PRESETS["lenet5"].recipe
WITH_OUTLIERS = dataclasses.replace(CLASSIC, outliers=0.1)
SEED = (3, 4)


def strokes(num_images: int = 16) -> NDArray[np.float32]:
    """Return images of a plus sign: float32[N,28,28,1]."""
    images = np.zeros((num_images, 28, 28, 1), np.float32)
    images[:, 6:22, 12:16] = 1
    images[:, 12:16, 6:22] = 0.8
    return images


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.__name__.strip("_"))
@pytest.mark.parametrize("num_images", [0, 1, 16])
def test_each_corruption_changes_and_keeps_shape(corruption: Corruption, num_images: int) -> None:
    """Each kind changes images, returns finite pixels of the same shape, and accepts an empty batch."""
    images = strokes(num_images)

    changed = corruption(tf.constant(images), tf.constant(SEED)).numpy()

    assert (changed.shape, changed.dtype) == (images.shape, np.dtype(np.float32))
    assert np.all(np.isfinite(changed))
    assert num_images == 0 or not np.allclose(changed, images)


def test_share_of_corrupted_images() -> None:
    """The first images, in the given share, are corrupted; the rest is unchanged."""
    images = strokes(260)
    changed = np.mean(
        [
            (corrupt(tf.constant(images), tf.constant([5, seed]), 0.5).numpy() != images).any(axis=(1, 2, 3))
            for seed in range(8)
        ],
        axis=0,
    )

    assert np.all(changed[135:] == 0)
    assert changed[:125].mean() > 0.9
    assert np.array_equal(corrupt(tf.constant(images), tf.constant(SEED), 0.0).numpy(), images)


def test_compiled_corruption_accepts_any_batch_size() -> None:
    """Compiled, batches of any size keep their size, even if it is smaller than the number of kinds."""
    compiled = tf.function(lambda images: corrupt(images, tf.constant(SEED), 0.35))

    for num_images in (1, 5, 144):
        assert compiled(tf.constant(strokes(num_images))).shape == (num_images, 28, 28, 1)


def test_plain_loss_is_cross_entropy() -> None:
    """Without outliers the loss is the ordinary softmax cross-entropy."""
    logits, labels = tf.constant([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), tf.constant([1, 2], tf.int64)

    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()

    assert cross_entropy(logits, hard_targets(labels, 3, CLASSIC), CLASSIC).numpy() == pytest.approx(expected)


def test_outliers_add_the_outcome_no_digit() -> None:
    """With outliers, exp(-logsumexp(logits)) is the odds of "no digit"; the loss covers this outcome and the label."""
    logits = tf.constant([[1.0, 2.0, 0.0], [0.5, -1.0, 0.2], [0.5, -1.0, 0.2]])
    labels = tf.constant([1, NO_LABEL, CERTAIN_OUTLIER], tf.int64)
    odds = np.exp(logits.numpy()).sum(axis=1)
    is_digit = odds / (1 + odds)
    of_label = np.exp(2.0) / odds[0]

    expected = [-np.log(is_digit[0]) - np.log(of_label), *-np.log(1 - is_digit[1:])]

    losses = cross_entropy(logits, hard_targets(labels, 3, WITH_OUTLIERS), WITH_OUTLIERS)

    assert losses.numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recipe", [CLASSIC, WITH_OUTLIERS], ids=["classic", "outliers"])
def test_smoothed_targets_sum_to_one(recipe: Recipe) -> None:
    """With label smoothing, equal logits still have a loss of log(number of outcomes)."""
    smoothed = dataclasses.replace(recipe, label_smoothing=0.1)
    num_outcomes = 4 if recipe.outliers else 3

    targets = hard_targets(tf.constant([0, 2], tf.int64), 3, smoothed)
    losses = cross_entropy(tf.zeros([2, 3]), targets, smoothed).numpy()

    assert losses == pytest.approx(np.log(num_outcomes), rel=1e-5)
