"""Search space: ranges contain the base preset, and every drawn preset can be built."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve_training.errors import RunError
from digitserve_training.model.layers import Conv, Dense, Dropout, Flatten, Layer, MaxPool, Residual, costs
from digitserve_training.model.preset_files import preset_from_json, preset_to_json
from digitserve_training.model.presets import PRESETS, Augmentation, Preset, Recipe
from digitserve_training.tune.space import GROUPS, Range, default_groups, search_ranges, with_values

ALL = tuple(GROUPS)
NESTED = Preset(
    name="nested",
    summary="",
    layers=(Conv(6), Residual((Dropout(0.1), Conv(24), Dropout(0.2))), Dropout(0.3), Flatten(), Dense(10)),
    recipe=Recipe(epochs=1),
    augmentation=Augmentation(shift_px=2.0, blur=0.7, corrupted=0.4),
)


@pytest.mark.parametrize("preset", [*PRESETS.values(), NESTED], ids=lambda preset: preset.name)
def test_the_base_is_in_range(preset: Preset) -> None:
    """With the base values the result is the preset itself, under another name."""
    ranges = search_ranges(preset, ALL)
    tuned = replace(preset, name=f"{preset.name}-tuned")

    assert all(of.low <= of.base <= of.high for of in ranges.values())
    assert with_values(preset, {name: of.base for name, of in ranges.items()}) == tuned
    assert with_values(preset, {}) == tuned


def values_in(of: Range) -> st.SearchStrategy[float]:
    """Return a strategy for all values of a range."""
    if of.step is None:
        return st.floats(of.low, of.high)
    step = of.step
    return st.integers(0, round((of.high - of.low) / step)).map(lambda number: of.low + number * step)


@given(data=st.data(), preset=st.sampled_from([*PRESETS.values(), NESTED]))
def test_every_drawn_preset_is_valid(data: st.DataObject, preset: Preset) -> None:
    """Any values within the ranges give a valid preset: decoding its JSON checks the network and the shares."""
    values = {name: data.draw(values_in(of), name) for name, of in search_ranges(preset, ALL).items()}
    drawn = with_values(preset, values)

    assert preset_from_json(preset_to_json(drawn), "drawn") == drawn


@given(data=st.data(), name=st.sampled_from(["compact", "small", "large"]))
def test_drawn_shapes_suit_onnxruntime(data: st.DataObject, name: str) -> None:
    """Drawn networks have multiples of 16 filters, and their last convolution covers the whole image, as in the base."""
    preset = PRESETS[name]
    values = {name: data.draw(values_in(of), name) for name, of in search_ranges(preset, ("shape",)).items()}
    layers = with_values(preset, values).layers

    before_flatten = list(costs(layers))[layers.index(Flatten()) - 1]
    assert before_flatten.output[:2] == (1, 1)
    assert all(layer.filters % 16 == 0 for layer in layers if isinstance(layer, Conv))


def test_each_value_of_a_shape_is_applied() -> None:
    """Convolutions get their filters, kernel, stride, padding and depth; kernels and pooling that no longer fit are changed."""
    base = replace(
        NESTED,
        layers=(
            Conv(16, kernel=5, stride=2), Conv(32), Conv(1024, batch_norm=True), Conv(64, stride=2), MaxPool(2),
            Conv(128, kernel=2, padding="valid"), Flatten(),
        ),
    )  # fmt: skip
    assert with_values(base, {"depth_1": 1}).layers == base.layers

    values = {"filters_1": 32, "kernel_1": 4, "stride_1": 3, "padding_1": 0, "depth_1": 2}
    values |= {"depth_2": 0, "filters_3": 1040, "kernel_3": 1, "stride_4": 9, "padding_4": 0, "kernel_4": 5}
    shaped = with_values(base, values).layers

    # The sides are 9, 9, 9, 1 and 1: without pooling, and with a kernel of 1 in place of 2.
    assert shaped == (
        Conv(32, kernel=4, stride=3, padding="valid"),
        Conv(32, kernel=1, padding="valid"),
        Conv(1040, kernel=1, batch_norm=True),
        Conv(64, kernel=5, stride=9, padding="valid"),
        Conv(128, kernel=1, padding="valid"),
        Flatten(),
    )


def test_each_value_is_applied() -> None:
    """Values are rounded to three digits, each Dropout gets its own rate, even in a Residual; shares are at most 1."""
    values = {"learning_rate": 0.00123456, "weight_decay": 0.0456789, "augmentation": 2.0, "corrupted": 0.5}
    rates = {"dropout_1": 0.11111, "dropout_2": 0.22222, "dropout_3": 0.33333}

    varied = with_values(NESTED, values | rates)

    assert (varied.recipe.learning_rate, varied.recipe.weight_decay) == (0.00123, 0.0457)
    assert varied.augmentation == Augmentation(shift_px=4.0, blur=1.0, corrupted=0.5)
    assert varied.layers[1:3] == (Residual((Dropout(0.111), Conv(24), Dropout(0.222))), Dropout(0.333))


@pytest.mark.parametrize(
    ("width", "layers"),
    [
        (0.5, (Conv(3), Conv(16), Conv(32), Flatten(), Dense(5))),
        (1.0, (Conv(6), Conv(24), Conv(64), Flatten(), Dense(10))),
        (1.25, (Conv(8), Conv(32), Conv(80), Flatten(), Dense(12))),
        (2.0, (Conv(12), Conv(48), Conv(128), Flatten(), Dense(20))),
    ],
)
def test_width(width: float, layers: tuple[Layer, ...]) -> None:
    """16 and more filters stay multiples of 16; fewer filters and dense units are scaled freely; 1 changes nothing."""
    base = replace(NESTED, layers=(Conv(6), Conv(24), Conv(64), Flatten(), Dense(10)))

    assert with_values(base, {"width": width}).layers == layers


def test_ten_dropouts_keep_their_order() -> None:
    """Rates are applied in numeric order, so the tenth Dropout gets the tenth rate and not the second."""
    base = replace(NESTED, layers=tuple(Dropout(number / 100) for number in range(1, 13)))

    ranges = search_ranges(base, ("dropout",))

    assert with_values(base, {name: of.base for name, of in ranges.items()}).layers == base.layers


def test_only_the_named_groups_vary() -> None:
    """Groups that are not named, or that do not apply to the preset, add no range."""
    names = {"learning_rate", "dropout_1", "dropout_2", "dropout_3"}
    assert set(search_ranges(NESTED, ("learning-rate", "dropout"))) == names
    assert set(search_ranges(PRESETS["lenet5"], default_groups(["loss"]))) == {"learning_rate", "weight_decay", "width"}
    # Six filters are no multiple of 16; the second convolution has a multiple, and no stride.
    assert set(search_ranges(PRESETS["lenet5"], default_groups(["loss", "time"]))) == {
        "kernel_1", "padding_1", "depth_1", "filters_2", "kernel_2", "padding_2", "depth_2",
    }  # fmt: skip


def test_nothing_to_vary() -> None:
    """A search is rejected if none of its groups applies to the preset."""
    with pytest.raises(RunError, match="preset 'lenet5' has no dropout and no augmentation to vary"):
        search_ranges(PRESETS["lenet5"], ("dropout", "augmentation"))
    with pytest.raises(RunError, match="preset 'resnet8' has no shape to vary"):
        search_ranges(PRESETS["resnet8"], ("shape",))
