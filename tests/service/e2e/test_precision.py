"""``--precision auto`` and the shipped int8 network, on this processor and on an emulated one without VNNI."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from digitserve.inference.bundle import find_bundle, read_bundle
from digitserve.inference.session import Session
from digitserve.supervision.vnni import vnni
from support.bundles import write_echo_bundle
from support.digits import MODELS, mnist_test, needs_mnist
from support.serving import run_service, wait_until

NO_VNNI = "the processor has neither AVX512_VNNI nor AVX_VNNI"

NUM_IMAGES = 200
"""Images that the emulated processor classifies; with eight-bit weights, most of their OOD scores differ."""

CLASSIFY = """
import sys
import numpy as np
from pathlib import Path
from digitserve.inference.bundle import read_bundle
from digitserve.inference.session import Session
from digitserve.supervision.vnni import vnni

outputs = Session(read_bundle(Path(sys.argv[1]))).run(np.load(sys.argv[2]))
np.savez(sys.argv[3], probabilities=outputs.probabilities, ood_score=outputs.ood_score)
print(vnni())
"""


@pytest.fixture(scope="module")
def haswell() -> list[str]:
    """Return the command that runs programs on an emulated processor with AVX2 and FMA, without AVX-512 and VNNI."""
    return [shutil.which("qemu-x86_64") or pytest.skip("qemu-x86_64 is not installed"), "-cpu", "Haswell"]


def test_auto_on_this_processor(tmp_path: Path) -> None:
    """Auto serves int8 if this processor has VNNI, otherwise float32, and shows why. A version without an int8 bundle is served in
    float32, and the log warns.
    """
    models, is_fast = tmp_path / "models", vnni() is not None
    for version in (1, 2):
        write_echo_bundle(models, version, training={"precision": "float32"})
    write_echo_bundle(models, 1, name="digits-int8", training={"precision": "int8"}, ood_threshold=1e5)
    (models / "digits/active").write_text("1\n")
    reason = f"the processor has {vnni()}" if is_fast else NO_VNNI
    with run_service(models, tmp_path / "log", "--workers", "1", "--precision", "auto") as service:
        name, precision = ("digits-int8", "int8") if is_fast else ("digits", "float32")
        assert f"  {name}/1  " in service.banner and f"  {precision}  (auto: {reason})" in service.banner
        assert service.total("digitserve_model_info", name=name, version="1", precision=precision) == 1
        described = json.loads(service.get("/v1/model")[1])["model"]
        assert (described["name"], described["precision"]) == ("digits", precision)

        (models / "digits/active").write_text("2\n")
        wait_until(lambda: service.total("digitserve_reloads_total", result="completed") == 1, "reloaded")
        assert service.total("digitserve_model_info", name="digits", version="2", precision="float32") == 1
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    warnings = [line["reason"] for line in lines if line["level"] == "warning"]
    assert warnings == [f"{models} has no digits-int8/2"] * is_fast


def test_auto_without_vnni(tmp_path: Path, haswell: list[str]) -> None:
    """On an emulated processor without VNNI the service itself chooses float32, although /proc/cpuinfo is that of the real one."""
    with run_service(MODELS, tmp_path / "log", "--workers", "1", "--precision", "auto", wrapper=haswell) as service:
        assert f"  float32  (auto: {NO_VNNI})" in service.banner
        assert service.total("digitserve_model_info", name="digits", precision="float32") == 1


@needs_mnist
def test_int8_has_the_same_bits_without_vnni(tmp_path: Path, haswell: list[str]) -> None:
    """On an emulated processor with AVX2, which adds pairs of products in 16 bits, the shipped int8 network passes the check of its
    golden outputs, and all outputs have the same bits as on this processor.
    """
    path = find_bundle(MODELS, "digits-int8")
    images = np.ascontiguousarray(mnist_test()[0][:NUM_IMAGES, ..., None])
    np.save(tmp_path / "images.npy", images)
    emulated = subprocess.run(
        [*haswell, sys.executable, "-c", CLASSIFY, path, tmp_path / "images.npy", tmp_path / "outputs.npz"],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert (emulated.returncode, emulated.stdout) == (0, "None\n"), emulated.stderr
    here = Session(read_bundle(path)).run(images)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert np.array_equal(outputs["probabilities"], here.probabilities)
        assert np.array_equal(outputs["ood_score"], here.ood_score)


def test_int8_weights_have_seven_bits() -> None:
    """A sum of two products of 255 and a weight of seven bits fits into 16 bits, so AVX2 cannot overflow on any image."""
    weights = int8_weights(read_bundle(find_bundle(MODELS, "digits-int8")).graph)
    assert len(weights) >= 3
    assert all(array.min() >= -64 and array.max() <= 64 for array in weights)
    assert 2 * 255 * 64 < 2**15


def int8_weights(graph: bytes) -> list[NDArray[np.int8]]:
    """Return the int8 tensors of a network with more than one axis: those of other tensors are biases and zero points."""
    arrays = [numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
