"""What a search may vary: ranges that hold the preset itself, and presets that can be built wherever they are drawn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve_training.errors import RunError
from digitserve_training.model.layers import Conv, Dense, Dropout, Flatten, Residual
from digitserve_training.model.preset_files import preset_from_json, preset_to_json
from digitserve_training.model.presets import PRESETS, Augmentation, Preset, Recipe
from digitserve_training.tune.space import GROUPS, Range, ranges, vary

ALL = tuple(GROUPS)
NESTED = Preset(
    name="nested",
    summary="",
    layers=(Conv(6), Residual((Dropout(0.1), Conv(24), Dropout(0.2))), Dropout(0.3), Flatten(), Dense(10)),
    recipe=Recipe(epochs=1),
    augmentation=Augmentation(shift_px=2.0, blur=0.7, corrupted=0.4),
)


@pytest.mark.parametrize("preset", [*PRESETS.values(), NESTED], ids=lambda preset: preset.name)
def test_the_base_is_in_reach(preset: Preset) -> None:
    """With the base's own values, the first trial trains the preset itself, under another name."""
    drawn = ranges(preset, ALL)

    assert all(of.low <= of.base <= of.high for of in drawn.values())
    assert vary(preset, {name: of.base for name, of in drawn.items()}) == replace(preset, name=f"{preset.name}-tuned")
    assert vary(preset, {}) == replace(preset, name=f"{preset.name}-tuned")


def within(of: Range) -> st.SearchStrategy[float]:
    """Draw any value of a range."""
    return st.floats(of.low, of.high)


@given(data=st.data(), preset=st.sampled_from([*PRESETS.values(), NESTED]))
def test_whatever_is_drawn_can_be_built(data: st.DataObject, preset: Preset) -> None:
    """Any values within the ranges make a preset that reads as one, which checks its network and its shares."""
    drawn = vary(preset, {name: data.draw(within(of), name) for name, of in ranges(preset, ALL).items()})

    assert preset_from_json(preset_to_json(drawn), "drawn") == drawn


def test_each_value_goes_where_it_belongs() -> None:
    """Rates are rounded to three digits; each Dropout, nested ones too, gets its own; shares stay shares."""
    values = {"learning_rate": 0.00123456, "weight_decay": 0.0456789, "augmentation": 2.0, "corrupted": 0.5}
    rates = {"dropout_1": 0.11111, "dropout_2": 0.22222, "dropout_3": 0.33333}

    varied = vary(NESTED, values | rates)

    assert (varied.recipe.learning_rate, varied.recipe.weight_decay) == (0.00123, 0.0457)
    assert varied.augmentation == Augmentation(shift_px=4.0, blur=1.0, corrupted=0.5)
    assert varied.layers[1:3] == (Residual((Dropout(0.111), Conv(24), Dropout(0.222))), Dropout(0.333))


@pytest.mark.parametrize(
    ("width", "layers"),
    [
        (0.5, (Conv(3), Conv(16), Conv(32), Dense(5))),
        (1.0, (Conv(6), Conv(24), Conv(64), Dense(10))),
        (1.25, (Conv(8), Conv(32), Conv(80), Dense(12))),
        (2.0, (Conv(12), Conv(48), Conv(128), Dense(20))),
    ],
)
def test_width(width: float, layers: tuple[Conv | Dense, ...]) -> None:
    """Filters of 16 and more stay multiples of 16; fewer filters and dense units take any number; 1 changes nothing."""
    base = replace(NESTED, layers=(Conv(6), Conv(24), Conv(64), Dense(10)))

    assert vary(base, {"width": width}).layers == layers


def test_ten_dropouts_keep_their_order() -> None:
    """The tenth Dropout gets the tenth rate, not the second."""
    base = replace(NESTED, layers=tuple(Dropout(number / 100) for number in range(1, 13)))

    drawn = ranges(base, ("dropout",))

    assert vary(base, {name: of.base for name, of in drawn.items()}).layers == base.layers


def test_only_what_is_asked_for_varies() -> None:
    """Groups that are not named add no range, and what a preset lacks adds none either."""
    assert set(ranges(NESTED, ("learning-rate", "dropout"))) == {"learning_rate", "dropout_1", "dropout_2", "dropout_3"}
    assert set(ranges(PRESETS["lenet5"], ALL)) == {"learning_rate", "weight_decay", "width"}


def test_nothing_to_vary() -> None:
    """A search over nothing is refused."""
    with pytest.raises(RunError, match="preset 'lenet5' has no dropout and no augmentation to vary"):
        ranges(PRESETS["lenet5"], ("dropout", "augmentation"))
