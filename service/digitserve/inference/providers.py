"""Execution providers: choice of device, session options, and device memory. The only module that imports onnxruntime.

    --device auto ──▶ supervisor: child process ``digitserve.inference.providers`` ──▶ cpu or cuda, for all workers
    --device cuda ──▶ worker: ``Session`` ──▶ ``resolve_device`` ──▶ ``open_session``, or a ProviderError that names what is missing

No silent CPU fallback: onnxruntime falls back to the CPU without an error in four cases: a provider's libraries do not load,
a session cannot be created, a run fails, or the provider has no kernel for some node. This module makes each of them an
error.
"""

import contextlib
import ctypes
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from digitserve.log import get_logger

# Must be set before the import: later, onnxruntime has already written a device id into the home directory.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from digitserve import log
from digitserve.child_process import Channel
from digitserve.errors import BundleError, ProviderError
from digitserve.inference import cuda

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Device 0 of those that CUDA_VISIBLE_DEVICES makes visible. docs/decisions.md has the reasons for the other options.
_CUDA_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
    "enable_cuda_graph": "1",
}
_CUDA_LIBRARY = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"

_SILENT, _WARNING = 4, 2
"""Log severities of onnxruntime: fatal errors only; and its default."""

_log = get_logger("digitserve.inference.providers")


def resolve_device(device: str) -> str:
    """Choose the device to run on.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: CUDA if its libraries load and it has a device, otherwise the CPU.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        ProviderError: ``cuda`` was requested and is unavailable; the message names what is missing.
    """
    reason = None if device == "cpu" else cuda_unavailable_reason()
    if device == "auto" and reason is not None:
        _log.warning("no CUDA, running on the CPU", reason=reason)
        return "cpu"
    if reason is not None:
        raise ProviderError(f"--device cuda: {reason}, or start with --device cpu")
    return "cpu" if device == "cpu" else "cuda"


def cuda_unavailable_reason() -> str | None:
    """Return what CUDA lacks on this machine and how to fix it, or ``None`` if CUDA is available."""
    available = ort.get_available_providers()
    if _CUDA not in available:
        return (f"this onnxruntime has {', '.join(available)}, not {_CUDA}; "
                "replace onnxruntime by onnxruntime-gpu (docs/how-to/gpu.md)")  # fmt: skip
    # It prints the libraries that it does not find to standard output; the error below reports them instead.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    try:
        if cuda.num_devices(_cuda_major()) < 1:
            return "CUDA has no device; make one visible (CUDA_VISIBLE_DEVICES, docker run --gpus all)"
    except cuda.CudaError as error:
        return _load_failure(str(error))
    return _try_allocation()


def _try_allocation() -> str | None:
    """Allocate a byte on the device, which makes onnxruntime load its provider; return what failed, if anything."""
    try:
        with _silence():
            device_tensor("cuda", (1,), np.uint8)
    except Exception as error:
        return _load_failure(_missing_library() or str(error).strip())
    return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress what onnxruntime logs without a session. Errors are raised too, and the caller reports them."""
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _load_failure(reason: str) -> str:
    return (f"{_CUDA} did not load: {reason}; install CUDA {_cuda_major()} and cuDNN 9 (digitserve[cuda] brings them) and "
            "NVIDIA's driver (containers get it with docker run --gpus all)")  # fmt: skip


def _missing_library() -> str | None:
    """Return the loader's error for the library that onnxruntime's provider needs and does not find.

    Call it only after onnxruntime has tried to load the provider: a provider binds to onnxruntime when it is first loaded,
    and never again.
    """
    try:
        ctypes.CDLL(str(_CUDA_LIBRARY))
    except OSError as error:
        return str(error)
    return None


def _cuda_major() -> str:
    return str(ort.cuda_version).partition(".")[0]


def open_session(graph: bytes, device: str, num_threads: int) -> ort.InferenceSession:
    """Open a graph with all of its nodes on one provider.

    Args:
        graph: contents of the ONNX file.
        device: ``cpu`` or ``cuda``, as ``resolve_device`` returned it.
        num_threads: onnxruntime's threads within an operator.

    Raises:
        BundleError: the CPU provider cannot load the graph.
        ProviderError: the CPU provider can load it, but the provider of ``device`` cannot.
    """
    provider, provider_options = (_CUDA, _CUDA_OPTIONS) if device == "cuda" else (_CPU, {})
    return _open(graph, provider, provider_options, num_threads)


def _open(graph: bytes, provider: str, provider_options: dict[str, str], num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Always set: onnxruntime's default is the number of the host's cores, whatever the CPU quota.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A spinning thread would occupy the core of another worker.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without this, onnxruntime would take a file whose bytes 4 to 8 are "ORTM" for its own format, which ``graph_check`` does
    # not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # ``graph_check`` rejects external data. If it missed some, no file can exist below os.devnull.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.log_severity_level = 3 if provider == _CPU else _SILENT
    if provider != _CPU:
        # Without this, a node that the provider has no kernel for runs on the CPU, with a copy in each direction.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # For CUDA, onnxruntime warns each time that the provider is not a plugin. It does not have to be one.
    quiet = contextlib.nullcontext if provider == _CPU else _silence
    try:
        # enable_fallback: by default, a failure here or in a later run opens a new session on the CPU, with a print.
        with quiet():
            return ort.InferenceSession(graph, options, providers=[(provider, provider_options)], enable_fallback=0)
    except Exception as error:
        if provider == _CPU:
            raise BundleError("signature", f"onnxruntime cannot load model.onnx: {error}") from None
        # A graph that is itself invalid fails on the CPU too, with a BundleError.
        _open(graph, _CPU, {}, num_threads)
        raise ProviderError(f"{provider} cannot run all of this graph: {error}; start with --device cpu") from None


def device_tensor(device: str, shape: Sequence[int], dtype: DTypeLike) -> Any:
    """Allocate a tensor in a device's memory, as an ``OrtValue`` with undefined contents."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)


def graph_options(graph_id: int) -> ort.RunOptions:
    """Return options for all runs with one set of bound buffers: on CUDA the first run records a CUDA graph, others replay it.

    Args:
        graph_id: unique among the sets of buffers of a session, at least 1.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def main() -> None:
    """Run as the supervisor's child: send the device that ``auto`` means here; the log line has the reason."""
    channel = Channel.to_parent()
    log.configure(channel.receive()["log_format"], pid=os.getpid())
    channel.send({"device": resolve_device("auto")})


if __name__ == "__main__":
    main()
