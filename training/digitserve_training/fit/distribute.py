"""Distributed training: the ``tf.distribute`` strategy, and what replicas and workers must agree on.

    default strategy                one device
    MirroredStrategy                all GPUs of this machine, if there are several (limited by CUDA_VISIBLE_DEVICES)
    MultiWorkerMirroredStrategy     the workers that TF_CONFIG describes, each started with the same command

``cli`` chooses the strategy. ``train`` calls the other functions in the strategy's scope; with one device they change
nothing.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from digitserve_training._tensorflow import tf
from digitserve_training.errors import WorkerError


def choose_strategy() -> tf.distribute.Strategy:
    """Choose the strategy by TF_CONFIG and the available GPUs.

    Call it before TensorFlow's first operation, and once per process.

    Raises:
        WorkerError: TF_CONFIG is invalid, or its cluster does not contain this worker.
    """
    try:
        cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if cluster.cluster_spec().as_dict():
            return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WorkerError(
            f"TF_CONFIG cannot be used: {error}; expected "
            '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}'
        ) from None
    return (
        tf.distribute.MirroredStrategy()
        if len(tf.config.list_logical_devices("GPU")) > 1
        else tf.distribute.get_strategy()
    )


def is_chief() -> bool:
    """Whether this process writes files and shows progress; with one worker it does."""
    return bool(tf.distribute.get_strategy().extended.should_checkpoint)


def replica_share(num_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the current replica's share of a batch; call it in a replica's context.

    If a batch has fewer images than there are replicas, some replicas have none. Each of these takes an image of
    another replica with weight 0, because batch normalisation cannot compute statistics of an empty batch.

    Args:
        num_images: int32[], of the whole batch, at least 1.

    Returns:
        Indices into the batch, int32[M], M at least 1; and their weight in the loss, float32[], 1 or 0.
    """
    replica = tf.distribute.get_replica_context()
    number, total = tf.cast(replica.replica_id_in_sync_group, tf.int32), replica.num_replicas_in_sync
    start, end = number * num_images // total, (number + 1) * num_images // total
    return tf.range(start, tf.maximum(end, start + 1)), tf.cast(end > start, tf.float32)


def share_overflow(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Make all gradients NaN if those of any replica are not finite; call it in a replica's context.

    Keras's LossScaleOptimizer decides whether to skip a step from each replica's own gradients, before they are summed.
    If the replicas decided differently, the weights would become NaN.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    replica = tf.distribute.get_replica_context()
    overflow = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(finite, 0.0, math.nan))
    return [gradient + overflow for gradient in gradients]


def require_same_settings(description: str) -> None:
    """Check that all workers have the same settings.

    Args:
        description: of this worker's settings and epoch; compared as text.

    Raises:
        WorkerError: the descriptions differ; raised on every worker.
    """
    current = tf.distribute.get_strategy()
    digest = int.from_bytes(hashlib.sha256(description.encode()).digest()[:4]) // 2

    # One compiled function, because collectives block: if replicas ran one after the other, the first would wait
    # forever.
    total = tf.function(
        lambda: current.reduce(
            tf.distribute.ReduceOp.SUM, current.run(lambda: tf.constant(digest, tf.int64)), axis=None
        )
    )
    if int(total()) != digest * current.num_replicas_in_sync:
        raise WorkerError(
            f"the workers have different settings; this one is at {description}: start the same command with the same "
            "images on every worker, with a --run-dir that all of them can read"
        )


@contextmanager
def convert_worker_errors() -> Iterator[None]:
    """Raise TensorFlow's errors about a lost worker as ``WorkerError``.

    Raises:
        WorkerError: another worker ended or cannot be reached.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise WorkerError(
            f"another worker was lost ({type(error).__name__}); the last checkpoint is kept: "
            "start every worker again with --resume"
        ) from None
