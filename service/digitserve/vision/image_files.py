"""Image files into requests, for ``digitserve classify``. The service itself takes raw pixels and decodes no files."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from digitserve.errors import InvalidRequest
from digitserve.v1 import digits_pb2 as pb

MAX_FILE_PIXELS = 4096 * 4096
"""As the service's own limit; looked at before anything is decoded."""

_FORMATS = {
    "L": pb.PIXEL_FORMAT_GRAY8,
    "RGB": pb.PIXEL_FORMAT_RGB8,
    "RGBA": pb.PIXEL_FORMAT_RGBA8,
}


def read_request(path: Path, size: tuple[int, int] | None = None) -> pb.ClassifyRequest:
    """Read one file as a request.

    Args:
        path: PNG or JPEG; any other file holds raw GRAY8 pixels.
        size: height and width of the images in a raw file, 28x28 unless given.

    Raises:
        InvalidRequest: the file cannot be read, or is too large; the message names it.
    """
    try:
        if size is None:
            # Pillow warns of damaged remarks in a file whose picture is whole.
            with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("PNG", "JPEG")) as image:
                return _from_image(image, path)
    except UnidentifiedImageError:
        pass
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(
            f"{path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None
    return _from_raw(path, size or (28, 28))


def _from_image(image: Image.Image, path: Path) -> pb.ClassifyRequest:
    if image.width * image.height > MAX_FILE_PIXELS:
        raise InvalidRequest(f"{path}: got {image.height}x{image.width} pixels; expected at most {MAX_FILE_PIXELS}")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # 16 bits a pixel, as scanners write; Pillow would turn all above 255 into white.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode in {"LA", "PA"} or "transparency" in upright.info:
        upright = upright.convert("RGBA")
    elif upright.mode not in _FORMATS:
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    return pb.ClassifyRequest(
        pixels=upright.tobytes(), height=upright.height, width=upright.width, pixel_format=_FORMATS[upright.mode]
    )


def _from_raw(path: Path, size: tuple[int, int]) -> pb.ClassifyRequest:
    height, width = size
    try:
        pixels = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
    if not pixels or len(pixels) % (height * width):
        raise InvalidRequest(
            f"{path}: neither PNG nor JPEG, and its {len(pixels)} bytes are no whole number of raw {height}x{width} images "
            "of 1 byte a pixel; give --size HEIGHTxWIDTH for raw images of another size"
        )
    return pb.ClassifyRequest(pixels=pixels, height=height, width=width)
