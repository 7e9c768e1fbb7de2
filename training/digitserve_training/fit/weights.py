"""Weights of checkpoints: the trained network that a checkpoint holds, and its fingerprint.

Used by ``train``, ``teachers`` and ``evaluate.converted_model``.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve_training._tensorflow import keras
from digitserve_training.errors import RunError
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.model.networks import build

AVERAGE = "average"
"""Prefix of the averaged weights in a checkpoint: they are evaluated, exported and used by teachers."""


def restore_network(state: Checkpoint) -> keras.Model:
    """Build the network of a checkpoint, with its averaged weights.

    Returns:
        A model from uint8[N,28,28,1] to logits.

    Raises:
        RunError: the arrays do not have the shapes of the network's weights.
    """
    network = build(state.settings.layers)
    assign_variables(network.weights, state.arrays, AVERAGE)
    return network


def assign_variables(variables: list[Any], arrays: Mapping[str, NDArray[Any]], prefix: str) -> None:
    """Set variables to the arrays ``prefix/0``, ``prefix/1``, ... of a checkpoint.

    Raises:
        RunError: the arrays do not have the shapes of the variables.
    """
    stored = _with_prefix(prefix, arrays)
    if [array.shape for array in stored] != [tuple(variable.shape) for variable in variables]:
        raise RunError(
            f"the checkpoint's {len(stored)} {prefix} arrays do not fit the {len(variables)} variables of this network"
        )
    for variable, array in zip(variables, stored, strict=True):
        variable.assign(array.astype(variable.dtype))


def weights_sha256(state: Checkpoint) -> str:
    """Return the sha256 (hexadecimal) of the averaged weights."""
    digest = hashlib.sha256()
    for array in _with_prefix(AVERAGE, state.arrays):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _with_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [arrays[name] for name in (f"{prefix}/{number}" for number in range(len(arrays))) if name in arrays]
