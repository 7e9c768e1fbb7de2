"""Weights between checkpoints and networks: a trained network out of its checkpoint, and which network it is.

Used by ``train``, ``teachers`` and ``candidate``.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve_training._tensorflow import keras
from digitserve_training.errors import RunError
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import preset_of
from digitserve_training.model.networks import build

AVERAGE = "average"
"""Owner of the averaged weights among a checkpoint's arrays: what is evaluated, exported, and learned from."""


def restore(state: Checkpoint) -> keras.Model:
    """Rebuild the network that a checkpoint holds, with its averaged weights.

    Returns:
        A model from uint8[N,28,28,1] to logits.

    Raises:
        RunError: the checkpoint holds no preset, or other arrays than its network has.
    """
    network = build(preset_of(state.settings).network(len(state.settings.labels)))
    assign(network.weights, state.arrays, AVERAGE)
    return network


def assign(variables: list[Any], arrays: Mapping[str, NDArray[Any]], owner: str) -> None:
    """Set variables to the arrays ``owner/0``, ``owner/1``, ... of a checkpoint.

    Raises:
        RunError: the arrays are not of these shapes.
    """
    stored = _of(owner, arrays)
    if [array.shape for array in stored] != [tuple(variable.shape) for variable in variables]:
        raise RunError(f"the checkpoint's {owner} has {len(stored)} arrays, not the {len(variables)} of this network")
    for variable, array in zip(variables, stored, strict=True):
        variable.assign(array.astype(variable.dtype))


def fingerprint(state: Checkpoint) -> str:
    """Return the sha256 (hexadecimal) of the averaged weights."""
    digest = hashlib.sha256()
    for array in _of(AVERAGE, state.arrays):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _of(owner: str, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [arrays[name] for name in (f"{owner}/{number}" for number in range(len(arrays))) if name in arrays]
