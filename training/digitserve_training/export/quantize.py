"""Quantisation: from the float32 graph to one whose large layers compute in int8.

``precision`` calls it for ``export --precision int8``. Beside ``digitserve.inference.session`` this is the only module that knows
onnxruntime, and it knows ``onnxruntime.quantization`` alone. Needs no TensorFlow.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import digitserve.inference.session  # noqa: F401 - tells onnxruntime to send nothing, which must be said before its import
from digitserve.inference.bundle import INPUT_NAME

# isort: split
from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

HEAVY = ("Conv", "MatMul", "Gemm")
"""Operators that hold a network's weights; all that lies between them stays float32, softmax and OOD score above all."""

_BATCH_SIZE = 100


class _Batches:
    """Calibration images as onnxruntime asks for them: a batch a call, then None; lives for one calibration."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        """Take uint8[N,28,28,1], N at least 1."""
        self._batches = iter([images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next inputs of the graph by name."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def quantize(graph: bytes, calibration: NDArray[np.uint8]) -> bytes:
    """Quantise weights by output channel, and activations by the range that they have on the calibration images.

    The first and the last layer stay float32: a convolution over one channel has too little work to pay for
    quantising its input, and what it rounds off is lost to all that follows; logits need their digits.

    Weights get seven bits of the eight. Processors without VNNI add two products in 16 bits, which int8 weights
    overflow in silence; with seven bits every processor gives the same sums, at the cost of no more
    than two of 10 000 test images on the two networks that were tried.

    Args:
        graph: as ``graph.convert`` gives it.
        calibration: uint8[N,28,28,1], N at least 1.

    Returns:
        A serialised model with the inputs and outputs of ``graph``; equal arguments give equal bytes.

    Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html, on S8S8, QDQ and reduce_range.
    """
    with tempfile.TemporaryDirectory(prefix="digitserve-") as folder:
        original, prepared, quantized = (Path(folder) / name for name in ("original", "prepared", "quantized"))
        # A file, because of a model in memory onnxruntime 1.31 loses the weights. Symbolic shapes need sympy, and are
        # for transformers.
        original.write_bytes(graph)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(HEAVY),
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
