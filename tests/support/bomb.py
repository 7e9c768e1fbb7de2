"""A decompression bomb: a small file whose header declares a large image."""

import io
import zlib

from PIL import Image


def bomb() -> bytes:
    """Return a PNG file whose header declares 60,000x60,000 pixels, 3.6 billion."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
