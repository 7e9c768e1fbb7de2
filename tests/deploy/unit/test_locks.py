"""Lock files: hashes, agreement between them, and no two packages that overwrite each other."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[3] / "requirements"
LOCKS = sorted(path.name for path in REQUIREMENTS.glob("*.txt"))


def pins(lock: str) -> dict[str, set[str]]:
    """Return the pinned versions of each package in a lock file; several if environment markers choose between them."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (REQUIREMENTS / lock).read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_hash_for_each_package_and_no_index_address(lock: str) -> None:
    """A lock file works with any package index and installs only the locked files."""
    text = (REQUIREMENTS / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    for entry in re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry


def test_the_locks_of_clients_cover_both_majors_of_protobuf() -> None:
    """The stubs are generated for protobuf 6; the oldest client has it, the newest has protobuf 7."""
    assert pins("oldest.txt")["protobuf"] == {"6.33.5"}
    assert pins("oldest.txt")["grpcio"] == pins("oldest.txt")["grpcio-status"] == pins("stubs.txt")["grpcio-tools"]
    assert [version.split(".")[0] for version in pins("newest.txt")["protobuf"]] == ["7"]
    assert [version.split(".")[0] for version in pins("tritonclient.txt")["protobuf"]] == ["6"]


def test_the_cuda_lock_contains_only_one_onnxruntime() -> None:
    """Of onnxruntime and onnxruntime-gpu, which install the same files, only the latter is locked, with CUDA and cuDNN."""
    pinned = pins("cuda.txt")
    assert "onnxruntime" not in pinned
    assert {"onnxruntime-gpu", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"} <= set(pinned)


def test_the_cuda_lock_differs_from_the_serving_lock_only_in_onnxruntime() -> None:
    """All other packages, and onnxruntime-gpu and onnxruntime themselves, have the same versions, so one set is tested."""
    serve, on_cuda = pins("serve.txt"), pins("cuda.txt")
    assert on_cuda.pop("onnxruntime-gpu") == serve.pop("onnxruntime")
    assert {name: versions for name, versions in on_cuda.items() if not name.startswith("nvidia-")} == serve


def test_the_lock_for_tests_of_the_service_is_part_of_the_lock_for_all_tests() -> None:
    """Both environments run the tests on the same versions, and only the larger one brings TensorFlow."""
    test, dev = pins("test.txt"), pins("dev.txt")
    assert {name: dev.get(name) for name in test} == test
    assert "tensorflow-cpu" in dev
    assert not [name for name in test if name.startswith(("tensorflow", "keras"))]
