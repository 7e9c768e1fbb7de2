"""Image files in bounded memory, for the HTTP API."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from digitserve.vision.image_files import TooManyPixels, read_bounded, read_images

MAX_PIXELS = 1 << 12


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def spot(height: int, width: int) -> np.ndarray:
    """Return a smooth image, brightest at a third of its height and a quarter of its width."""
    rows, columns = np.mgrid[:height, :width]
    distance = ((rows - height / 3) / height) ** 2 + ((columns - width / 4) / width) ** 2
    return np.uint8(255 * np.exp(-8 * distance))


@given(height=st.integers(1, 64), width=st.integers(1, 64), kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF"]))
def test_files_within_the_limit_are_read_as_always(height: int, width: int, kind: str) -> None:
    """The pixels are those that the command reads, and nothing is reduced."""
    content = encoded(spot(height, width), kind)
    images = read_bounded(content, "image", max_pixels=MAX_PIXELS, raw_hint="")
    assert np.array_equal(images.pixels, read_images(io.BytesIO(content)))
    assert images[1:] == (1, height, width)


@given(height=st.integers(65, 300), width=st.integers(65, 300), orientation=st.integers(1, 8))
def test_a_large_jpeg_is_decoded_smaller(height: int, width: int, orientation: int) -> None:
    """It has at most the allowed pixels or the smallest size of a JPEG, shows the same, and the size in the file is that upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(spot(height, width), "JPEG", exif=exif)
    images = read_bounded(content, "image", max_pixels=MAX_PIXELS, raw_hint="")
    upright = read_images(io.BytesIO(content))[0, ..., 0]
    assert (images.height, images.width) == upright.shape
    reduced = images.pixels[0, ..., 0]
    assert reduced.shape == tuple(-(-side // images.factor) for side in upright.shape)
    assert reduced.size <= MAX_PIXELS * 1.1
    means = upright[: reduced.shape[0] * images.factor : images.factor, :: images.factor]
    assert np.abs(means.astype(int) - reduced).mean() < 16


def test_a_photo_with_several_pictures_is_a_jpeg() -> None:
    """Phones append a preview or a map of the brightness to photos, which Pillow calls MPO; the first picture is read."""
    file = io.BytesIO()
    photo = Image.fromarray(spot(90, 120))
    photo.save(file, "MPO", save_all=True, append_images=[photo.resize((30, 20))])
    with Image.open(file) as opened:
        assert opened.format == "MPO"
    images = read_bounded(file.getvalue(), "image", max_pixels=MAX_PIXELS, raw_hint="")
    assert (images.pixels.shape, images[1:]) == ((1, 45, 60, 1), (2, 90, 120))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("field_type", "value"),
    [(1, b"\6"), (2, b"abc\0"), (3, b"\x09\0"), (7, b"\6\6\6\6")],
    ids=["byte", "text", "9", "any"],
)
def test_an_orientation_that_is_none_is_ignored(kind: str, field_type: int, value: bytes) -> None:
    """An EXIF orientation of another type or value neither rotates the picture nor fails."""
    field = struct.pack("<HHHI", 1, 0x0112, field_type, len(value) if field_type != 3 else 1) + value.ljust(4, b"\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + field + bytes(4)
    images = read_bounded(encoded(spot(20, 30), kind, exif=exif), "image", max_pixels=MAX_PIXELS, raw_hint="")
    assert (images.pixels.shape[1:3], images[1:]) == ((20, 30), (1, 20, 30))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_other_formats_have_a_limit(kind: str) -> None:
    """A picture with more pixels is refused with its size, before it is decoded."""
    with pytest.raises(TooManyPixels, match=rf"got 65x64 pixels; expected at most {MAX_PIXELS} in all"):
        read_bounded(encoded(spot(65, 64), kind), "image", max_pixels=MAX_PIXELS, raw_hint="")


def test_an_array_is_read_as_always() -> None:
    """A ``.npy`` file has no limit but that of its bytes."""
    file = io.BytesIO()
    np.save(file, np.zeros((3, 100, 100), np.uint8))
    images = read_bounded(file.getvalue(), "image", max_pixels=MAX_PIXELS, raw_hint="")
    assert (images.pixels.shape, images[1:]) == ((3, 100, 100, 1), (1, 100, 100))
