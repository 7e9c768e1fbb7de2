"""Execution providers: which one runs the graph, how it is set up, and its memory. The only module that loads onnxruntime.

    --device auto ──supervisor: ``device.resolve`` ──▶ child process ``digitserve.inference.providers`` ──▶ cpu or cuda, for all workers
    --device cuda ──worker: ``Session`` ──▶ ``settle`` ──▶ ``open_graph``, or a refusal to start that says what is missing

onnxruntime falls back to the CPU in silence at four places: when a provider's libraries do not load, when creating a session
fails, when running one fails, and for single nodes that the provider has no kernel for. Each is closed here: an operator
who asked for a device has that device or is told.
"""

import contextlib
import ctypes
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import DTypeLike, NDArray

# Before the import: by the time a session exists, onnxruntime has written a device id under the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from digitserve import log
from digitserve.child_process import Channel
from digitserve.errors import BundleError, ProviderError
from digitserve.inference import cuda

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Device 0 of those visible: CUDA_VISIBLE_DEVICES chooses. docs/decisions.md has the reasons for the others.
_CUDA_OPTIONS = {
    "device_id": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
}
_CUDA_LIBRARY = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"

_SILENT, _WARNING = 4, 2
"""onnxruntime's severities of log lines: nothing but what ends the process; and its default."""

_log = structlog.get_logger("digitserve.inference.providers")


def settle(device: str) -> str:
    """Decide where to run.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``, which takes CUDA where it loads and finds a device.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        ProviderError: CUDA was asked for by name and cannot be had; the message says what is missing.
    """
    reason = None if device == "cpu" else why_not_cuda()
    if device == "auto" and reason is not None:
        _log.warning("no CUDA, running on the CPU", reason=reason)
        return "cpu"
    if reason is not None:
        raise ProviderError(f"--device cuda: {reason}, or start with --device cpu")
    return "cpu" if device == "cpu" else "cuda"


def why_not_cuda() -> str | None:
    """Say what is missing for running on CUDA and what would help, or ``None`` when nothing is."""
    available = ort.get_available_providers()
    if _CUDA not in available:
        return (f"this onnxruntime has {', '.join(available)}, not {_CUDA}; "
                "put onnxruntime-gpu in the place of onnxruntime (README, On a GPU)")  # fmt: skip
    # It prints what it does not find, and a worker's standard output is the line to its supervisor.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    try:
        if cuda.num_devices(_cuda_major()) < 1:
            return "CUDA has no device; make one visible (CUDA_VISIBLE_DEVICES, docker run --gpus all)"
    except cuda.CudaError as error:
        return _did_not_load(str(error))
    return _try_device()


def _try_device() -> str | None:
    """Have onnxruntime load its provider and take a byte on the device: before this, it does neither."""
    # What is wrong is told in one line, by whoever asked.
    ort.set_default_logger_severity(_SILENT)
    try:
        device_tensor("cuda", (1,))
    except Exception as error:
        return _did_not_load(_missing_library() or str(error).strip())
    finally:
        ort.set_default_logger_severity(_WARNING)
    return None


def _did_not_load(reason: str) -> str:
    return (f"{_CUDA} did not load: {reason}; install CUDA {_cuda_major()} and cuDNN 9 (digitserve[cuda] brings them) and "
            "NVIDIA's driver (containers get it with docker run --gpus all)")  # fmt: skip


def _missing_library() -> str | None:
    """Name the library that onnxruntime's provider lacks.

    Only after onnxruntime itself has tried: the provider looks for its host when it is first loaded, and never again.
    """
    try:
        ctypes.CDLL(str(_CUDA_LIBRARY))
    except OSError as error:
        return str(error)
    return None


def _cuda_major() -> str:
    return str(ort.cuda_version).partition(".")[0]


def open_graph(graph: bytes, device: str, num_threads: int) -> ort.InferenceSession:
    """Open a graph, all of it on one provider.

    Args:
        graph: the ONNX file's bytes.
        device: ``cpu`` or ``cuda``, as ``settle`` returned it.
        num_threads: onnxruntime's threads within an operator.

    Raises:
        BundleError: no provider could load it.
        ProviderError: the CPU could, but not this device.
    """
    provider, provider_options = (_CUDA, _CUDA_OPTIONS) if device == "cuda" else (_CPU, {})
    return _open(graph, provider, provider_options, num_threads)


def _open(graph: bytes, provider: str, provider_options: dict[str, str], num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # onnxruntime counts the host's cores and knows no quota, so the number is always given.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A spinning thread eats the core that the next worker should have.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3 if provider == _CPU else _SILENT
    if provider != _CPU:
        # Else a node without a kernel there would run on the CPU, with a copy each way.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # enable_fallback: else a failure, even of a later run, makes a new session on the CPU, printing to standard output.
        return ort.InferenceSession(graph, options, providers=[(provider, provider_options)], enable_fallback=0)
    except Exception as error:
        if provider == _CPU:
            raise BundleError("signature", f"onnxruntime cannot load model.onnx: {error}") from None
        # A graph that is broken is broken here too, and says so.
        _open(graph, _CPU, {}, num_threads)
        raise ProviderError(f"{provider} cannot run all of this graph: {error}; start with --device cpu") from None


def device_tensor(device: str, shape: Sequence[int]) -> Any:
    """Allocate a uint8 tensor in a device's memory, as an ``OrtValue``; its contents are not set."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.uint8, device, 0)


def host_array(device: str, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Allocate an array of zeros in this process's memory, which ``device`` copies from and to directly.

    Raises:
        ProviderError: CUDA could not lock that much.
    """
    if device == "cpu":
        return np.zeros(shape, dtype)
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        return cuda.page_locked(num_bytes, _cuda_major()).view(dtype).reshape(shape)
    except cuda.CudaError as error:
        raise ProviderError(f"CUDA could not lock {num_bytes} bytes of memory: {error}; "
                            "lower --max-batch-size, or start with --device cpu") from None  # fmt: skip


def main() -> None:
    """Run as the supervisor's child: send the device that ``auto`` means here; the log line says why."""
    channel = Channel.to_parent()
    log.configure(channel.receive()["log_format"], pid=os.getpid())
    channel.send({"device": settle("auto")})


if __name__ == "__main__":
    main()
