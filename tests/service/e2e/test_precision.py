"""``--precision auto`` and the shipped int8 network, on this processor and on an emulated one without VNNI."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from digitserve.inference.bundle import read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.inference.session import Session
from digitserve.supervision.vnni import vnni
from support.bundles import write_echo_bundle
from support.digits import MODELS, mnist_test, needs_mnist
from support.serving import PATIENCE_S, command, run_service

NO_VNNI = "the processor has neither AVX512_VNNI nor AVX_VNNI"

NUM_IMAGES = 50
"""Digits that the emulated processor classifies, as they are and inverted. With eight-bit weights, sums overflow in some of the
inverted ones, which have many bright pixels."""

MAX_DIFFERENCE = {"probabilities": 2e-5, "ood_score": 1e-2}
"""All differences measured were 0. A value that other kernels round the other way changes a probability by up to 7e-6. With
eight-bit weights, 7 of 32 inverted digits differed, by up to 1e-4 and 0.06."""

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
    if platform.machine() != "x86_64":
        pytest.skip("the installed packages are not for x86-64")
    return [shutil.which("qemu-x86_64") or pytest.skip("qemu-x86_64 is not installed"), "-cpu", "Haswell"]


def test_auto_on_this_processor(tmp_path: Path) -> None:
    """The service selects int8 if this processor has VNNI, otherwise float32, and shows why. Clients see the name of
    the model.
    """
    found = vnni()
    name, precision = ("digits", "float32") if found is None else ("digits-int8", "int8")
    with run_service(MODELS, tmp_path / "log", "--workers", "1", "--precision", "auto") as service:
        reason = NO_VNNI if found is None else f"the processor has {found}"
        assert f"  {name}/" in service.banner and f"  {precision}  (auto: {reason})" in service.banner
        assert service.total("digitserve_model_info", name=name, precision=precision) == 1
        model = json.loads(service.get("/v1/model")[1])["model"]
        assert (model["name"], model["precision"]) == ("digits", precision)


def test_a_missing_int8_bundle_is_a_refusal_to_start(tmp_path: Path) -> None:
    """--precision int8 is a refusal to start, and the message states what is missing and what to do."""
    write_echo_bundle(tmp_path)
    refused = subprocess.run(
        command("serve", "--models", str(tmp_path), "--grpc-port", "0", "--http-port", "0", "--precision", "int8"),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"digitserve: refusing to start: --precision int8: {tmp_path} has no digits-int8/1; export it, or use --precision auto or float32\n"
    )


def test_auto_without_vnni(tmp_path: Path, haswell: list[str]) -> None:
    """On an emulated processor without VNNI the service itself chooses float32, although /proc/cpuinfo is that of the real one."""
    with run_service(MODELS, tmp_path / "log", "--workers", "1", "--precision", "auto", wrapper=haswell) as service:
        assert f"  float32  (auto: {NO_VNNI})" in service.banner
        assert service.total("digitserve_model_info", name="digits", precision="float32") == 1


@needs_mnist
def test_int8_has_the_same_outputs_without_vnni(tmp_path: Path, haswell: list[str]) -> None:
    """On an emulated processor with AVX2, which adds pairs of products in 16 bits, the shipped int8 network passes the check of its
    golden outputs, and all outputs are those of this processor.
    """
    path = find_bundle(MODELS, "digits-int8")
    digits = mnist_test()[0][:NUM_IMAGES, ..., None]
    images = np.concatenate([digits, 255 - digits])
    np.save(tmp_path / "images.npy", images)
    emulated = subprocess.run(
        [*haswell, sys.executable, "-c", CLASSIFY, path, tmp_path / "images.npy", tmp_path / "outputs.npz"],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert (emulated.returncode, emulated.stdout) == (0, "None\n"), emulated.stderr
    here = Session(read_bundle(path)).run(images)
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name, allowed in MAX_DIFFERENCE.items():
            assert float(np.abs(outputs[name] - getattr(here, name)).max()) <= allowed, name


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
