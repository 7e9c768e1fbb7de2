"""Presets as JSON: encoding loses nothing, and a preset whose network cannot be built is rejected."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve_training.errors import RunError
from digitserve_training.model.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Residual,
)
from digitserve_training.model.preset_files import (
    OLD_NAMES,
    SHARES,
    find_preset,
    preset_from_json,
    preset_to_dict,
    preset_to_json,
)
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS, Augmentation, Preset, Recipe

SMALL = Preset(
    name="small",
    summary="for tests",
    layers=(Conv(4, stride=2), Residual((Conv(8, stride=2), Conv(8))), Dropout(0.25), Flatten(), Dense(7)),
    recipe=Recipe(epochs=2),
    augmentation=Augmentation(shift_px=1.0),
)
"""Layers by index: 0 Conv, 1 Residual, 2 Dropout, 3 Flatten, 4 Dense."""


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_built_in_presets_round_trip(preset: Preset) -> None:
    """Decoding the JSON of a built-in preset gives an equal preset."""
    assert preset_from_json(preset_to_json(preset), "text") == preset


SHARE = st.floats(0, 1)
CONV = st.builds(
    Conv, st.integers(1, 64), kernel=st.integers(1, 7), stride=st.integers(1, 2), batch_norm=st.booleans(),
    activation=st.sampled_from(["relu", "tanh", "linear"]),
)  # fmt: skip
EARLY = st.one_of(
    CONV, st.builds(BatchNorm), st.builds(Dropout, SHARE), st.builds(lambda inner: Residual((inner,)), CONV)
)
LATE = st.one_of(st.builds(Dense, st.integers(1, 512)), st.builds(Dropout, SHARE))
LAYERS = st.builds(
    lambda early, middle, late: (*early, middle, *late),
    st.lists(EARLY, max_size=4),
    st.one_of(st.builds(Flatten), st.builds(GlobalAveragePool)),
    st.lists(LATE, max_size=3),
)
AUGMENTATIONS = st.builds(Augmentation, **{field.name: SHARE for field in fields(Augmentation)})


@given(layers=LAYERS, augmentation=AUGMENTATIONS, summary=st.text(), weight_decay=st.floats(0, 1e300))
def test_any_preset_round_trips(
    layers: tuple[Layer, ...], augmentation: Augmentation, summary: str, weight_decay: float
) -> None:
    """Decoding the JSON of any valid preset gives an equal preset."""
    preset = Preset("any", summary, layers, replace(SMALL.recipe, weight_decay=weight_decay), augmentation)

    assert preset_from_json(preset_to_json(preset), "text") == preset


def test_defaults_may_be_omitted() -> None:
    """Fields that a file omits have their default values."""
    layers: list[dict[str, Any]] = [{"kind": "Conv", "filters": 8}, {"kind": "Flatten"}]
    text = json.dumps({"name": "a", "summary": "", "layers": layers, "recipe": {"epochs": 3}, "augmentation": {}})

    assert preset_from_json(text, "text") == Preset("a", "", (Conv(8), Flatten()), Recipe(epochs=3), Augmentation())


def test_old_names_of_fields_are_read() -> None:
    """Presets in checkpoints and files of earlier versions have other names for some fields of the recipe."""
    document = preset_to_dict(SMALL)
    values = {"averaging": 0.5, "mixed": 0.25, "paper": 0.125, "teaching": 1.0}
    document["recipe"] = {name: value for name, value in document["recipe"].items() if name not in OLD_NAMES.values()}

    preset = preset_from_json(json.dumps(document | {"recipe": document["recipe"] | values}), "text")

    assert OLD_NAMES.keys() == values.keys()
    assert preset.recipe == replace(SMALL.recipe, ema_momentum=0.5, mixup=0.25, scanned=0.125, distillation=1.0)


def test_presets_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    """``find_preset`` takes a built-in name, a file's path, or None for the default preset."""
    path = tmp_path / "x.json"
    path.write_text(preset_to_json(SMALL))

    assert find_preset(None) == PRESETS[DEFAULT_PRESET]
    assert find_preset("tiny") == PRESETS["tiny"]
    assert find_preset(str(path)) == SMALL


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["layer"], 1, r"layer is unknown; expected only name, summary"),
        (["name"], "../etc", r"name is '\.\./etc'; expected a plain name"),
        (["summary"], 5, r"summary is 5; expected text"),
        (["recipe"], None, r"recipe is None; expected an object"),
        (["recipe", "epochs"], 0, r"recipe\.epochs is 0; expected a whole number of at least 1"),
        (["recipe", "epochs"], True, r"recipe\.epochs is True; expected a whole number"),
        (["recipe", "batch_size"], 12.5, r"recipe\.batch_size is 12\.5; expected a whole number"),
        (["recipe", "weight_decay"], float("nan"), r"weight_decay is nan; expected a finite number of at least 0"),
        (["recipe", "weight_decay"], 10**400, r"weight_decay is 10+; expected a finite number"),
        (["recipe", "learning_rate"], "1", r"learning_rate is '1'; expected a finite number"),
        (["recipe", "schedule"], "step", r"schedule is 'step'; expected one of 'cosine', 'constant'"),
        (["recipe", "validation"], 0, r"recipe\.validation is 0\.0; expected more than 0 and less than 1"),
        (["recipe", "certain_outliers"], 0.5, r"recipe\.certain_outliers is 0\.5; expected 0 without outliers"),
        (["recipe", "momentum"], 0.9, r"recipe\.momentum is unknown; expected only epochs, batch_size"),
        (["augmentation", "thin"], 1.5, r"augmentation\.thin is 1\.5; expected a number from 0 to 1"),
        (["augmentation", "shift_px"], -1, r"augmentation\.shift_px is -1; expected a finite number of at least 0"),
        (["layers"], {}, r"layers is \{\}; expected a list"),
        (["layers", 0, "kind"], "Convolution", r"layers\[0\]\.kind is 'Convolution'; expected one of Conv, MaxPool"),
        (["layers", 0, "kind"], ["Conv"], r"layers\[0\]\.kind is \['Conv'\]; expected one of"),
        (["layers", 0, "filters"], -8, r"layers\[0\]\.filters is -8; expected a whole number"),
        (["layers", 0, "batch_norm"], 1, r"layers\[0\]\.batch_norm is 1; expected true or false"),
        (["layers", 0, "padding"], "full", r"layers\[0\]\.padding is 'full'; expected one of 'same', 'valid'"),
        (["layers", 1, "inner", 1, "units"], 3, r"layers\[1\]\.inner\[1\]\.units is unknown; expected only filters"),
        (["layers", 2, "rate"], 1.1, r"layers\[2\]\.rate is 1\.1; expected a number from 0 to 1"),
    ],
)
def test_invalid_values_are_rejected(path: list[Any], value: Any, message: str) -> None:
    """Unknown fields, wrong types, invalid values: the error names the place, the value and what was expected."""
    edited = preset_to_dict(SMALL)
    place: Any = edited
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    with pytest.raises(RunError, match=f"^mine.json is not a preset: .*{message}"):
        preset_from_json(json.dumps(edited), "mine.json")


def test_missing_fields_are_named() -> None:
    """A field without a default cannot be omitted."""
    edited = preset_to_dict(SMALL)
    del edited["recipe"]["epochs"]

    with pytest.raises(RunError, match=r"recipe\.epochs is missing; expected a value"):
        preset_from_json(json.dumps(edited), "mine.json")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Dense(5),), r"layers\[0\] is Dense after a tensor of \(28, 28, 1\); expected Flatten"),
        ((Conv(4),), r"layers\[1\] is Dense after a tensor of \(28, 28, 4\)"),
        ((Flatten(), Conv(4)), r"layers\[1\] is Conv after a tensor of \(784,\)"),
        ((GlobalAveragePool(), GlobalAveragePool()), r"layers\[1\] is GlobalAveragePool after a tensor of \(1,\)"),
        ((Conv(4, kernel=29, padding="valid"), Flatten()), r"layers\[0\] is Conv with output \(0, 0, 4\)"),
        ((MaxPool(15), MaxPool(2), Flatten()), r"layers\[1\] is MaxPool with output \(0, 0, 1\)"),
        ((Residual(()), Flatten()), r"layers\[0\] is Residual that adds \(28, 28, 1\) to \(\)"),
        ((Residual((Flatten(),)),), r"layers\[0\] is Residual that adds \(28, 28, 1\) to \(784,\)"),
        ((Residual((Conv(4, padding="valid"),)), Flatten()), r"that adds \(14, 14, 4\) to \(26, 26, 4\)"),
        ((Residual((Residual((Dense(3),)),)), Flatten()), r"layers\[0\]\.inner\[0\]\.inner\[0\] is Dense after"),
    ],
)
def test_networks_that_cannot_be_built_are_rejected(layers: tuple[Layer, ...], message: str) -> None:
    """Layers whose shapes do not fit are rejected when they are read; the error has the place and the shapes."""
    with pytest.raises(RunError, match=message):
        preset_from_json(preset_to_json(replace(SMALL, layers=layers)), "mine.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null", '"compact"'])
def test_other_content_is_rejected(text: str) -> None:
    """A text that is not JSON, or is not a JSON object, raises ``RunError`` and no other exception."""
    with pytest.raises(
        RunError, match=r"mine\.json is not a preset: (it is not JSON|the document is .*; expected an object)"
    ):
        preset_from_json(text, "mine.json")


@pytest.mark.parametrize(
    ("name", "message"), [("nix", "no preset 'nix'; presets: compact"), ("nix.json", "No such file")]
)
def test_missing_presets(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not built in, or a file that does not exist, is rejected."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=message):
        find_preset(name)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is rejected."""
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(RunError, match="cannot read a preset from .*x.json"):
        find_preset(str(tmp_path / "x.json"))


def test_shares_are_fields() -> None:
    """Each name in ``SHARES`` is a field of a recipe, an augmentation or a layer."""
    kinds = (Recipe, Augmentation, *get_args(Layer))
    names = {field.name for kind in kinds for field in fields(kind)}
    assert names >= SHARES
    assert names >= set(OLD_NAMES.values()) and not names & OLD_NAMES.keys()
