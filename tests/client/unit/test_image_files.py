"""Image files into requests: every kind of PNG and JPEG that people have, and words for those that are none."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from digitserve.errors import InvalidRequest
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.image_files import MAX_FILE_PIXELS, read_request

GRADIENT = np.linspace(0, 255, 12 * 20).astype(np.uint8).reshape(12, 20)
ORIENTATION = 0x0112


def save(tmp_path: Path, image: Image.Image, file_format: str = "PNG", **options: object) -> Path:
    """Write an image as a file whose name says nothing."""
    path = tmp_path / "image"
    image.save(path, file_format, **options)
    return path


def pixels(request: pb.ClassifyRequest) -> NDArray[np.uint8]:
    """Return a request's pixels as an array."""
    channels = {pb.PIXEL_FORMAT_GRAY8: 1, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}[request.pixel_format]
    return np.frombuffer(request.pixels, np.uint8).reshape(request.height, request.width, channels)


def refusal(path: Path, size: tuple[int, int] | None = None) -> str:
    """Return the words in which a file is refused; they name it."""
    with pytest.raises(InvalidRequest) as caught:
        read_request(path, size)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_grey_png_arrives_unchanged(tmp_path: Path) -> None:
    """Height, width, format and every byte."""
    request = read_request(save(tmp_path, Image.fromarray(GRADIENT)))
    assert (request.height, request.width, request.pixel_format) == (12, 20, pb.PIXEL_FORMAT_GRAY8)
    assert np.array_equal(pixels(request)[..., 0], GRADIENT)
    assert (request.num_images, request.top_k, request.ink, request.framing) == (0, 0, 0, 0)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4)])
def test_a_colour_png_arrives_unchanged(tmp_path: Path, mode: str, channels: int) -> None:
    """Colour and alpha are left to the service, which defines luma once."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    request = read_request(save(tmp_path, Image.fromarray(values, mode)))
    assert request.pixel_format == {"RGB": pb.PIXEL_FORMAT_RGB8, "RGBA": pb.PIXEL_FORMAT_RGBA8}[mode]
    assert np.array_equal(pixels(request), values)


def test_a_jpeg_arrives_as_colour_or_grey(tmp_path: Path) -> None:
    """JPEG loses a little; size and format stay."""
    grey = read_request(save(tmp_path, Image.fromarray(GRADIENT), "JPEG", quality=95))
    assert (grey.height, grey.width, grey.pixel_format) == (12, 20, pb.PIXEL_FORMAT_GRAY8)
    assert np.abs(pixels(grey)[..., 0].astype(int) - GRADIENT).max() < 12
    colour = read_request(save(tmp_path, Image.fromarray(GRADIENT).convert("RGB"), "JPEG"))
    assert colour.pixel_format == pb.PIXEL_FORMAT_RGB8
    cmyk = read_request(save(tmp_path, Image.fromarray(GRADIENT).convert("CMYK"), "JPEG"))
    assert (cmyk.pixel_format, len(cmyk.pixels)) == (pb.PIXEL_FORMAT_RGB8, 12 * 20 * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int, file_format: str) -> None:
    """Telephones store pictures lying on their side with a note: a 6 must not arrive as a 9."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(np.ascontiguousarray(turned)), file_format, exif=exif)
    request = read_request(path)
    assert (request.height, request.width) == (16, 24)
    assert np.abs(pixels(request)[..., 0].astype(int) - upright).max() < 16


def test_a_palette_png_arrives_in_its_colours(tmp_path: Path) -> None:
    """The numbers of a palette are no grey levels."""
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0], colours[1:] = (255, 0, 0), (0, 0, 255)
    request = read_request(save(tmp_path, Image.fromarray(colours).quantize(2)))
    assert request.pixel_format == pb.PIXEL_FORMAT_RGB8
    assert np.array_equal(pixels(request), colours)


def test_a_palette_png_with_transparency_keeps_it(tmp_path: Path) -> None:
    """A sticker on nothing: what is transparent stays so, and the service lays it on white."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 2), 1)
    request = read_request(save(tmp_path, image, transparency=0))
    assert request.pixel_format == pb.PIXEL_FORMAT_RGBA8
    assert pixels(request)[2, 1].tolist() == [10, 20, 30, 255]
    assert pixels(request)[0, 0, 3] == 0


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_png_with_one_transparent_colour_keeps_it(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    """Transparency without an alpha channel is transparency all the same."""
    image = Image.new(mode, (4, 4), colour)
    image.putpixel((1, 2), 200 if mode == "L" else (200, 0, 0))
    request = read_request(save(tmp_path, image, transparency=colour))
    assert request.pixel_format == pb.PIXEL_FORMAT_RGBA8
    assert pixels(request)[..., 3].tolist() == [[255 if (y, x) == (2, 1) else 0 for x in range(4)] for y in range(4)]


def test_a_sixteen_bit_png_keeps_its_shades(tmp_path: Path) -> None:
    """Scanners write 16 bits a pixel: the upper 8 are what counts, not all above 255 is white."""
    deep = np.linspace(0, 65535, 12 * 20).astype(np.uint16).reshape(12, 20)
    request = read_request(save(tmp_path, Image.fromarray(deep)))
    assert request.pixel_format == pb.PIXEL_FORMAT_GRAY8
    assert np.abs(pixels(request)[..., 0].astype(int) - (deep >> 8)).max() <= 1


def test_a_one_bit_png_arrives_black_and_white(tmp_path: Path) -> None:
    """Bits become 0 and 255, one byte each."""
    bits = np.random.default_rng(0).integers(0, 2, (9, 13), np.uint8) * 255
    request = read_request(save(tmp_path, Image.fromarray(bits).convert("1", dither=Image.Dither.NONE)))
    assert request.pixel_format == pb.PIXEL_FORMAT_GRAY8
    assert np.array_equal(pixels(request)[..., 0], bits)


def test_a_grey_png_with_alpha_keeps_it(tmp_path: Path) -> None:
    """Grey with alpha becomes colour with the same alpha."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 2), np.uint8)
    request = read_request(save(tmp_path, Image.fromarray(values, "LA")))
    assert request.pixel_format == pb.PIXEL_FORMAT_RGBA8
    assert np.array_equal(pixels(request)[..., [0, 3]], values)


def test_a_file_that_is_no_picture_is_raw_pixels(tmp_path: Path) -> None:
    """Any other file of whole 28x28 images is taken as such."""
    path = tmp_path / "digits.raw"
    path.write_bytes(bytes(3 * 784))
    request = read_request(path)
    assert (request.pixels, request.height, request.width) == (bytes(3 * 784), 28, 28)


def test_raw_pixels_of_another_size_are_taken_when_the_size_is_given(tmp_path: Path) -> None:
    """With a size even a PNG is taken for raw pixels: it was said so."""
    path = tmp_path / "raw"
    path.write_bytes(bytes(2 * 10 * 30))
    request = read_request(path, (10, 30))
    assert (len(request.pixels), request.height, request.width) == (600, 10, 30)
    assert request.pixel_format in {pb.PIXEL_FORMAT_UNSPECIFIED, pb.PIXEL_FORMAT_GRAY8}


def test_raw_pixels_of_no_whole_image_are_refused(tmp_path: Path) -> None:
    """The message says what was looked for, what the file holds, and what to do."""
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    text = refusal(path)
    assert "neither PNG nor JPEG, and its 12 bytes are no whole number of raw 28x28 images" in text
    assert "--size" in text
    assert "raw 10x30 images" in refusal(path, (10, 30))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """Nothing is no image, not zero images."""
    path = tmp_path / "empty"
    path.touch()
    assert "0 bytes" in refusal(path)


@pytest.mark.parametrize("size", [None, (28, 28)])
def test_a_missing_file_and_a_directory_are_refused_in_words(tmp_path: Path, size: tuple[int, int] | None) -> None:
    """What the system says of the file, without a traceback."""
    assert refusal(tmp_path / "nowhere.png", size).endswith("No such file or directory")
    assert refusal(tmp_path, size).endswith("Is a directory")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused(tmp_path: Path, file_format: str) -> None:
    """Half a picture is not guessed at."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path, Image.fromarray(noise), file_format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in refusal(path)


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """The header alone tells: a small file of a huge picture costs no memory."""
    path = save(tmp_path, Image.new("1", (4097, 4096)))
    path.write_bytes(path.read_bytes()[:100])
    assert f"got 4096x4097 pixels; expected at most {MAX_FILE_PIXELS}" in refusal(path)
    assert read_request(save(tmp_path, Image.new("L", (4096, 4096)))).height == 4096


def test_other_formats_are_no_pictures_here(tmp_path: Path) -> None:
    """Only PNG and JPEG are opened: the rarer decoders are not worth their risks."""
    assert "neither PNG nor JPEG" in refusal(save(tmp_path, Image.fromarray(GRADIENT), "GIF"))


def _sources() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sources = []
    for image, file_format, options in (
        (Image.fromarray(noise), "PNG", {"exif": exif}),
        (Image.fromarray(noise).convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(noise).convert("RGB"), "JPEG", {"exif": exif}),
    ):
        content = io.BytesIO()
        image.save(content, file_format, **options)
        sources.append(content.getvalue())
    return sources


@given(
    source=st.sampled_from(_sources()),
    damages=st.lists(st.tuples(st.integers(0, 1 << 12), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    cut=st.integers(0, 300),
)
@settings(max_examples=400)
@pytest.mark.filterwarnings("default")
def test_a_damaged_picture_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, source: bytes, damages: list[tuple[int, bytes]], cut: int
) -> None:
    """Whatever happened to a file, the outcome is a request or a refusal that names it."""
    damaged = bytearray(source[: max(8, len(source) - cut)])
    for position, content in damages:
        start = position % len(damaged)
        damaged[start : start + len(content)] = content
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        request = read_request(path)
    except InvalidRequest as error:
        assert str(path) in str(error)
    else:
        channels = {0: 1, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}.get(request.pixel_format, 1)
        assert len(request.pixels) % (request.height * request.width * channels) == 0
