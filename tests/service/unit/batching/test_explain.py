"""Answers to requests with ``explain``: what preparation did with each image."""

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve.batching.explain import explain
from digitserve.batching.prepare import GrayImages, prepare
from digitserve.protocol.encoder import Preparation
from digitserve.types import Framing, Ink
from digitserve.vision.framing import frame
from support.framing_cases import THREE, draw_strokes


def drawn(side: int) -> NDArray[np.uint8]:
    """Return a thick vertical stroke, light on dark: uint8[side,side]."""
    image = np.zeros((side, side), np.uint8)
    image[side // 5 : side - side // 5, side // 2 - side // 14 : side // 2 + side // 14] = 255
    return image


def request(images: NDArray[np.uint8], ink: Ink, framing: Framing) -> GrayImages:
    """Return a request of grey images."""
    num_images, height, width = images.shape
    return GrayImages(images.tobytes(), num_images, height, width, ink, framing)


def explained(images: NDArray[np.uint8], ink: Ink, framing: Framing) -> list[Preparation]:
    """Prepare images between others in one batch, and explain them."""
    ours = request(images, ink, framing)
    plain = request(np.full((2, 28, 28), 9, np.uint8), Ink.LIGHT_ON_DARK, Framing.AS_IS)
    framed = request(np.full((1, 50, 50), 9, np.uint8), Ink.AUTO, Framing.MNIST)
    batch = prepare([(plain, 0, 2), (framed, 0, 1), (ours, 0, len(images)), (framed, 0, 1)])
    return explain(ours, 0, len(images), batch, 3)


@pytest.mark.parametrize("ink", [Ink.LIGHT_ON_DARK, Ink.AUTO])
def test_an_image_used_as_it_is_has_its_own_pixels(ink: Ink) -> None:
    """Pixels are those of the request; there is no box, because framing did not look for one."""
    image = drawn(28)
    (preparation,) = explained(image[None], ink, Framing.AS_IS)

    assert preparation == (image.tobytes(), Framing.AS_IS, Ink.LIGHT_ON_DARK, None, ())


@pytest.mark.parametrize("ink", [Ink.DARK_ON_LIGHT, Ink.AUTO])
def test_an_inverted_image_has_dark_ink(ink: Ink) -> None:
    """An image that was inverted, as given or as detected, has ink DARK_ON_LIGHT; pixels are those that the network saw."""
    (preparation,) = explained(~drawn(28)[None], ink, Framing.AS_IS)

    assert preparation == (drawn(28).tobytes(), Framing.AS_IS, Ink.DARK_ON_LIGHT, None, ())


@pytest.mark.parametrize(
    ("side", "ink", "found"),
    [
        (60, Ink.AUTO, Ink.LIGHT_ON_DARK),
        (60, Ink.LIGHT_ON_DARK, Ink.LIGHT_ON_DARK),
        (28, Ink.AUTO, Ink.LIGHT_ON_DARK),
    ],
)
def test_a_framed_image_has_the_pixels_of_framing(side: int, ink: Ink, found: Ink) -> None:
    """Pixels are the 28x28 that framing made, and ink is the polarity that it used, for both polarities."""
    image = drawn(side)
    (light,) = explained(image[None], ink, Framing.MNIST)
    (dark,) = explained(~image[None], Ink.AUTO if ink is Ink.AUTO else Ink.DARK_ON_LIGHT, Framing.MNIST)

    assert (light.framing, light.ink) == (Framing.MNIST, found)
    assert (dark.framing, dark.ink) == (Framing.MNIST, Ink.DARK_ON_LIGHT)
    assert light.pixels == dark.pixels == prepare([(request(image[None], ink, Framing.MNIST), 0, 1)]).images.tobytes()


def test_a_blank_image_has_no_ink() -> None:
    """Framing found no ink: polarity and box are unknown, and the network saw zeros."""
    (preparation,) = explained(np.full((1, 40, 40), 200, np.uint8), Ink.AUTO, Framing.MNIST)

    assert preparation == (bytes(784), Framing.MNIST, None, None, ())


def test_each_part_of_a_request_has_its_own_images() -> None:
    """A request that is split over batches is explained part by part, from the rows of each batch."""
    images = np.stack([drawn(50), ~drawn(50), np.zeros((50, 50), np.uint8), drawn(50).T.copy()])
    whole = explained(images, Ink.AUTO, Framing.MNIST)
    ours = request(images, Ink.AUTO, Framing.MNIST)
    parts = [
        preparation
        for start, stop in ((0, 1), (1, 4))
        for preparation in explain(ours, start, stop, prepare([(ours, start, stop)]), 0)
    ]

    assert parts == whole
    assert [one.ink for one in whole] == [Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT, None, Ink.LIGHT_ON_DARK]


def test_colours_are_explained_as_grey() -> None:
    """An image in colour is explained by its luma."""
    colours = np.repeat(~drawn(28)[..., None], 3, axis=2)
    ours = request(colours[..., 0][None], Ink.DARK_ON_LIGHT, Framing.AS_IS)._replace(
        pixels=colours.tobytes(), channels=3
    )
    (preparation,) = explain(ours, 0, 1, prepare([(ours, 0, 1)]), 0)

    assert preparation == (drawn(28).tobytes(), Framing.AS_IS, Ink.DARK_ON_LIGHT, None, ())


def test_an_image_that_is_kept_is_not_called_framed() -> None:
    """An image that framing would not change either is reported as it was treated: kept as it is."""
    digit = frame(draw_strokes(64, THREE), Ink.LIGHT_ON_DARK).pixels
    assert np.array_equal(frame(digit, Ink.AUTO).pixels, digit)
    (preparation,) = explained(digit[None], Ink.AUTO, Framing.AUTO)
    assert (preparation.framing, preparation.pixels) == (Framing.AS_IS, digit.tobytes())
