"""Bundles are written atomically and never overwritten; an error for a damaged bundle names the failed check."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.errors import BundleError
from digitserve.inference import bundle, model_folder
from support.bundles import LABELS, echo_golden, echo_graph, manifest, write_echo_bundle

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a valid bundle."""
    return write_echo_bundle(tmp_path)


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a written manifest."""
    described = json.loads((path / "manifest.json").read_text())
    change(described)
    (path / "manifest.json").write_text(json.dumps(described))


def failed_check(path: Path) -> tuple[str, str]:
    """Return the check that fails when the bundle is read, and the error's text."""
    with pytest.raises(BundleError) as caught:
        bundle.read_bundle(path)
    assert f"check '{caught.value.check}' failed" in str(caught.value)
    return caught.value.check, str(caught.value)


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Graph, manifest and golden outputs are read as they were written, with the sha256 filled in."""
    described = manifest(3, training={"preset": "echo", "seed": 7}, quality={"test_accuracy": 0.5}, ood_threshold=-1.25)
    path = bundle.write_bundle(tmp_path, described, echo_graph(), echo_golden())
    assert path == tmp_path / "digits" / "3"
    read = bundle.read_bundle(path)
    assert read.path == path
    assert read.graph == echo_graph()
    assert read.manifest == replace(described, sha256=read.manifest.sha256)
    assert len(read.manifest.sha256) == 64
    for name in ("images", "probabilities", "ood_score"):
        assert np.array_equal(getattr(read.golden, name), getattr(echo_golden(), name))


def test_the_report_is_copied(tmp_path: Path) -> None:
    """The report of ``evaluate`` is part of the bundle."""
    report = tmp_path / "drawn"
    report.mkdir()
    (report / "confusion.svg").write_text("<svg/>")
    path = bundle.write_bundle(tmp_path / "models", manifest(), echo_graph(), echo_golden(), report)
    assert (path / "report" / "confusion.svg").read_text() == "<svg/>"


def test_a_bundle_can_be_read_by_another_user(path: Path) -> None:
    """Other users can read a bundle: the service in its container is not the user who trained."""
    assert path.stat().st_mode & 0o555 == 0o555


def test_a_version_is_never_overwritten(path: Path, tmp_path: Path) -> None:
    """Writing an existing version is an error and changes nothing."""
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        write_echo_bundle(tmp_path, quality={"test_accuracy": 0.1})
    assert (path / "manifest.json").read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]


def test_a_failed_write_leaves_no_files(tmp_path: Path) -> None:
    """After a failed write there is neither a version nor a part of one."""
    with pytest.raises(FileNotFoundError):
        bundle.write_bundle(tmp_path, manifest(), echo_graph(), echo_golden(), report=tmp_path / "missing")
    assert model_folder.list_versions(tmp_path, "digits") == []
    assert not list((tmp_path / "digits").iterdir())


def test_a_manifest_that_is_not_json_serializable_leaves_no_files(tmp_path: Path) -> None:
    """A manifest that JSON cannot represent is an error, and no file is written."""
    with pytest.raises(TypeError):
        write_echo_bundle(tmp_path, training={"preset": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version"),
        ({"labels": tuple("0012345678")}, "the same label occurs twice"),
        ({"golden_tolerance": 0.5}, "golden_tolerance"),
        ({"ood_threshold": float("nan")}, "finite"),
        ({"name": "a/b"}, "describes"),
    ],
)
def test_a_bundle_that_no_service_would_read_is_not_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The rules for manifests hold when a bundle is written, not only when it is read."""
    with pytest.raises(bundle.BundleError, match=message):
        write_echo_bundle(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_partly_written_version_is_not_listed(tmp_path: Path) -> None:
    """The directory that a killed writer leaves behind is not listed as a version."""
    write_echo_bundle(tmp_path, 2)
    (tmp_path / "digits" / ".writing-abc").mkdir()
    (tmp_path / "digits" / "3.tmp").mkdir()
    (tmp_path / "digits" / "latest").mkdir()
    (tmp_path / "digits" / "4").write_text("a file")
    assert model_folder.list_versions(tmp_path, "digits") == [2]


def test_only_one_spelling_of_a_version_is_listed(tmp_path: Path) -> None:
    """Other names that int() accepts are ignored, because ``find_bundle`` could not find them."""
    write_echo_bundle(tmp_path, 5)
    for name in ("07", "0", "\u0669", "\u00b2", "-3", "+8"):
        (tmp_path / "digits" / name).mkdir()
    assert model_folder.list_versions(tmp_path, "digits") == [5]
    assert model_folder.find_bundle(tmp_path, "digits").name == "5"


def test_versions_are_sorted_as_numbers(tmp_path: Path) -> None:
    """9 comes before 10, and the highest version is the default."""
    for version in (9, 10, 2):
        (tmp_path / "digits" / str(version)).mkdir(parents=True)
    assert model_folder.list_versions(tmp_path, "digits") == [2, 9, 10]
    assert model_folder.find_bundle(tmp_path, "digits") == tmp_path / "digits" / "10"
    assert model_folder.find_bundle(tmp_path, "digits", 9) == tmp_path / "digits" / "9"


def test_the_error_for_an_unknown_version_lists_the_available_ones(tmp_path: Path) -> None:
    """The message lists the versions that exist."""
    for version in (2, 10):
        (tmp_path / "digits" / str(version)).mkdir(parents=True)
    with pytest.raises(BundleError, match="model 'digits' has no version 3; available: 2, 10"):
        model_folder.find_bundle(tmp_path, "digits", 3)


def test_the_error_for_an_unknown_model_says_what_was_expected(tmp_path: Path) -> None:
    """It names the expected directory, also if the directory of all models is missing."""
    for models in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="no version of model 'letters' in .*; expected .*letters/<integer>/"):
            model_folder.find_bundle(models, "letters")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.npz"])
def test_a_missing_file_fails_the_files_check(path: Path, name: str) -> None:
    """The error names the missing file."""
    (path / name).unlink()
    check, text = failed_check(path)
    assert (check, f"{name} is missing" in text) == ("files", True)


def test_a_flipped_bit_in_the_graph_fails_the_sha256_check(path: Path) -> None:
    """The error contains both checksums."""
    graph = bytearray((path / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (path / "model.onnx").write_bytes(graph)
    check, text = failed_check(path)
    assert check == "sha256"
    assert json.loads((path / "manifest.json").read_text())["sha256"] in text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"null", b'"text"', b"\xff\xfe", b"{}", b'{"name": "digits"}']
)
def test_an_invalid_manifest_fails_the_manifest_check(path: Path, content: bytes) -> None:
    """Content that is not JSON, not an object, or an object without the fields is not a manifest."""
    (path / "manifest.json").write_bytes(content)
    check, text = failed_check(path)
    assert (check, "is not a manifest" in text) == ("manifest", True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "format is 2; this version reads 1"),
        ("name", "letters", "it describes letters/1 but is in"),
        ("version", 2, "it describes digits/2 but is in"),
        ("version", "one", "it describes digits/one but is in"),
        ("version", float("inf"), "is not a manifest"),
        ("version", None, "it describes digits/None but is in"),
        ("version", 1.7, "it describes digits/1.7 but is in"),
        ("version", True, "it describes digits/True but is in"),
        ("version", "1", "it describes digits/1 but is in"),
        ("ood_threshold", "high", "ood_threshold is 'high'; expected a number"),
        ("ood_threshold", True, "ood_threshold is True; expected a number"),
        ("ood_threshold", float("nan"), "NaN is not a finite number"),
        ("sha256", 5, "sha256 is 5; expected 64 hexadecimal digits"),
        ("sha256", "0" * 63, "expected 64 hexadecimal digits"),
        ("quality", {"loss": float("-inf")}, "-Infinity is not a finite number"),
        ("quality", {"loss": "low"}, "quality.loss is 'low'; expected a number"),
        ("quality", {"\ud800": 1}, "surrogates not allowed"),
        ("training", [[[float("nan")]]], "NaN is not a finite number"),
        ("golden_tolerance", 0.02, "golden_tolerance is 0.02; expected more than 0 and at most 0.01"),
        ("golden_tolerance", 0, "golden_tolerance is 0.0; expected more than 0"),
        ("golden_tolerance", float("nan"), "NaN is not a finite number"),
        ("golden_tolerance", "wide", "is not a manifest"),
        ("quality", [1], "is not a manifest"),
        ("labels", None, "expected a list of 1 to 1000 labels"),
        ("labels", [], "expected a list of 1 to 1000 labels"),
        ("labels", "0123456789", "expected a list of 1 to 1000 labels"),
        ("labels", list(map(str, range(1001))), "expected a list of 1 to 1000 labels"),
        ("labels", ["7"] * 10, "the same label occurs twice"),
        ("labels", [*"012345678", 9], "label '9': expected 1 to 256 printable characters"),
        ("labels", [*"012345678", " "], "expected 1 to 256 printable characters"),
        ("labels", [*"012345678", "9\n"], "expected 1 to 256 printable characters"),
        ("labels", [*"012345678", "\u202e9"], "expected 1 to 256 printable characters"),
        ("labels", [*"012345678", "9" * 257], "expected 1 to 256 printable characters"),
        ("labels", [*"012345678", "\ud800"], "surrogates not allowed"),
        ("labels", list("012"), "inputs and outputs are"),
        ("ink", "dark_on_light", "ink and framing are 'dark_on_light', 'mnist'"),
        ("framing", "crop", "ink and framing are 'light_on_dark', 'crop'"),
        ("inputs", [], "inputs and outputs are"),
        ("outputs", [{"name": "probabilities"}], "is not a manifest"),
        ("inputs", [{"name": "images", "dtype": "float32", "shape": [None, 28, 28, 1]}], "inputs and outputs are"),
        ("inputs", [{"name": "images", "dtype": "uint8", "shape": [None, 32, 32, 1]}], "inputs and outputs are"),
    ],
)
def test_a_wrong_field_fails_the_manifest_check(path: Path, field: str, value: object, message: str) -> None:
    """The error states what the field holds and what was expected."""
    edit_manifest(path, lambda described: described.update({field: value}))
    check, text = failed_check(path)
    assert check == "manifest"
    assert message in text


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ('"more": ' + "[" * 100_000 + "]" * 100_000, "recursion"),
        ('"more": ' + '{"a":' * 90_000 + "1" + "}" * 90_000, "recursion"),
        ('"more": ' + "9" * 5000, "digits"),
        ('"more": 1e999', "1e999 is not a finite number"),
        ('"version": 1, "version": 1', "a name occurs twice in an object"),
    ],
    ids=["deep list", "deep object", "long integer", "infinite", "twice"],
)
def test_hostile_json_fails_the_manifest_check(path: Path, addition: str, message: str) -> None:
    """Nested deeper than the parser can follow, numbers out of range, a name that occurs twice; the error is one short line."""
    written = (path / "manifest.json").read_text().rstrip().removesuffix("}")
    (path / "manifest.json").write_text(f"{written}, {addition}}}")
    check, text = failed_check(path)
    assert check == "manifest"
    assert message in text
    assert len(text) < 600
    assert "\n" not in text


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Act as another user if this is root, who can read every folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_read_fails_the_files_check(tmp_path: Path) -> None:
    """The error names the folder."""
    write_echo_bundle(tmp_path)
    (tmp_path / "digits").chmod(0)
    with unprivileged(), pytest.raises(BundleError, match="digits cannot be read: Permission denied"):
        model_folder.find_bundle(tmp_path, "digits")


def test_the_default_golden_tolerance_is_the_strict_one(path: Path) -> None:
    """Bundles written before the field existed are verified with a tolerance of 1e-4."""
    edit_manifest(path, lambda described: described.pop("golden_tolerance"))
    assert bundle.read_bundle(path).manifest.golden_tolerance == 1e-4


def test_unknown_fields_of_a_manifest_are_ignored(path: Path) -> None:
    """A later version may add fields to the manifest."""
    edit_manifest(path, lambda described: described.update(colour="blue"))
    assert bundle.read_bundle(path).manifest.labels == LABELS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(manifest().__dict__)), value=JSON)
@settings(max_examples=300)
def test_any_manifest_is_read_or_fails_a_check(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    """No value of any field raises another exception than BundleError."""
    path = tmp_path_factory.getbasetemp() / "digits" / "1"
    if not path.is_dir():
        write_echo_bundle(path.parents[1])
    original = (path / "manifest.json").read_bytes()
    try:
        edit_manifest(path, lambda described: described.update({field: value}))
        bundle.read_bundle(path)
    except BundleError as error:
        assert error.check in {"manifest", "sha256", "golden"}
    finally:
        (path / "manifest.json").write_bytes(original)


def write_golden(path: Path, **changes: object) -> None:
    """Write golden outputs with some arrays replaced."""
    arrays = {name: getattr(echo_golden(), name) for name in ("images", "probabilities", "ood_score")}
    content = io.BytesIO()
    np.savez(content, **(arrays | changes))
    (path / "golden.npz").write_bytes(content.getvalue())


def test_golden_arrays_that_expand_to_gigabytes_fail_the_golden_check(path: Path) -> None:
    """Compressed zeros are refused before they are decompressed."""
    with (path / "golden.npz").open("wb") as file:
        np.savez_compressed(file, **(vars(echo_golden()) | {"images": np.zeros((100_000, 28, 28, 1), np.uint8)}))
    assert (path / "golden.npz").stat().st_size < 1 << 17
    check, text = failed_check(path)
    assert (check, "it holds 78,40" in text) == ("golden", True)


def test_an_array_that_declares_more_than_the_file_holds_fails_the_golden_check(path: Path) -> None:
    """The shape in the header of an array is not trusted: no memory is allocated for it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 45,)})
    with zipfile.ZipFile(path / "golden.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    assert failed_check(path)[0] == "golden"


@pytest.mark.parametrize("length", [0, 1, 100, -1, -30])
def test_a_truncated_golden_file_fails_the_golden_check(path: Path, length: int) -> None:
    """A file truncated at any point is reported as damaged."""
    content = (path / "golden.npz").read_bytes()
    (path / "golden.npz").write_bytes(content[:length])
    check, text = failed_check(path)
    assert (check, "golden.npz" in text) == ("golden", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((4, 28, 28), np.uint8)},
        {"images": np.zeros((4, 28, 28, 1), np.float32)},
        {"images": np.zeros((0, 28, 28, 1), np.uint8)},
        {name: array[:0] for name, array in vars(echo_golden()).items()},
        {"images": np.uint8(7)},
        {"images": np.zeros((5, 28, 28, 1), np.uint8)},
        {"probabilities": np.zeros((4, 9), np.float32)},
        {"probabilities": np.zeros((4, 10), np.float64)},
        {"ood_score": np.zeros((4, 1), np.float32)},
        {"probabilities": np.array([None])},
    ],
    ids=lambda changes: "-".join(f"{name}-{np.shape(array)}" for name, array in changes.items()),
)
def test_golden_arrays_of_a_wrong_shape_or_type_fail_the_golden_check(path: Path, changes: dict[str, object]) -> None:
    """Shapes and types must be those of the graph, with at least one image; pickled objects are not loaded."""
    write_golden(path, **changes)
    assert failed_check(path)[0] == "golden"


def test_a_missing_golden_array_fails_the_golden_check(path: Path) -> None:
    """A golden.npz that lacks one of its arrays is damaged."""
    with (path / "golden.npz").open("wb") as file:
        np.savez(file, images=echo_golden().images)
    check, text = failed_check(path)
    assert (check, "golden.npz" in text) == ("golden", True)


def test_a_single_array_instead_of_golden_npz_fails_the_golden_check(path: Path) -> None:
    """A file in .npy format is not a golden.npz, although numpy can read it."""
    with (path / "golden.npz").open("wb") as file:
        np.save(file, echo_golden().images)
    assert failed_check(path)[0] == "golden"
