"""Image files into arrays: every kind of file that people have, and errors for files that are no images."""

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from digitserve.errors import ImageFileError
from digitserve.vision import image_files
from digitserve.vision.image_files import MAX_FILE_PIXELS, image_to_array, read_image_file, read_images
from support.fuzz_files import hostile_images
from support.memory import limited_to

GRADIENT = np.linspace(0, 255, 12 * 20).astype(np.uint8).reshape(12, 20)
ORIENTATION = 0x0112


def save(tmp_path: Path, image: Image.Image, file_format: str = "PNG", **options: Any) -> Path:
    """Write an image to a file whose name does not show the format."""
    path = tmp_path / "image"
    image.save(path, file_format, **options)
    return path


def error_of(path: Path, size: tuple[int, int] | None = None) -> str:
    """Return the error for a file; it starts with the path and has one line."""
    with pytest.raises(ImageFileError) as caught:
        read_images(path, size=size)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_rgb_and_rgba_are_read_unchanged(tmp_path: Path, channels: int, file_format: str) -> None:
    """Every byte; the service converts colour and alpha to grey, in one place."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    path = save(tmp_path, Image.fromarray(values[..., 0] if channels == 1 else values), file_format)
    assert np.array_equal(read_image_file(path), values)
    assert np.array_equal(read_images(path), values[None])


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "TIFF"])
def test_other_lossless_formats_are_read(tmp_path: Path, file_format: str) -> None:
    """BMP, GIF and TIFF give the pixels that were saved, grey or as equal channels."""
    pixels = read_image_file(save(tmp_path, Image.fromarray(GRADIENT), file_format))
    assert (pixels == GRADIENT[..., None]).all()


def test_webp_is_read_with_alpha(tmp_path: Path) -> None:
    """Lossless WEBP gives the colours and the alpha that were saved."""
    values = np.random.default_rng(0).integers(1, 256, (5, 7, 4), np.uint8)
    assert np.array_equal(read_image_file(save(tmp_path, Image.fromarray(values), "WEBP", lossless=True)), values)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, file_format: str) -> None:
    """Of an animation or a document with several pages the first image counts."""
    first, second = Image.new("L", (6, 4), 10), Image.new("L", (6, 4), 200)
    path = save(tmp_path, first, file_format, save_all=True, append_images=[second])
    pixels = read_image_file(path)
    assert pixels.shape[:2] == (4, 6)
    assert np.abs(pixels[..., 0].astype(int) - 10).max() <= 2


def test_jpeg_is_read_as_colour_or_grey(tmp_path: Path) -> None:
    """JPEG changes values a little; size and channels stay, and CMYK becomes RGB."""
    grey = read_image_file(save(tmp_path, Image.fromarray(GRADIENT), "JPEG", quality=95))
    assert grey.shape == (12, 20, 1)
    assert np.abs(grey[..., 0].astype(int) - GRADIENT).max() < 12
    for mode in ("RGB", "CMYK"):
        assert read_image_file(save(tmp_path, Image.fromarray(GRADIENT).convert(mode), "JPEG")).shape == (12, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photograph_is_rotated_upright(tmp_path: Path, orientation: int, file_format: str) -> None:
    """Phones store pictures on their side with an EXIF orientation: a 6 must not become a 9."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=exif)
    pixels = read_image_file(path)
    assert pixels.shape[:2] == (16, 24)
    assert np.abs(pixels[..., 0].astype(int) - upright).max() < 16


def test_a_palette_is_converted_to_its_colours(tmp_path: Path) -> None:
    """Palette indices are not grey levels."""
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0], colours[1:] = (255, 0, 0), (0, 0, 255)
    assert np.array_equal(read_image_file(save(tmp_path, Image.fromarray(colours).quantize(2))), colours)


def test_a_palette_with_transparency_keeps_it(tmp_path: Path) -> None:
    """A drawing on transparent ground keeps its alpha; the service composes it on white."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 2), 1)
    pixels = read_image_file(save(tmp_path, image, transparency=0))
    assert pixels[2, 1].tolist() == [10, 20, 30, 255]
    assert pixels[0, 0, 3] == 0


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (1, 2, 3))])
def test_one_transparent_colour_becomes_alpha(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    """Transparency without an alpha channel is kept as alpha."""
    image = Image.new(mode, (4, 4), colour)
    image.putpixel((1, 2), 200 if mode == "L" else (200, 0, 0))
    pixels = read_image_file(save(tmp_path, image, transparency=colour))
    assert pixels[..., 3].tolist() == [[255 if (y, x) == (2, 1) else 0 for x in range(4)] for y in range(4)]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_deep_pixels_are_scaled_by_the_bits_in_use(tmp_path: Path, bits: int, file_format: str) -> None:
    """A 16-bit file with samples of 8 to 16 bits uses the whole range of 8 bits."""
    deep = np.linspace(0, (1 << bits) - 1, 12 * 20).astype(np.uint16).reshape(12, 20)
    pixels = read_image_file(save(tmp_path, Image.fromarray(deep), file_format))
    assert np.array_equal(pixels[..., 0], deep >> (bits - 8))


def test_a_deep_black_image_is_black() -> None:
    """An image without any bit in use is not scaled."""
    assert not image_to_array(Image.fromarray(np.zeros((3, 4), np.uint16))).any()


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.array([[0.0, 0.5]], np.float32), "floating-point pixels"),
        (np.array([[0, 1 << 20]], np.int32), "pixels from 0 to 1048576"),
        (np.array([[-1, 5]], np.int32), "pixels from -1 to 5"),
    ],
)
def test_pixels_of_unknown_scale_are_rejected(values: np.ndarray, got: str) -> None:
    """Floating-point and 32-bit pixels have no agreed white; the message states got and expected."""
    with pytest.raises(ImageFileError, match=rf"^scan: got {got}; expected"):
        image_to_array(Image.fromarray(values), "scan")


def test_one_bit_pixels_become_black_and_white(tmp_path: Path) -> None:
    """Bits become 0 and 255, one byte each."""
    bits = np.random.default_rng(0).integers(0, 2, (9, 13), np.uint8) * 255
    path = save(tmp_path, Image.fromarray(bits).convert("1", dither=Image.Dither.NONE))
    assert np.array_equal(read_image_file(path)[..., 0], bits)


def test_grey_with_alpha_keeps_it(tmp_path: Path) -> None:
    """Grey with alpha becomes RGBA with the same alpha."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 2), np.uint8)
    pixels = read_image_file(save(tmp_path, Image.fromarray(values, "LA")))
    assert np.array_equal(pixels[..., [0, 3]], values)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28), (1, 28, 28, 1)),
        ((5, 28, 20), (5, 28, 20, 1)),
        ((2, 6, 5, 1), (2, 6, 5, 1)),
        ((2, 6, 5, 3), (2, 6, 5, 3)),
        ((2, 6, 5, 4), (2, 6, 5, 4)),
    ],
)
def test_npy_arrays_are_read(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """``.npy`` files hold one image, [N,H,W] or [N,H,W,C]; the content decides, not the file's name."""
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "array.dat"
    for array in (values, np.asfortranarray(values)):
        with path.open("wb") as file:
            np.save(file, array)
        assert read_images(path).shape == expected
        assert np.array_equal(read_images(path).reshape(shape), values)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (np.zeros((28, 28)), "got float64[28, 28]"),
        (np.zeros((28, 28), bool), "got bool[28, 28]"),
        (np.zeros(784, np.uint8), "got uint8[784]"),
        (np.zeros((0, 28, 28), np.uint8), "got uint8[0, 28, 28]"),
        (np.zeros((28, 28, 3), np.uint8), "expected uint8[1,H,W,C] for one image of 3 channels"),
        (np.zeros((2, 28, 28, 2), np.uint8), "2 channels"),
        (np.array([{"a": 1}], object), "declares object[1]"),
    ],
)
def test_other_npy_arrays_are_rejected(tmp_path: Path, values: np.ndarray, part: str) -> None:
    """Another type or shape is rejected with got and expected; pickled objects are never loaded."""
    path = tmp_path / "array.npy"
    np.save(path, values, allow_pickle=True)
    text = error_of(path)
    assert part in text
    assert "expected uint8[" in text


def test_a_damaged_npy_file_is_rejected(tmp_path: Path) -> None:
    """A truncated array, and a header that promises more than memory holds, are errors of one line."""
    path = tmp_path / "array.npy"
    np.save(path, np.zeros((9, 28, 28), np.uint8))
    content = path.read_bytes()
    for damaged, text in (
        (content[:2000], "declares uint8[9, 28, 28], more than the 1872 bytes of its values"),
        (content[:40], "cannot be read as .npy"),
        (content.replace(b"(9, 28, 28), ", b"(9" + b"0" * 8 + b",9)  "), "more than the 7058 bytes of its values"),
        (content.replace(b"(9, 28, 28)", b"(-9, 28,28)"), "declares uint8[-9, 28, 28]"),
    ):
        path.write_bytes(damaged)
        assert text in error_of(path)


def test_raw_pixels_are_read_with_a_size_only(tmp_path: Path) -> None:
    """With a size every file is raw pixels; without, a file of 784 bytes is no image."""
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(200)) * 3)
    images = read_images(path, size=(10, 30))
    assert images.shape == (2, 10, 30, 1)
    assert images.tobytes() == path.read_bytes()
    path.write_bytes(bytes(784))
    assert (
        "unknown format; expected PNG, JPEG, BMP, GIF, WEBP, TIFF or .npy; for raw grey pixels give --size"
        in error_of(path)
    )


def test_raw_pixels_of_no_whole_image_are_rejected(tmp_path: Path) -> None:
    """The message states how many bytes the file has and of what they should be a multiple."""
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    assert "got 12 bytes; expected a multiple of 300, the size of one raw grey image of 10x30" in error_of(
        path, (10, 30)
    )


@pytest.mark.parametrize("size", [None, (28, 28)])
def test_missing_empty_and_unreadable_files_are_rejected(tmp_path: Path, size: tuple[int, int] | None) -> None:
    """The system's reason, without a traceback."""
    assert error_of(tmp_path / "missing.png", size).endswith("No such file or directory")
    assert error_of(tmp_path, size).endswith("is a directory; expected a file")
    path = tmp_path / "empty"
    path.touch()
    assert error_of(path, size).endswith("is empty; expected an image")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_a_truncated_picture_is_rejected(tmp_path: Path, file_format: str) -> None:
    """Half a picture is not guessed."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path, Image.fromarray(noise), file_format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be decoded" in error_of(path)


def test_a_picture_over_the_limit_is_rejected_before_it_is_decoded(tmp_path: Path) -> None:
    """The header suffices: a small file of a huge picture costs no memory."""
    path = save(tmp_path, Image.new("1", (8193, 8192)))
    path.write_bytes(path.read_bytes()[:100])
    assert f"got 8192x8193 pixels; expected at most {MAX_FILE_PIXELS}" in error_of(path)
    path = save(tmp_path, Image.new("1", (20_000, 20_000)))
    assert f"expected at most {MAX_FILE_PIXELS}" in error_of(path)
    assert read_image_file(save(tmp_path, Image.new("1", (8192, 8192)))).shape[0] == 8192


@pytest.mark.parametrize("name", hostile_images())
def test_a_small_file_that_declares_a_huge_picture_takes_little_memory(name: str) -> None:
    """Dimensions, text, profiles, metadata and tags are limited before memory is allocated for them."""
    with limited_to(1 << 25):
        try:
            images = read_images(io.BytesIO(hostile_images()[name]), "input")
        except ImageFileError as error:
            assert re.search(
                r"got \d+x\d+ pixels|too many pixels|read as .npy|too large|too much memory|truncated|unknown",
                str(error),
                re.IGNORECASE,
            )
        else:  # only its metadata was hostile
            assert images.shape == (1, 4, 4, 1)


def test_a_file_without_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is read up to the limit."""
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 1 << 21)
    assert "/dev/zero: got more than 2097152 bytes; expected at most that" in error_of(Path("/dev/zero"))


def test_a_huge_file_is_rejected_without_reading_it(tmp_path: Path) -> None:
    """A sparse file of a terabyte costs no memory."""
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 1 << 40)
    with limited_to(1 << 25):
        assert "got more than" in error_of(path)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """Shells pass pipes as paths: ``digitserve classify <(command)``."""
    content = save(tmp_path, Image.fromarray(GRADIENT)).read_bytes()
    reader, writer = os.pipe()
    try:
        with open(writer, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(content)
        assert np.array_equal(read_images(f"/dev/fd/{reader}")[0, ..., 0], GRADIENT)
    finally:
        os.close(reader)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    """Rare decoders of Pillow are a risk: PPM, PSD, EPS and others are unknown here."""
    assert "unknown format" in error_of(save(tmp_path, Image.fromarray(GRADIENT), "PPM"))


def test_open_files_are_read_and_named(tmp_path: Path) -> None:
    """A binary file, such as standard input, is read as a path is; its errors have the given name."""
    path = save(tmp_path, Image.fromarray(GRADIENT))
    assert np.array_equal(read_images(io.BytesIO(path.read_bytes())), read_images(path))
    with pytest.raises(ImageFileError, match="^standard input: got 3 bytes"):
        read_image_file(io.BytesIO(b"abc"), "standard input")


def _sources() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sources = []
    for image, file_format, options in (
        (Image.fromarray(noise), "PNG", {"exif": exif}),
        (Image.fromarray(noise).convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(noise).convert("RGB"), "JPEG", {"exif": exif}),
        (Image.fromarray(noise), "TIFF", {}),
        (Image.fromarray(noise), "GIF", {}),
        (Image.fromarray(noise), "BMP", {}),
        (Image.fromarray(noise), "WEBP", {}),
    ):
        content = io.BytesIO()
        image.save(content, file_format, **options)
        sources.append(content.getvalue())
    content = io.BytesIO()
    np.save(content, noise)
    return [*sources, content.getvalue()]


@given(
    source=st.sampled_from(_sources()),
    damages=st.lists(st.tuples(st.integers(0, 1 << 12), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    cut=st.integers(0, 300),
)
@settings(max_examples=400)
@pytest.mark.filterwarnings("default")
def test_a_damaged_file_is_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, source: bytes, damages: list[tuple[int, bytes]], cut: int
) -> None:
    """Whatever the damage, the outcome is an array or an error that names the file."""
    damaged = bytearray(source[: max(8, len(source) - cut)])
    for position, content in damages:
        start = position % len(damaged)
        damaged[start : start + len(content)] = content
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        images = read_images(path)
    except ImageFileError as error:
        assert str(path) in str(error)
    else:
        assert (images.ndim, images.dtype) == (4, np.uint8)
        assert images.shape[3] in {1, 3, 4}
