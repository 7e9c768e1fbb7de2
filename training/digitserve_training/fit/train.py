"""The training loop: settings and a split training set in, a run's folder with a checkpoint out.

Called by ``cli`` for a run and by ``tune`` for each trial. The training set is one tensor in memory. Each step
gathers its batch, augments it and takes one step of AdamW, all in one compiled function. The exponential moving
average of the weights after the last epoch is validated, evaluated and exported. No epoch is selected by its
validation result, so no images can leak into a selection.

Everything runs under the current ``tf.distribute`` strategy, see ``distribute``. Every worker draws the same batches,
and each replica takes its share of each batch. Weights, statistics and averages are equal on all replicas after every
step. So each worker validates independently, and only the chief writes files.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve.progress import Progress
from digitserve_training._tensorflow import keras, tf
from digitserve_training.augment.augmentation import augment
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import DivergedError, RunError
from digitserve_training.fit import checkpoint, distribute, teachers
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.pool import CERTAIN_OUTLIER, Pool
from digitserve_training.fit.settings import Settings, differences
from digitserve_training.fit.tensorboard import TensorBoardWriter
from digitserve_training.fit.weights import AVERAGE, assign_variables
from digitserve_training.model.layers import INPUT_SHAPE
from digitserve_training.model.networks import build
from digitserve_training.model.presets import Recipe

VALIDATION_BATCH_SIZE = 500

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""Keras's dtype policy of each precision; weights and optimizer stay float32 in all of them."""


def train(settings: Settings, split: Split, run_dir: Path, *, resume: bool = False) -> Checkpoint:
    """Train under the current ``tf.distribute`` strategy, with a checkpoint after each epoch.

    Args:
        settings: of the run.
        split: the images; ``split.held_out`` does not change the weights.
        run_dir: folder for the checkpoint, ``metrics.jsonl`` and ``tensorboard``, which only the chief writes; several
            workers need a folder that all of them can read.
        resume: continue from the checkpoint in ``run_dir``.

    Returns:
        The last checkpoint.

    Raises:
        RunError: a new run, but the folder holds one; or a resumed run, but the folder holds none or one with other
            settings.
        DivergedError: the loss is not finite.
        WorkerError: the workers have different settings, or one of them is lost; the last checkpoint is kept.
        KeyboardInterrupt: passed on; the last checkpoint is kept.
    """
    # Loaded before the workers first synchronise, and so before the chief writes anything.
    state = _load_state(settings, run_dir, resume=resume)
    with distribute.convert_worker_errors():
        training = Training(settings, split)
        if state is None:
            state = Checkpoint(settings, 0, (), training.arrays())
            # Saved before the first step, so that a run stopped in its first epoch can be resumed too.
            _save(run_dir, state)
        else:
            training.restore(state)
        distribute.require_same_settings(f"epoch {state.epoch} of {settings}")
        return _run_epochs(training, state, run_dir)


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of an epoch as one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _ignore(_share: float, _describe: Callable[[], str]) -> None:
    """Show no progress."""


class Training:
    """One training in memory: the network, its average and its optimizer; lives for one call of ``train`` or one trial.

    Attributes:
        settings: that it was built from.
    """

    def __init__(self, settings: Settings, split: Split) -> None:
        """Build everything from the seed, in its state before the first epoch."""
        keras.utils.set_random_seed(settings.seed)
        tf.config.experimental.enable_op_determinism()
        self.settings = settings
        self._recipe = settings.recipe
        self._held_out, self._num_validation = split.held_out, len(split.validation)
        self._pool = Pool(split, self._recipe, settings.seed)
        self._strategy = tf.distribute.get_strategy()
        self._images, self._labels = tf.constant(self._pool.images), tf.constant(self._pool.labels)
        with _dtype_policy(POLICIES[settings.precision]):
            self._network = build(settings.layers)
            self._teachers = teachers.load_networks(settings)
        self._average = build(settings.layers)
        self._average.set_weights(self._network.get_weights())
        self._optimizer = _optimizer(settings, self._pool.steps_per_epoch)
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
        """Return every variable by its name in checkpoints."""
        return {
            f"{prefix}/{number}": variable.numpy()
            for prefix, variables in self._variables().items()
            for number, variable in enumerate(variables)
        }

    def restore(self, state: Checkpoint) -> None:
        """Restore the state of a checkpoint.

        Raises:
            RunError: its arrays do not fit this network.
        """
        for prefix, variables in self._variables().items():
            assign_variables(variables, state.arrays, prefix)
        self._spread_dropout()

    def examples(self) -> NDArray[np.uint8]:
        """Return the augmented training images of the first step: uint8[N,28,28,1], N at most the batch size."""
        indices = next(self._pool.batches(1))
        images: NDArray[np.uint8] = augment(
            tf.gather(self._images, indices), self._seed(0, 0), self.settings.preset.augmentation
        ).numpy()
        return images

    def run_epoch(self, epoch: int, on_step: Callable[[float, Callable[[], str]], None] = _ignore) -> dict[str, float]:
        """Train on all training images once, then validate.

        Args:
            epoch: counted from 1; determines the order of the images and their augmentation.
            on_step: called after each step with the share of the epoch that is done, and a function that describes it.

        Returns:
            The epoch's metrics.

        Raises:
            DivergedError: the loss of a step is not finite.
        """
        started = monotonic()
        # Only in the second half of the run: from the first epoch on, they cost accuracy on clean digits.
        batches = list(self._pool.batches(epoch, certain_outliers=2 * epoch > self.settings.epochs))
        losses = []
        for number, indices in enumerate(batches, start=1):
            losses.append(float(self._compiled_step(indices, (epoch - 1) * len(batches) + number - 1)))
            _require_finite(losses[-1], epoch)
            on_step(
                number / len(batches),
                lambda: f"epoch {epoch}/{self.settings.epochs}, loss {np.mean(losses[-50:]):.4f}",
            )
        images_per_s = sum(map(len, batches)) / (monotonic() - started)
        validation = self._validate()
        # A last step with a finite loss may still have made the weights unusable.
        _require_finite(validation["validation_loss"], epoch)
        return {
            "epoch": epoch,
            "training_loss": float(np.mean(losses)),
            **validation,
            "learning_rate": float(self._optimizer.learning_rate),
            "images_per_s": round(images_per_s, 1),
            "duration_s": round(monotonic() - started, 1),
        }

    def _variables(self) -> dict[str, list[Any]]:
        return {
            "network": self._network.variables,
            AVERAGE: self._average.weights,
            "optimizer": self._optimizer.variables,
        }

    def _step(self, indices: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Take one step on the images at ``indices`` (int64[N]) and return the mean loss of the batch."""
        # Gathered once per worker, so that other devices receive the batch and not the whole training set.
        images, labels = tf.gather(self._images, indices), tf.gather(self._labels, indices)
        losses = self._strategy.run(self._replica_step, (images, labels, number))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Compute one replica's share of the mean loss, and take the step with the gradients of all replicas."""
        replica = tf.distribute.get_replica_context()
        indices, weight = distribute.replica_share(tf.shape(labels)[0])
        seed = self._seed(number, replica.replica_id_in_sync_group)
        recipe = self._recipe
        augmented = augment(tf.gather(images, indices), seed, self.settings.preset.augmentation)
        share = tf.gather(labels, indices)
        targets = hard_targets(share, len(self.settings.labels), recipe)
        if self._teachers:
            certain = share == CERTAIN_OUTLIER
            augmented, targets = teachers.distil(self._teachers, augmented, targets, certain, seed, recipe)
        with tf.GradientTape() as tape:
            losses = cross_entropy(self._network(augmented, training=True), targets, recipe)
            loss = weight * tf.nn.compute_average_loss(losses, global_batch_size=tf.shape(labels)[0])
            scaled = self._optimizer.scale_loss(loss)
        variables = self._network.trainable_variables
        gradients = tape.gradient(scaled, variables)
        if self.settings.precision == "float16":
            gradients = distribute.share_overflow(gradients)
        # The optimizer sums the gradients over replicas.
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._average_statistics()
        self._update_average(number)
        return loss

    def _seed(self, number: tf.Tensor | int, replica: tf.Tensor | int) -> tf.Tensor:
        """Return the seed of a replica's augmentation in a step, unique in the run: int32[2]."""
        num_steps = self.settings.epochs * self._pool.steps_per_epoch
        return tf.stack([self.settings.seed, number + num_steps * replica])

    def _average_statistics(self) -> None:
        """Set batch normalisation statistics to their mean over replicas; Keras 3 keeps separate ones per replica."""
        statistics = self._network.non_trainable_weights
        if statistics:
            replica = tf.distribute.get_replica_context()
            means = replica.all_reduce(
                tf.distribute.ReduceOp.MEAN, [tf.identity(variable.value) for variable in statistics]
            )
            for variable, mean in zip(statistics, means, strict=True):
                variable.assign(mean)

    def _spread_dropout(self) -> None:
        """Give each replica its own dropout seeds; Keras and checkpoints give all replicas the first one's."""
        states = [
            layer.seed_generator.state
            for layer in self._network.layers
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0
        ]
        if not states:
            return

        def spread() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                state.assign(state.value + tf.cast(tf.stack([replica, 0]), state.dtype))

        tf.function(lambda: self._strategy.run(spread))()

    def _update_average(self, number: tf.Tensor) -> None:
        """Update the moving average, faster in the first steps, when it mostly holds the initial weights."""
        steps = tf.cast(number, tf.float32)
        momentum = tf.minimum(self._recipe.ema_momentum, (1 + steps) / (10 + steps))
        for average, current in zip(self._average.weights, self._network.weights, strict=True):
            average.assign(momentum * average + (1 - momentum) * current)

    def _validate(self) -> dict[str, float]:
        """Return mean cross-entropy and accuracy of the averaged network on the held-out images.

        If pen digits are among them, also the accuracy on these and on the others.
        """
        logits = np.concatenate([self._compiled_logits(batch.images) for batch in _in_batches(self._held_out)])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self._held_out.labels, logits)
        right = logits.argmax(axis=1) == self._held_out.labels
        measured = {"validation_loss": float(np.mean(losses)), "validation_accuracy": float(np.mean(right))}
        dataset, pen = np.split(right, [self._num_validation])
        if len(pen):
            measured |= {"dataset_accuracy": float(np.mean(dataset)), "pen_accuracy": float(np.mean(pen))}
        return measured


def _load_state(settings: Settings, run_dir: Path, *, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to continue from, None for a new run."""
    if not resume:
        if checkpoint.exists(run_dir):
            raise RunError(f"{run_dir} already holds a run; continue it with --resume, or choose another --run-dir")
        return None
    state = checkpoint.load(run_dir)
    changes = differences(state.settings, settings)
    if changes:
        raise RunError(f"the run in {run_dir} can only be resumed with its own settings, but {'; '.join(changes)}")
    return state


def _run_epochs(training: Training, state: Checkpoint, run_dir: Path) -> Checkpoint:
    settings = training.settings
    if state.finished:
        return state
    is_chief = distribute.is_chief()
    with TensorBoardWriter(run_dir, state.history, training.examples()) as writer, Progress(shown=is_chief) as progress:
        for epoch in range(state.epoch + 1, settings.epochs + 1):

            def on_step(share: float, describe: Callable[[], str], done: int = epoch - 1) -> None:
                progress.update(done + share, settings.epochs, describe)

            metrics = training.run_epoch(epoch, on_step)
            if is_chief:
                progress.print(describe_metrics(metrics))
            state = Checkpoint(settings, epoch, (*state.history, metrics), training.arrays())
            _save(run_dir, state)
            writer.write(metrics)
    return state


def _save(run_dir: Path, state: Checkpoint) -> None:
    if distribute.is_chief():
        checkpoint.save(run_dir, state)


def hard_targets(labels: tf.Tensor, num_labels: int, recipe: Recipe) -> tf.Tensor:
    """Return one-hot targets with the recipe's label smoothing: float32[N,outcomes].

    The outcomes are the labels and, if the recipe has outliers, "not a digit", the target of negative labels.
    """
    num_outcomes = num_labels + 1 if recipe.outliers else num_labels
    labels = tf.where(labels < 0, tf.constant(num_labels, labels.dtype), labels)
    spread = recipe.label_smoothing / num_outcomes
    return tf.one_hot(labels, num_outcomes, 1 - recipe.label_smoothing + spread, spread)


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Return the cross-entropy of each image in nats: float32[N].

    "Not a digit" has the logit 0 by definition. Then -logsumexp(logits), the graph's ``ood_score``, is the logarithm of
    the odds that an image is not a digit, and softmax(logits) are the probabilities of the labels if it is a digit.
    """
    return tf.nn.softmax_cross_entropy_with_logits(targets, teachers.outcome_logits(logits, recipe))


def _optimizer(settings: Settings, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    recipe = settings.recipe
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
    # float16 rounds gradients below 6e-8 to zero; bfloat16 has the range of float32.
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "float16" else optimizer


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Set Keras's dtype policy for the layers that are built in the block."""
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
            f"the loss became {loss} in epoch {epoch}; the checkpoint of epoch {epoch - 1} is kept: "
            "train again in another folder with a lower --learning-rate"
        )
