"""Training: MNIST's training set and a preset in, a run's folder with a checkpoint out.

The whole training set lies in memory as one tensor; each step gathers its batch, augments it and takes one step of
AdamW, all in one compiled function. What is validated, evaluated and exported is the moving average of the weights at
the last epoch: nothing is chosen by looking, so no set of images can leak into the choice.

Everything runs under the current ``tf.distribute`` strategy, see ``distribute``. Every worker draws the same batches;
each replica takes its share of each. Weights, statistics and averages are the same on all replicas after every step,
so each worker validates on its own, and the chief alone writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from digitserve_training._tensorflow import keras, tf
from digitserve_training.augment.augmentation import augment, mix
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import DivergedError, RunError
from digitserve_training.fit import checkpoint, distribute, teachers
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.pool import NO_LABEL, Pool
from digitserve_training.fit.settings import Settings, preset_of
from digitserve_training.fit.tensorboard import Board
from digitserve_training.fit.weights import AVERAGE, assign
from digitserve_training.model.layers import INPUT_SHAPE
from digitserve_training.model.networks import build
from digitserve_training.model.presets import Recipe

VALIDATION_BATCH_SIZE = 500

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""Keras's name of each precision: weights and optimizer stay float32 in all of them."""


def train(settings: Settings, split: Split, run_dir: Path, *, resume: bool = False) -> Checkpoint:
    """Train under the current ``tf.distribute`` strategy, with a checkpoint after each epoch.

    Args:
        settings: what to do.
        split: the images; only ``split.training`` moves the weights.
        run_dir: where the checkpoint, ``metrics.jsonl`` and ``tensorboard`` go, from the chief alone; with several
            workers, a folder that all of them see.
        resume: go on from the checkpoint in ``run_dir``.

    Returns:
        The last checkpoint.

    Raises:
        RunError: the folder holds a run and ``resume`` is false, or holds none, or another one, and it is true.
        DivergedError: the loss is not finite.
        WorkerError: the workers do not do the same, or one of them is gone; the last checkpoint is good.
        KeyboardInterrupt: as raised; the last checkpoint is good.
    """
    # Read before the workers first wait for each other, and so before the chief writes anything.
    state = _stored(settings, run_dir, resume=resume)
    with distribute.telling_of_lost_workers():
        training = Training(settings, split)
        if state is None:
            state = Checkpoint(settings, 0, (), training.arrays())
            # Written before the first step, so that even a run stopped in its first epoch can be resumed.
            _save(run_dir, state)
        else:
            training.restore(state)
        distribute.require_same(f"epoch {state.epoch} of {settings}")
        return _run_epochs(training, state, run_dir)


class Training:
    """A training under way: the network, its average and its optimizer; lives for one call of ``train``.

    Attributes:
        settings: what it was built from.
    """

    def __init__(self, settings: Settings, split: Split) -> None:
        """Build everything from the seed, as it is before the first epoch."""
        keras.utils.set_random_seed(settings.seed)
        tf.config.experimental.enable_op_determinism()
        self.settings = settings
        self._preset = preset_of(settings)
        self._validation = split.validation
        self._pool = Pool(split.training, self._preset.recipe, settings.seed)
        self._strategy = tf.distribute.get_strategy()
        self._images, self._labels = tf.constant(self._pool.images), tf.constant(self._pool.labels)
        layers = self._preset.network(len(settings.labels))
        with _policy(POLICIES[settings.precision]):
            self._network = build(layers)
            self._teachers = teachers.load(settings)
        self._average = build(layers)
        self._average.set_weights(self._network.get_weights())
        self._optimizer = _optimizer(self._preset.recipe, settings, self._pool.steps_per_epoch)
        self._optimizer.build(self._network.trainable_variables)
        self._spread_dropout()
        self._compiled_step = tf.function(
            self._step, input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int32)]
        )
        self._compiled_logits = tf.function(
            lambda images: self._average(images, training=False),
            input_signature=[tf.TensorSpec([None, *INPUT_SHAPE], tf.uint8)],
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every variable by name, as a checkpoint holds them."""
        return {
            f"{owner}/{number}": variable.numpy()
            for owner, variables in self._variables().items()
            for number, variable in enumerate(variables)
        }

    def restore(self, state: Checkpoint) -> None:
        """Go back to where a checkpoint was taken.

        Raises:
            RunError: its arrays are not this network's.
        """
        for owner, variables in self._variables().items():
            assign(variables, state.arrays, owner)
        self._spread_dropout()

    def examples(self) -> NDArray[np.uint8]:
        """Return training images as the first step sees them: uint8[N,28,28,1], N at most a batch."""
        indices = next(self._pool.batches(1))
        return augment(tf.gather(self._images, indices), self._seed(0, 0), self._preset.augmentation).numpy()  # type: ignore[no-any-return]

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over the training images, then validate.

        Args:
            epoch: counted from 1; decides the order of the images and their augmentation.

        Raises:
            DivergedError: the loss of a step is not finite.
        """
        started = monotonic()
        batches = list(self._pool.batches(epoch))
        losses = []
        hidden = None if distribute.is_chief() else True
        with tqdm(
            batches, desc=f"epoch {epoch}/{self.settings.epochs}", unit="step", leave=False, disable=hidden
        ) as bar:
            for number, indices in enumerate(bar, start=(epoch - 1) * len(batches)):
                losses.append(float(self._compiled_step(indices, number)))
                _require_finite(losses[-1], epoch)
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", refresh=False)
        images_per_s = sum(map(len, batches)) / (monotonic() - started)
        accuracy, loss = self._validate()
        # The last step's own loss was finite, and may still have ruined the weights.
        _require_finite(loss, epoch)
        metrics = {
            "epoch": epoch,
            "training_loss": float(np.mean(losses)),
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": float(self._optimizer.learning_rate),
            "images_per_s": round(images_per_s, 1),
            "duration_s": round(monotonic() - started, 1),
        }
        if distribute.is_chief():
            tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics

    def _variables(self) -> dict[str, list[Any]]:
        return {
            "network": self._network.variables,
            AVERAGE: self._average.weights,
            "optimizer": self._optimizer.variables,
        }

    def _step(self, indices: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Take one step: from int64[N] and the step's number to the mean loss of the batch."""
        # Gathered once a worker: only the batch travels to the other devices, never the whole training set.
        images, labels = tf.gather(self._images, indices), tf.gather(self._labels, indices)
        losses = self._strategy.run(self._replica_step, (images, labels, number))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Take one replica's part in a step: its share of the mean loss, and the step that all have in common."""
        replica = tf.distribute.get_replica_context()
        places, counts = distribute.share(tf.shape(labels)[0])
        seed = self._seed(number, replica.replica_id_in_sync_group)
        recipe = self._preset.recipe
        augmented = augment(tf.gather(images, places), seed, self._preset.augmentation)
        targets = targets_of(tf.gather(labels, places), len(self.settings.labels), recipe)
        if self._teachers:
            augmented, mixed = mix(augmented, seed, recipe.mixed)
            taught = teachers.answer(self._teachers, augmented, recipe)
            share = tf.where(mixed, 1.0, recipe.teaching)[:, tf.newaxis]
            targets += share * (taught - targets)
        with tf.GradientTape() as tape:
            losses = losses_of(self._network(augmented, training=True), targets, recipe)
            loss = counts * tf.nn.compute_average_loss(losses, global_batch_size=tf.shape(labels)[0])
            scaled = self._optimizer.scale_loss(loss)
        variables = self._network.trainable_variables
        gradients = tape.gradient(scaled, variables)
        if self.settings.precision == "float16":
            gradients = distribute.agree_on_overflow(gradients)
        # Summed over replicas by the optimizer.
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._share_statistics()
        self._move_average(number)
        return loss

    def _seed(self, number: tf.Tensor | int, replica: tf.Tensor | int) -> tf.Tensor:
        """Return the seed of a replica's augmentation in a step, no two alike: int32[2]."""
        num_steps = self.settings.epochs * self._pool.steps_per_epoch
        return tf.stack([self.settings.seed, number + num_steps * replica])

    def _share_statistics(self) -> None:
        """Give every replica the mean of all replicas' batch normalisation statistics; Keras 3 leaves each its own."""
        statistics = self._network.non_trainable_weights
        if statistics:
            replica = tf.distribute.get_replica_context()
            means = replica.all_reduce(
                tf.distribute.ReduceOp.MEAN, [tf.identity(variable.value) for variable in statistics]
            )
            for variable, mean in zip(statistics, means, strict=True):
                variable.assign(mean)

    def _spread_dropout(self) -> None:
        """Give each replica seeds of its own; checkpoints hold the first replica's, and Keras starts all with those."""
        states = [
            layer.seed_generator.state
            for layer in self._network.layers
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0
        ]

        def spread() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                state.assign(state.value + tf.cast(tf.stack([replica, 0]), state.dtype))

        tf.function(lambda: self._strategy.run(spread))()

    def _move_average(self, number: tf.Tensor) -> None:
        """Move the average towards the weights, faster at first, when the average is mostly the initial weights."""
        done = tf.cast(number, tf.float32)
        momentum = tf.minimum(self._preset.recipe.averaging, (1 + done) / (10 + done))
        for average, current in zip(self._average.weights, self._network.weights, strict=True):
            average.assign(momentum * average + (1 - momentum) * current)

    def _validate(self) -> tuple[float, float]:
        """Return accuracy and mean cross-entropy of the averaged network on the validation images."""
        logits = np.concatenate([self._compiled_logits(batch.images) for batch in _in_batches(self._validation)])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self._validation.labels, logits)
        return float(np.mean(logits.argmax(axis=1) == self._validation.labels)), float(np.mean(losses))


def _stored(settings: Settings, run_dir: Path, *, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from, None for a new run."""
    if not resume:
        if checkpoint.exists(run_dir):
            raise RunError(f"{run_dir} holds a run already; go on with --resume, or choose another --run-dir")
        return None
    state = checkpoint.load(run_dir)
    if state.settings != settings:
        raise RunError(f"the run in {run_dir} was started as {state.settings}; it cannot go on as {settings}")
    return state


def _run_epochs(training: Training, state: Checkpoint, run_dir: Path) -> Checkpoint:
    settings = training.settings
    if state.finished:
        return state
    with Board(run_dir, state.history, training.examples()) as board:
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            metrics = training.run_epoch(epoch)
            state = Checkpoint(settings, epoch, (*state.history, metrics), training.arrays())
            _save(run_dir, state)
            board.write(metrics)
    return state


def _save(run_dir: Path, state: Checkpoint) -> None:
    if distribute.is_chief():
        checkpoint.save(run_dir, state)


def targets_of(labels: tf.Tensor, num_labels: int, recipe: Recipe) -> tf.Tensor:
    """Return how probable each outcome is to be said: float32[N,outcomes].

    With outliers there is one more outcome than labels, "none of these".
    """
    num_outcomes = num_labels + 1 if recipe.outliers else num_labels
    labels = tf.where(labels == NO_LABEL, tf.constant(num_labels, labels.dtype), labels)
    spread = recipe.label_smoothing / num_outcomes
    return tf.one_hot(labels, num_outcomes, 1 - recipe.label_smoothing + spread, spread)


def losses_of(logits: tf.Tensor, targets: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Return the cross-entropy of each image in nats: float32[N].

    "None of these" has the logit 0 by definition: then -logsumexp(logits), the graph's ``ood_score``, is the logarithm of
    the odds of an image being no digit, while softmax(logits) is what each label is worth given that it is one.
    """
    return tf.nn.softmax_cross_entropy_with_logits(targets, teachers.outcomes(logits, recipe))


def _optimizer(recipe: Recipe, settings: Settings, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    warmup_steps = int(min(recipe.warmup_epochs, settings.epochs / 2) * steps_per_epoch)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=settings.epochs * steps_per_epoch - warmup_steps,
        warmup_target=settings.learning_rate,
        warmup_steps=warmup_steps,
        alpha=0.0 if recipe.schedule == "cosine" else 1.0,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Gradients below 6e-8 are zero in float16; bfloat16 has float32's exponents.
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "float16" else optimizer


@contextmanager
def _policy(name: str) -> Iterator[None]:
    """Build layers under one of Keras's policies."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _in_batches(labelled: Labelled) -> Iterator[Labelled]:
    for start in range(0, len(labelled), VALIDATION_BATCH_SIZE):
        yield labelled.take(np.arange(start, min(start + VALIDATION_BATCH_SIZE, len(labelled))))


def _require_finite(loss: float, epoch: int) -> None:
    if not np.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in epoch {epoch}; the checkpoint of epoch {epoch - 1} is kept; "
            "train again in another folder with a lower --learning-rate"
        )
