"""Whoever asks for a device has it or is told what is missing: nothing falls back in silence."""

import numpy as np
import onnxruntime as ort
import pytest
from structlog.testing import capture_logs

from digitserve.child_process import Child
from digitserve.errors import BundleError, ProviderError
from digitserve.inference import cuda, providers
from support.bundles import echo_graph

REFUSING = "AzureExecutionProvider"
"""A real provider of the CPU wheel that runs none of our nodes: each would fall back to the CPU."""


def test_the_cpu_is_settled_without_a_look() -> None:
    """The default asks nothing of CUDA and logs nothing."""
    with capture_logs() as lines:
        assert providers.settle("cpu") == "cpu"
    assert lines == []


def test_cuda_by_name_is_refused_in_words_that_help() -> None:
    """The message has what this onnxruntime offers, what was asked of it, and both ways out."""
    with pytest.raises(ProviderError) as caught:
        providers.settle("cuda")
    for words in ("--device cuda", "CPUExecutionProvider", "CUDAExecutionProvider", "onnxruntime-gpu", "--device cpu"):
        assert words in str(caught.value)


def test_auto_takes_the_cpu_and_says_why_in_one_line() -> None:
    """An operator who expected CUDA finds the reason in the log."""
    with capture_logs() as lines:
        assert providers.settle("auto") == "cpu"
    (line,) = lines
    assert (line["log_level"], "CUDAExecutionProvider" in line["reason"]) == ("warning", True)


def test_a_graph_that_a_provider_does_not_run_whole_is_refused() -> None:
    """Nodes without a kernel would run on the CPU, with copies: instead the provider is refused, by its name."""
    graph = echo_graph()
    providers.open_graph(graph, "cpu", 1)
    with pytest.raises(ProviderError, match=f"{REFUSING} cannot run all of this graph: .*--device cpu"):
        providers._open(graph, REFUSING, {}, 1)


def test_without_the_provision_the_same_provider_would_fall_back_in_silence() -> None:
    """The refusal above is ours: onnxruntime by itself opens the graph and runs all of it on the CPU."""
    silent = ort.InferenceSession(echo_graph(), providers=[REFUSING])
    assert silent.get_providers()[-1] == "CPUExecutionProvider"
    assert len(silent.run(None, {"images": np.zeros((1, 28, 28, 1), np.uint8)})) == 2


def test_a_broken_graph_is_the_bundles_fault_on_every_provider() -> None:
    """Whoever asked for a device and gave garbage hears of the garbage."""
    for provider in (REFUSING, "CPUExecutionProvider"):
        with pytest.raises(BundleError, match="cannot load model.onnx"):
            providers._open(b"no graph at all", provider, {}, 1)


def test_a_refusal_writes_nothing_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker's standard output is the line to its supervisor; onnxruntime prints its fallbacks there."""
    with pytest.raises(ProviderError):
        providers._open(echo_graph(), REFUSING, {}, 1)
    with pytest.raises(ProviderError):
        providers.settle("cuda")
    assert capfd.readouterr().out == ""


def test_a_missing_runtime_library_is_named() -> None:
    """The loader's words name the file."""
    for call in (lambda: cuda.num_devices("0"), lambda: cuda.page_locked(16, "0")):
        with pytest.raises(cuda.CudaError, match=r"libcudart\.so\.0"):
            call()


def test_the_check_for_auto_sends_the_device(capfd: pytest.CaptureFixture[str]) -> None:
    """The supervisor's child sends ``cpu`` or ``cuda``; the reason is a line of JSON on standard error."""
    with Child("digitserve.inference.providers") as child:
        child.channel.send({"log_format": "json"})
        assert child.channel.receive() == {"device": "cpu"}
        assert child.process.wait() == 0
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert '"event": "no CUDA, running on the CPU"' in line
