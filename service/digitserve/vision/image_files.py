"""Reads image files into arrays.

Used by ``digitserve classify``, the client library, the HTTP API and the training package's folders. PNG, JPEG, BMP, GIF,
WEBP and TIFF are decoded by Pillow, ``.npy`` by numpy. Workers receive raw pixels and decode no files. Files are not
trusted: their size, and the size that their header declares, are checked before memory is allocated for their pixels.
Imports neither protobuf nor gRPC. Any thread may call it.
"""

import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from digitserve import npy
from digitserve.errors import ImageFileError

Pixels = NDArray[np.uint8]
Source = str | os.PathLike[str] | BinaryIO

MAX_FILE_PIXELS = 1 << 26
"""Largest image in pixels, checked before anything is decoded: photos of phones have up to 50 million. The client reduces
them before they are sent. Decoding takes up to 16 bytes of memory per pixel, 1 GB in all.
"""

MAX_FILE_BYTES = 8 * MAX_FILE_PIXELS
"""Largest file: an uncompressed image of MAX_FILE_PIXELS with four channels of 16 bits."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""Formats that Pillow may try; of an animation or a document with several pages the first image is read."""

_READ_BYTES = 1 << 20
"""Read from a file at a time."""

_CHANNELS = (1, 3, 4)
_SAMPLE_BITS = (8, 10, 12, 14, 16)
_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag, and its values that exchange height and width. Damaged files have others, and text instead of numbers."""

_JPEG = {"JPEG", "MPO"}
"""Pillow's names of JPEG. MPO is a JPEG with more pictures after the first one: many phones save photos so."""

_RAW_HINT = "for raw grey pixels give --size HEIGHTxWIDTH"
_EXPECTED_FILE = "PNG, JPEG, BMP, GIF, WEBP, TIFF or .npy"
_EXPECTED_ARRAY = "uint8[H,W], uint8[N,H,W] or uint8[N,H,W,C] with C of 1, 3 or 4"


class TooManyPixels(ImageFileError):
    """A picture has more pixels than are decoded."""


class BoundedImages(NamedTuple):
    """Images that were read in bounded memory.

    Attributes:
        pixels: uint8[N,H,W,C], as from ``read_images``.
        factor: pixels of the file for each of these, in both directions; more than 1 for a large JPEG only.
        height: of the images in the file, upright, in pixels.
        width: of the images in the file, upright, in pixels.
    """

    pixels: Pixels
    factor: int
    height: int
    width: int


def read_images(source: Source, name: str = "", size: tuple[int, int] | None = None) -> Pixels:
    """Read all images of a file: one picture, the images of a ``.npy`` array, or raw pixels.

    Args:
        source: path, or binary file such as standard input.
        name: of the file in errors; the path if not given.
        size: height and width of the images in a file of raw grey pixels, one byte per pixel. With a size, every file
            is read as raw pixels.

    Returns:
        uint8[N,H,W,C] with C of 1 (grey), 3 (RGB) or 4 (RGBA with straight alpha).

    Raises:
        ImageFileError: the file cannot be read, or does not hold images as expected.
    """
    name = name or _name(source)
    content = _read(source, name)
    if size is not None:
        return _raw_images(content, size, name)
    if content.startswith(npy.MAGIC):
        return _npy_images(content, name)
    return _decode(content, name)[None]


def read_bounded(content: bytes, name: str, *, max_pixels: int, raw_hint: str) -> BoundedImages:
    """Read the images of a file as ``read_images`` does, with less memory than that.

    Decoding takes up to 24 bytes of memory per pixel, reduction included (measured). A JPEG with more pixels than ``max_pixels`` is
    decoded at a half, a quarter or an eighth of its size, which also takes a fraction of the time.

    Args:
        content: of the file.
        name: of the file in errors.
        max_pixels: most pixels of the decoded picture.
        raw_hint: how to send raw pixels, for the error about an unknown format.

    Raises:
        ImageFileError: see ``read_images``; ``TooManyPixels`` if the picture has more than ``max_pixels``, or is a JPEG of more than
            MAX_FILE_PIXELS.
    """
    if content.startswith(npy.MAGIC):
        images = _npy_images(content, name)
        return BoundedImages(images, 1, *images.shape[1:3])
    with _open(content, name, max_pixels, raw_hint) as image:
        width, height = image.size
        is_jpeg = image.format in _JPEG
        _check_size(width, height, name, MAX_FILE_PIXELS if is_jpeg else max_pixels)
        factor = 1
        while width * height > max_pixels * factor * factor:
            factor *= 2
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
        pixels = image_to_array(image, name)
        if image.getexif().get(_ORIENTATION) in _SWAPPED:
            width, height = height, width
        return BoundedImages(pixels[None], factor, height, width)


def read_image_file(source: Source, name: str = "") -> Pixels:
    """Read one picture: PNG, JPEG, BMP, GIF, WEBP or TIFF.

    Args:
        source: path, or binary file.
        name: of the file in errors; the path if not given.

    Returns:
        uint8[H,W,C] as ``image_to_array`` returns it.

    Raises:
        ImageFileError: the file cannot be read, is no picture, is damaged, or has more than MAX_FILE_PIXELS pixels.
    """
    name = name or _name(source)
    return _decode(_read(source, name), name)


def image_to_array(image: Image.Image, name: str = "image") -> Pixels:
    """Convert a Pillow image: rotated as its EXIF orientation says, with alpha if any pixel may be transparent.

    Args:
        image: of any mode but floating point. Images of more than 8 bits per pixel are scaled to 8 by the bits that
            their largest value uses (8, 10, 12, 14 or 16): scanners store 12-bit samples in 16-bit files.
        name: of the image in errors.

    Returns:
        uint8[H,W,C] with C of 1 (grey), 3 (RGB) or 4 (RGBA with straight alpha).

    Raises:
        ImageFileError: the pixels cannot be decoded or converted.
    """
    try:
        # Pillow warns of damaged metadata in files whose pixels are intact.
        with warnings.catch_warnings(action="ignore"):
            pixels = _to_uint8(ImageOps.exif_transpose(image), name)
    except ImageFileError:
        raise
    except Exception as error:  # a boundary: on damaged files Pillow's decoders raise exceptions of many types
        raise _damaged(name, error) from None
    return pixels if pixels.ndim == 3 else pixels[..., None]  # noqa: PLR2004 - axes


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", "image"))


def _read(source: Source, name: str) -> bytes:
    try:
        if isinstance(source, (str, os.PathLike)):
            with Path(source).open("rb") as file:
                content = _read_limited(file, os.fstat(file.fileno()).st_size, name)
        else:
            content = _read_limited(source, 0, name)
    except IsADirectoryError:
        raise ImageFileError(f"{name}: is a directory; expected a file") from None
    except OSError as error:
        raise ImageFileError(f"{name}: {error.strerror or error}") from None
    if not content:
        raise ImageFileError(f"{name}: is empty; expected an image")
    return content


def _read_limited(file: BinaryIO, num_bytes: int, name: str) -> bytes:
    """Read to the end of a file.

    Args:
        file: regular, or a pipe or device, which may have no end.
        num_bytes: its size, 0 if that is not known.
        name: of the file in errors.
    """
    parts = []
    while num_bytes <= MAX_FILE_BYTES and (part := file.read(_READ_BYTES)):
        parts.append(part)
        num_bytes = max(num_bytes, sum(map(len, parts)))
    if num_bytes > MAX_FILE_BYTES:
        raise ImageFileError(f"{name}: got more than {MAX_FILE_BYTES} bytes; expected at most that")
    return b"".join(parts)


def _decode(content: bytes, name: str) -> Pixels:
    with _open(content, name, MAX_FILE_PIXELS, _RAW_HINT) as image:
        _check_size(image.width, image.height, name, MAX_FILE_PIXELS)
        return image_to_array(image, name)


def _open(content: bytes, name: str, max_pixels: int, raw_hint: str) -> Image.Image:
    """Read the header of a picture."""
    _check_size(*_webp_size(content), name, max_pixels)
    try:
        with warnings.catch_warnings(action="ignore"):
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageFileError(
            f"{name}: got {len(content)} bytes in an unknown format; expected {_EXPECTED_FILE}; {raw_hint}"
        ) from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"{name}: got too many pixels; expected at most {max_pixels}") from None
    except Exception as error:  # a boundary, as in image_to_array
        raise _damaged(name, error) from None


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"{name}: got {height}x{width} pixels; expected at most {max_pixels} in all")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a WEBP file, 0 and 0 for other files.

    Pillow allocates memory for the whole picture when it opens such a file, for up to 2.7 times as many pixels as allowed
    here. Of the other formats it reads only the header. Layout: RFC 9649, section 2.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 0, 0
    match content[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
        case b"VP8L":
            sides = int.from_bytes(content[21:25], "little")
            return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF
    return 0, 0


def _damaged(name: str, error: Exception) -> ImageFileError:
    """Return the error for a file that Pillow cannot decode. Some of its exceptions have no text, others several lines."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageFileError(f"{name}: cannot be decoded ({reason}); expected a complete {_EXPECTED_FILE} file")


def _to_uint8(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I"):
        return _scale_to_8_bits(np.asarray(image), name)
    if image.mode == "F":
        raise ImageFileError(f"{name}: got floating-point pixels; expected 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode not in {"L", "RGB"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image)


def _scale_to_8_bits(samples: NDArray[np.integer], name: str) -> Pixels:
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high >= 1 << _SAMPLE_BITS[-1]:
        raise ImageFileError(f"{name}: got pixels from {low} to {high}; expected 0 to {(1 << _SAMPLE_BITS[-1]) - 1}")
    bits = next(bits for bits in _SAMPLE_BITS if high < 1 << bits)
    scaled: Pixels = (samples >> (bits - 8)).astype(np.uint8)
    return scaled


def _npy_images(content: bytes, name: str) -> Pixels:
    try:
        images: Pixels = npy.view_array(content)
    except ValueError as error:
        raise ImageFileError(f"{name}: cannot be read as .npy ({error}); expected {_EXPECTED_ARRAY}") from None
    got = f"{name}: got {images.dtype}{list(images.shape)}"
    if images.dtype != np.uint8 or images.ndim not in {2, 3, 4} or not images.size:
        raise ImageFileError(f"{got}; expected {_EXPECTED_ARRAY}")
    if images.ndim == 3 and images.shape[2] in _CHANNELS:  # noqa: PLR2004 - axes
        raise ImageFileError(
            f"{got}, which is ambiguous; expected uint8[1,H,W,C] for one image of {images.shape[2]} channels, "
            "or uint8[N,H,W,1] for grey images"
        )
    images = images[None] if images.ndim == 2 else images  # noqa: PLR2004 - axes
    images = images if images.ndim == 4 else images[..., None]  # noqa: PLR2004 - axes
    if images.shape[3] not in _CHANNELS:
        raise ImageFileError(f"{got}, {images.shape[3]} channels; expected {_EXPECTED_ARRAY}")
    return images


def _raw_images(content: bytes, size: tuple[int, int], name: str) -> Pixels:
    height, width = size
    if len(content) % (height * width):
        raise ImageFileError(
            f"{name}: got {len(content)} bytes; expected a multiple of {height * width}, the size of one raw grey image "
            f"of {height}x{width} pixels"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, height, width, 1)
