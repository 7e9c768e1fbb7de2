"""No silent CPU fallback: a requested device is used, or the error states what is missing."""

import re
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from digitserve.child_process import Child
from digitserve.errors import BundleError, ProviderError
from digitserve.inference import cuda, providers
from support.bundles import echo_graph
from support.log_lines import capture_logs

INCAPABLE = "AzureExecutionProvider"
"""A provider of the CPU wheel without kernels for the nodes of our graphs: each node would fall back to the CPU."""


def test_the_cpu_needs_no_check_for_cuda() -> None:
    """The default does not check for CUDA and logs nothing."""
    with capture_logs() as lines:
        assert providers.resolve_device("cpu") == "cpu"
    assert lines == []


def test_the_error_for_missing_cuda_says_what_to_do() -> None:
    """The message names the available providers, the requested one, and both remedies."""
    with pytest.raises(ProviderError) as caught:
        providers.resolve_device("cuda")
    for part in ("--device cuda", "CPUExecutionProvider", "CUDAExecutionProvider", "onnxruntime-gpu", "--device cpu"):
        assert part in str(caught.value)


def test_auto_chooses_the_cpu_and_logs_why() -> None:
    """An operator who expected CUDA finds the reason in the log, in one line."""
    with capture_logs() as lines:
        assert providers.resolve_device("auto") == "cpu"
    (line,) = lines
    assert (line["log_level"], "CUDAExecutionProvider" in line["reason"]) == ("warning", True)


def test_a_provider_that_cannot_run_the_whole_graph_is_an_error() -> None:
    """A graph with nodes that the provider has no kernel for does not open; the error names the provider."""
    graph = echo_graph()
    providers.open_session(graph, "cpu", 1)
    with pytest.raises(ProviderError, match=f"{INCAPABLE} cannot run all of this graph: .*--device cpu"):
        providers._open(graph, INCAPABLE, {}, 1)


def test_onnxruntime_by_default_falls_back_silently() -> None:
    """With onnxruntime's defaults the same graph opens on the same provider, and all of it runs on the CPU."""
    session = ort.InferenceSession(echo_graph(), providers=[INCAPABLE])
    assert session.get_providers()[-1] == "CPUExecutionProvider"
    assert len(session.run(None, {"images": np.zeros((1, 28, 28, 1), np.uint8)})) == 2


def test_an_invalid_graph_is_a_bundle_error_on_every_provider() -> None:
    """An invalid graph is reported as such, not as a missing device."""
    for provider in (INCAPABLE, "CPUExecutionProvider"):
        with pytest.raises(BundleError, match="cannot load model.onnx"):
            providers._open(b"no graph at all", provider, {}, 1)


def test_errors_write_nothing_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """What onnxruntime would print about fallbacks and missing libraries does not reach standard output."""
    with pytest.raises(ProviderError):
        providers._open(echo_graph(), INCAPABLE, {}, 1)
    with pytest.raises(ProviderError):
        providers.resolve_device("cuda")
    assert capfd.readouterr().out == ""


def test_a_missing_runtime_library_is_named() -> None:
    """The error contains the loader's message, which names the file."""
    with pytest.raises(cuda.CudaError, match=r"libcudart\.so\.0"):
        cuda.num_devices("0")


@pytest.mark.parametrize(("code", "text"), [(0, None), (100, None), (35, "too old (CUDA error 35)")])
def test_no_device_is_not_a_failure_of_the_library(
    monkeypatch: pytest.MonkeyPatch, code: int, text: str | None
) -> None:
    """CUDA reports a missing device as error 100. It counts as no device; other errors are raised with CUDA's text."""
    library = SimpleNamespace(cudaGetDeviceCount=lambda _: code, cudaGetErrorString=lambda _: b"too old")
    monkeypatch.setattr(cuda, "_load", lambda _: library)
    if text is None:
        assert cuda.num_devices("13") == 0
    else:
        with pytest.raises(cuda.CudaError, match=re.escape(text)):
            cuda.num_devices("13")


def test_the_check_for_auto_sends_the_device(capfd: pytest.CaptureFixture[str]) -> None:
    """The supervisor's child sends ``cpu`` or ``cuda``; the reason is a line of JSON on standard error."""
    with Child("digitserve.inference.providers") as child:
        child.channel.send({"log_format": "json"})
        assert child.channel.receive() == {"device": "cpu"}
        assert child.process.wait() == 0
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert '"message": "no CUDA, running on the CPU"' in line
