"""The locks agree with each other, and none brings two packages that overwrite each other."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[3] / "requirements"
LOCKS = ["serve.txt", "test.txt", "dev.txt", "cuda.txt"]


def pins(lock: str) -> dict[str, set[str]]:
    """Return the versions that a lock pins, by package; markers may choose between several."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (REQUIREMENTS / lock).read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_hash_for_each_package_and_no_address(lock: str) -> None:
    """It installs from any index, and only what was locked."""
    text = (REQUIREMENTS / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    for entry in re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry


def test_the_lock_for_cuda_holds_one_onnxruntime() -> None:
    """Both packages install into one folder: of the two only onnxruntime-gpu, with CUDA and cuDNN."""
    pinned = pins("cuda.txt")
    assert "onnxruntime" not in pinned
    assert {"onnxruntime-gpu", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"} <= set(pinned)


def test_the_lock_for_cuda_is_the_lock_for_serving_on_another_onnxruntime() -> None:
    """Everything else has the same version, and so has onnxruntime itself: one release is tested."""
    serve, on_cuda = pins("serve.txt"), pins("cuda.txt")
    assert on_cuda.pop("onnxruntime-gpu") == serve.pop("onnxruntime")
    assert {name: versions for name, versions in on_cuda.items() if not name.startswith("nvidia-")} == serve


def test_the_lock_for_tests_of_the_service_is_part_of_the_lock_for_all_tests() -> None:
    """Both environments run the tests on the same versions, and only the larger one brings TensorFlow."""
    test, dev = pins("test.txt"), pins("dev.txt")
    assert {name: dev.get(name) for name in test} == test
    assert "tensorflow-cpu" in dev
    assert not [name for name in test if name.startswith(("tensorflow", "keras"))]
