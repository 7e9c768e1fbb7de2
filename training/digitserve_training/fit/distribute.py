"""One device or many: which ``tf.distribute`` strategy a training runs under, and what its replicas agree on.

    default strategy                one device
    MirroredStrategy                all GPUs of this machine, where there are several (CUDA_VISIBLE_DEVICES chooses)
    MultiWorkerMirroredStrategy     the workers that TF_CONFIG describes, each started with the same command

Called by ``cli`` and ``train``. All but ``strategy`` speak of the strategy in whose scope they are called; under the
default one each of them is trivially true.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from digitserve_training._tensorflow import tf
from digitserve_training.errors import WorkerError


def strategy() -> tf.distribute.Strategy:
    """Choose by what there is; before TensorFlow's first operation, and only once in a process.

    Raises:
        WorkerError: TF_CONFIG describes no cluster with this worker in it.
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
    """Whether this process is the one that writes and tells."""
    return bool(tf.distribute.get_strategy().extended.should_checkpoint)


def share(num_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Part a batch among replicas; in a replica's context.

    A batch smaller than the number of replicas leaves some without images. These take one that is another's, because
    batch normalisation has no statistics of nothing, and it does not count.

    Args:
        num_images: int32[], of the whole batch, at least 1.

    Returns:
        Places in the batch, int32[M], M at least 1, and float32[]: 1, or 0 where they do not count.
    """
    replica = tf.distribute.get_replica_context()
    number, total = tf.cast(replica.replica_id_in_sync_group, tf.int32), replica.num_replicas_in_sync
    start, end = number * num_images // total, (number + 1) * num_images // total
    return tf.range(start, tf.maximum(end, start + 1)), tf.cast(end > start, tf.float32)


def agree_on_overflow(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Make gradients NaN where those of any replica are not finite; in a replica's context.

    Keras's LossScaleOptimizer decides on each replica's own gradients, before they are summed, whether to skip a step:
    if the replicas do not decide alike, the weights become NaN.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    replica = tf.distribute.get_replica_context()
    overflow = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(finite, 0.0, math.nan))
    return [gradient + overflow for gradient in gradients]


def require_same(described: str) -> None:
    """Check that every worker is about to do the same.

    Args:
        described: what this one does.

    Raises:
        WorkerError: another one does something else; raised on every worker.
    """
    current = tf.distribute.get_strategy()
    digest = int.from_bytes(hashlib.sha256(described.encode()).digest()[:4]) // 2

    # Inside one compiled function, because collectives block: run one by one, replicas would wait for each other.
    total = tf.function(
        lambda: current.reduce(
            tf.distribute.ReduceOp.SUM, current.run(lambda: tf.constant(digest, tf.int64)), axis=None
        )
    )
    if int(total()) != digest * current.num_replicas_in_sync:
        raise WorkerError(
            f"the workers do not do the same; this one is at {described}: start the same command with the same images "
            "on every worker, with a --run-dir that all of them see"
        )


@contextmanager
def telling_of_lost_workers() -> Iterator[None]:
    """Turn what TensorFlow raises when another worker is gone into a message.

    Raises:
        WorkerError: another worker ended, or cannot be reached.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise WorkerError(
            f"another worker is gone ({type(error).__name__}); the last checkpoint is kept: "
            "start every worker again with --resume"
        ) from None
