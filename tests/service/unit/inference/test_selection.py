"""The choice of the bundle to serve: by ``--precision``, and of the shadow version."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.errors import BundleError, SettingsError, StartupError
from digitserve.inference.model_folder import int8_folder
from digitserve.inference.selection import Int8Speed, Selection
from digitserve.settings import Settings
from support.bundles import write_echo_bundle
from support.digits import MODELS
from support.log_lines import capture_logs

FAST, SLOW = Int8Speed(is_fast=True, reason="it has VNNI"), Int8Speed(is_fast=False, reason="it has no VNNI")
RUN = {"preset": "echo", "seed": 1, "versions": {"onnx": "1"}}


def write_int8(models: Path, version: int, **changes: Any) -> Path:
    """Write the int8 bundle of a version."""
    training = {**RUN, "versions": {"onnx": "2"}, "precision": "int8", "quantization": {}, **changes}
    return write_echo_bundle(models, version, name="digits-int8", training=training)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 have an int8 bundle, 3 has none. That of 4 is from another run, and that of 5 is in float32."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3, 4, 5):
        write_echo_bundle(folder, version, training={**RUN, "precision": "float32"})
    write_int8(folder, 1)
    write_int8(folder, 2)
    write_int8(folder, 4, seed=2)
    write_int8(folder, 5, precision="float32")
    write_int8(folder, 9)
    return folder


def select(models: Path, int8: Int8Speed = FAST, **settings: Any) -> Selection:
    """Return the selection of a service with these settings."""
    return Selection(Settings(models=models, **settings), int8)


def test_without_the_setting_the_bundle_itself_is_served(models: Path) -> None:
    """Whatever the processor is, and whatever the precision of the bundle; nothing is logged."""
    with capture_logs() as logs:
        for name, precision in (("digits", "float32"), ("digits-int8", "int8")):
            bundle = select(models, model=name, model_version=2).served()
            assert (str(bundle), bundle.manifest.precision, bundle.choice) == (f"{name}/2", precision, "")
    assert not logs


@given(version=st.integers(1, 5), precision=st.sampled_from(["float32", "int8", "auto"]), is_fast=st.booleans())
def test_the_precision_that_is_served(models: Path, version: int, precision: str, is_fast: bool) -> None:
    """float32 is always as pinned. int8 is int8, or refused with the reason. auto is int8 if the processor is fast and the version
    has an int8 bundle, otherwise float32; it states the reason, and never serves another version or another network.
    """
    selection = select(models, FAST if is_fast else SLOW, precision=precision, model_version=version)
    has_int8 = version in {1, 2}
    problem = (
        f"has no digits-int8/{version}" if version == 3 else f"digits-int8/{version} is not digits/{version} in int8"
    )
    if precision == "int8" and not has_int8:
        with pytest.raises(SettingsError, match=f"--precision int8: .*{problem}"):
            selection.served()
        return
    with capture_logs() as logs:
        bundle = selection.served()
    int8 = precision == "int8" or (precision == "auto" and is_fast and has_int8)
    assert str(bundle) == f"digits{'-int8' * int8}/{version}"
    if precision != "auto":
        assert bundle.choice == "pinned"
    elif not is_fast:
        assert bundle.choice == "auto: it has no VNNI"
    elif has_int8:
        assert bundle.choice == "auto: it has VNNI"
    else:
        assert bundle.choice.startswith("auto: ") and problem in bundle.choice
    falls_back = precision == "auto" and is_fast and not has_int8
    assert [log["log_level"] for log in logs] == ["warning"] * falls_back + ["info"]
    assert (logs[-1]["bundle"], logs[-1]["reason"]) == (str(bundle), bundle.choice)


def test_a_model_that_is_int8_itself(models: Path) -> None:
    """With --model digits-int8, int8 and auto serve it, also without VNNI; float32 refuses it."""
    for int8 in (FAST, SLOW):
        assert (
            str(select(models, int8, model="digits-int8", model_version=1, precision="int8").served())
            == "digits-int8/1"
        )
        bundle = select(models, int8, model="digits-int8", model_version=1, precision="auto").served()
        assert (str(bundle), bundle.choice) == ("digits-int8/1", "auto: digits-int8/1 is in int8")
    with pytest.raises(SettingsError, match="--precision float32: digits-int8/1 is in int8; expected a float32 model"):
        select(models, model="digits-int8", model_version=1, precision="float32").served()


def test_an_int8_bundle_that_is_damaged_is_not_replaced_silently(tmp_path: Path) -> None:
    """A bundle that exists and fails a check is an error with auto too, on a processor where it would be served."""
    write_echo_bundle(tmp_path, training=RUN)
    (write_int8(tmp_path, 1) / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="check 'sha256' failed: .*digits-int8/1"):
        select(tmp_path, precision="auto").served()
    assert str(select(tmp_path, SLOW, precision="auto").served()) == "digits/1"


def test_version_and_active_file_are_those_of_the_model(models: Path, tmp_path: Path) -> None:
    """The active file of digits and the highest version of digits count, not those of digits-int8."""
    active = tmp_path / "active"
    active.write_text("2")
    assert str(select(models, precision="int8", active_file=active).served()) == "digits-int8/2"
    assert str(select(models, precision="auto").served()) == "digits/5"  # digits-int8/9 exists


def test_one_bundle_as_the_folder_of_the_models(models: Path) -> None:
    """It has no int8 bundle: auto serves it, and int8 does only if it is in int8 itself."""
    bundle = select(models / "digits" / "1", precision="auto").served()
    assert (str(bundle), bundle.choice) == ("digits/1", f"auto: {models}/digits/1 has no digits-int8/1")
    assert str(select(models / "digits-int8" / "1", precision="int8").served()) == "digits-int8/1"
    with pytest.raises(SettingsError, match="--precision int8: .* has no digits-int8/1"):
        select(models / "digits" / "1", precision="int8").served()


def test_clients_see_the_same_name_whatever_is_chosen(models: Path) -> None:
    """With --precision it is that of --model, unless --served-name is given. One bundle as the folder keeps its name."""
    for precision in ("float32", "int8", "auto"):
        assert select(models, precision=precision).name_for_clients == "digits"
        assert select(models, precision=precision, served_name="mine").name_for_clients == "mine"
    assert select(models, model="digits-int8").name_for_clients is None
    assert select(models / "digits" / "1", precision="auto").name_for_clients is None


@pytest.mark.parametrize("training", [["a list"], {}, {"precision": {}}, {"precision": "\x1b[2J"}])
def test_bundles_of_other_tools(tmp_path: Path, training: Any) -> None:
    """The format does not define ``training``: without a valid precision it is not known, and the bundle can be served."""
    folder = write_echo_bundle(tmp_path, training=RUN)
    described = json.loads((folder / "manifest.json").read_text()) | {"training": training}
    (folder / "manifest.json").write_text(json.dumps(described))
    write_int8(tmp_path, 1)
    for precision in ("float32", "auto"):
        bundle = select(tmp_path, precision=precision).served()
        assert (str(bundle), bundle.manifest.precision) == ("digits/1", "")


def test_the_shipped_models_belong_together() -> None:
    """The highest versions of ``digits`` and ``digits-int8`` are of the same number and the same training run, so that
    ``--precision`` finds both.
    """
    assert select(MODELS, precision="float32").served().manifest.precision == "float32"
    bundle = select(MODELS, precision="int8").served()
    assert (bundle.manifest.precision, bundle.choice) == ("int8", "pinned")
    assert int8_folder(MODELS, "digits", bundle.manifest.version) == MODELS / str(bundle)


def test_a_shadow_version_has_the_precision_that_would_be_served(models: Path) -> None:
    """A version alone is read as if it were activated; with a name it is exactly that bundle."""
    for int8, expected in ((FAST, "digits-int8/1"), (SLOW, "digits/1")):
        assert str(select(models, int8, precision="auto", shadow="1").shadow()) == expected
        assert str(select(models, int8, precision="auto", shadow="digits/1").shadow()) == "digits/1"
    with pytest.raises(StartupError, match="--shadow: --precision int8: .* has no digits-int8/3"):
        select(models, precision="int8", shadow="3").shadow()


def test_the_shadow_version_of_a_setting(tmp_path: Path) -> None:
    """A version belongs to the model that is served, unless a name precedes it; without the setting there is none."""
    write_echo_bundle(tmp_path, 3)
    write_echo_bundle(tmp_path, 2, name="letters")
    assert select(tmp_path).shadow() is None
    assert str(select(tmp_path, shadow="3").shadow()) == "digits/3"
    assert str(select(tmp_path, shadow="letters/2").shadow()) == "letters/2"


@pytest.mark.parametrize(
    ("shadow", "message"),
    [
        ("5", "--shadow: check 'files' failed: model 'digits' has no version 5; available: 3"),
        ("letters/3", "--shadow: check 'files' failed: no version of model 'letters'"),
        ("letters", "--shadow: got 'letters'; expected a version such as 5, or a name and a version such as digits/5"),
        ("../digits/3", "--shadow: got"),
        ("", "--shadow: got"),
    ],
)
def test_a_shadow_version_that_cannot_be_served_is_a_refusal_to_start(
    tmp_path: Path, shadow: str, message: str
) -> None:
    """The message names the flag, and says what is expected or available."""
    write_echo_bundle(tmp_path, 3)
    with pytest.raises(StartupError, match=message):
        select(tmp_path, shadow=shadow).shadow()
