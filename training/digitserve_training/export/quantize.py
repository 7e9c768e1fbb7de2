"""Quantisation of a float32 graph: its large layers compute in int8.

``precision`` calls it for ``export --precision int8``. It imports only ``onnxruntime.quantization``; graphs are run by
``digitserve.inference.session``. Needs no TensorFlow.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import digitserve.inference.session  # noqa: F401 - turns off onnxruntime's telemetry before its import
from digitserve.inference.bundle import INPUT_NAME

# isort: split
from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

HEAVY = ("Conv", "MatMul", "Gemm")
"""Operators with a network's weights."""

_QUANTIZED = (*HEAVY, "Relu")
"""Operators to quantise; all others stay float32, in particular softmax and OOD score.

With ``Relu``, outputs of layers are quantised after their activation only, and all 256 values are for positive numbers.
Without it, they are quantised, converted to float32 for the activation, and quantised again: 12 % more time in batches of 64
and 1.4 times the other labels."""

_BATCH_SIZE = 100


class _Batches:
    """Calibration images in onnxruntime's interface: one batch per call, then None; lives for one calibration."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        """Take uint8[N,28,28,1], N at least 1."""
        self._batches = iter([images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next inputs of the graph by name, None after the last batch."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def quantize(graph: bytes, calibration: NDArray[np.uint8]) -> bytes:
    """Quantise weights per output channel, and activations by their range on the calibration images.

    The first and the last layer stay float32. A convolution over one channel has too little work to gain from a
    quantised input, and its rounding errors affect all later layers; logits need the precision.

    Weights use seven of the eight bits. Processors without VNNI add two products in 16 bits, which silently overflows
    with eight-bit weights. With seven bits every processor gives the same sums; this cost at most two of 10,000 test
    images on the two networks that were tried.

    Args:
        graph: from ``onnx_graph.convert``.
        calibration: uint8[N,28,28,1], N at least 1.

    Returns:
        A serialised model with the inputs and outputs of ``graph``; equal arguments give equal bytes.

    Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html, on S8S8, QDQ and reduce_range.
    """
    with tempfile.TemporaryDirectory(prefix="digitserve-") as folder:
        original, prepared, quantized = (Path(folder) / name for name in ("original", "prepared", "quantized"))
        # From a file, because onnxruntime 1.31 loses the weights of a model in memory. Symbolic shape inference needs
        # sympy and is for transformers.
        original.write_bytes(graph)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_first_and_last(onnx.load(prepared)),
        )
        model = onnx.load(quantized)
    model.producer_name, model.producer_version = "digitserve-train", ""
    del model.graph.value_info[:], model.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _first_and_last(model: onnx.ModelProto) -> list[str]:
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY]
    return [heavy[0], heavy[-1]]
