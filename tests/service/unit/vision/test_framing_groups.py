"""Images of one size are framed together: each result is that of the image alone, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.types import Gray, Ink
from digitserve.vision import framing, placement
from digitserve.vision.framing import frame, frame_all, frame_all_colors, frame_colors
from digitserve.vision.views import Framed, View

SIZES = [(28, 28), (28, 28), (64, 64), (64, 64), (40, 70), (67, 100), (128, 128), (130, 201), (1, 5), (2, 2), (300, 1)]


def _ring(height: int, width: int, rng: np.random.Generator) -> Gray:
    """Draw a slanted 0 with soft edges, light on dark, of a random size at a random place."""
    y, x = np.mgrid[0:height, 0:width]
    v = (y - height * rng.uniform(0.4, 0.6)) / (height * rng.uniform(0.2, 0.6))
    u = (x - width * rng.uniform(0.4, 0.6)) / (width * rng.uniform(0.15, 0.5)) + rng.uniform(-0.4, 0.4) * v
    distance = np.abs(np.hypot(u, v) - 0.75)
    ring: Gray = (255 * ((0.25 - distance) * 8).clip(0, 1)).astype(np.uint8)
    return ring


def _draw(kind: int, height: int, width: int, rng: np.random.Generator) -> Gray:
    """Draw a digit or something else: clean, on uneven paper, faint, cut, in a frame, on a table; or blank, or noise."""
    ink = _ring(height, width, rng) / 255
    paper = (
        200 - 60 * np.linspace(0, 1, width) * rng.uniform(0, 1) + rng.normal(0, rng.choice([0, 2, 8]), (height, width))
    )
    match kind:
        case 0:
            image = 255 * ink
        case 1:
            image = paper * (1 - 0.7 * ink)
        case 2:
            image = 90 + 30 * ink + rng.normal(0, 4, (height, width))
        case 3:
            image = np.full((height, width), 77.0)
        case 4:
            image = rng.integers(0, 256, (height, width)).astype(float)
        case 5:  # a frame, or the lines of a form
            image = paper * (1 - 0.7 * ink)
            image[:2] = image[-2:] = image[:, :2] = 20
        case 6:  # a sheet on a dark table
            image = np.full((height, width), 30.0)
            rows, columns = slice(height // 8, height - height // 6), slice(width // 6, width - width // 8)
            image[rows, columns] = (paper * (1 - 0.7 * ink))[rows, columns]
        case _:  # two shapes
            image = 255 * np.maximum(ink, np.roll(ink, width // 2, axis=1))
    gray: Gray = image.clip(0, 255).astype(np.uint8)
    return ~gray if rng.random() < 0.3 else gray


def _values(framed: Framed) -> tuple[object, ...]:
    return (framed.pixels.tolist(), *framed[1:])


@settings(max_examples=100)
@given(
    size=st.sampled_from(SIZES),
    kinds=st.lists(st.integers(0, 7), min_size=1, max_size=7),
    ink=st.sampled_from(Ink),
    seed=st.integers(0, 2**16),
)
def test_a_group_is_framed_as_each_image_alone(size: tuple[int, int], kinds: list[int], ink: Ink, seed: int) -> None:
    """Pixels, verdicts, polarity, box and what was cut off do not depend on the other images."""
    rng = np.random.default_rng(seed)
    images = np.stack([_draw(kind, *size, rng) for kind in kinds])

    framed = frame_all(images, ink)

    assert [_values(one) for one in framed] == [_values(frame(image, ink)) for image in images]


def test_a_large_group_is_framed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than fit into a step keep their order; no step has more pixels than the limit."""
    images = np.stack([_ring(20, 20, np.random.default_rng(seed)) for seed in range(25)])
    frame_group, sizes = framing._frame_group, []

    def counting(views: list[View], gray: Gray) -> list[Framed]:
        sizes.append(len(views))
        return frame_group(views, gray)

    monkeypatch.setattr(framing, "_frame_group", counting)
    monkeypatch.setattr(framing, "MAX_GROUP_PIXELS", 10 * 400)

    framed = frame_all(images, Ink.LIGHT_ON_DARK)

    assert sizes == [10, 10, 5]
    assert [_values(one) for one in framed] == [_values(frame(image, Ink.LIGHT_ON_DARK)) for image in images]


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_framed_together_as_alone(channels: int) -> None:
    """Images whose ink is seen in the luma, in one channel, or in their alpha may be in one group."""
    rng = np.random.default_rng(4)
    images = np.full((4, 40, 40, channels), 255, np.uint8)
    for image, channel in zip(
        images, (slice(0, 3), slice(2, 3), slice(channels - 1, channels), slice(0, 3)), strict=True
    ):
        image[..., channel] = 255 - _ring(40, 40, rng)[..., None]

    for ink in Ink:
        framed = frame_all_colors(images, ink)

        assert [_values(one) for one in framed] == [_values(frame_colors(image, ink)) for image in images]


@settings(max_examples=100)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 2**16), symmetric=st.booleans())
def test_the_centre_of_mass_does_not_depend_on_how_it_is_summed(
    height: int, width: int, seed: int, symmetric: bool
) -> None:
    """Sums by a matrix product place ink as sums in a fixed order do, also where the centre is between two pixels."""
    strength = np.random.default_rng(seed).random((height, width), np.float32) + np.float32(0.01)
    if symmetric:
        strength += strength[::-1]
        strength += strength[:, ::-1]
    with pytest.MonkeyPatch.context() as patch:
        placed = placement._center(strength, grown=False)
        patch.setattr(placement, "MAX_SUM_ERROR", 0.5)  # always in a fixed order
        in_order = placement._center(strength, grown=False)

    assert (placed == in_order).all()
