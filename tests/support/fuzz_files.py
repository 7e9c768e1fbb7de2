"""Fuzz targets of files: images, and the files of a bundle. Each is checked under a limit of memory.

Invalid files must be refused by a check, not because memory ran out.
"""

import contextlib
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from PIL import Image

from digitserve.errors import BundleError, ImageFileError
from digitserve.inference import bundle, graph_check
from digitserve.inference.bundle_files import BundleFiles
from digitserve.npy import MAGIC
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision import image_files
from digitserve.web.decoder_messages import Question
from digitserve.web.decoder_process import decode
from support.bundles import echo_golden, echo_graph, manifest
from support.fuzz_source import CHOICES, Source, Target
from support.memory import limited_to
from support.protobuf import field, number_field

MAX_PIXELS = 1 << 16
"""Limit of images while they are fuzzed, so that inputs at the limit are fast."""

MAX_SIDE, MAX_IMAGES = 40, 4
"""Limits of uploads while they are fuzzed."""

MAX_NEW_BYTES = 1 << 27
"""Most memory that a file may take: Pillow decompresses up to 64 MiB of text in a PNG file, and ``bundle`` as much of arrays."""

OUT_OF_MEMORY = ("MemoryError", "Unable to allocate", "Cannot allocate")
"""Texts of errors after a failed allocation."""


def _assert_readable(error: Exception) -> None:
    """An error is one line of limited length, and its cause is not a lack of memory."""
    text = str(error)
    assert text.isprintable() and len(text) < 1000, text
    assert not any(reason in text for reason in OUT_OF_MEMORY), text


# Images.


def images(content: bytes) -> None:
    """A file gives images of limited size, or an error that names it; memory is not allocated by what its header declares."""
    with limited_to(MAX_NEW_BYTES), _smaller_images():
        try:
            pixels = image_files.read_images(io.BytesIO(content), "input")
        except ImageFileError as error:
            assert str(error).startswith("input: ")
            _assert_readable(error)
            return
    num_images, height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8
    assert channels in {1, 3, 4}
    assert pixels.size
    if content.startswith(MAGIC):
        assert pixels.nbytes < len(content)
    else:
        assert num_images == 1
        assert height * width <= MAX_PIXELS


def uploads(content: bytes) -> None:
    """A body of the HTTP API gives a request whose size is that of its pixels, or an error, within the limits of a decoder."""
    with limited_to(MAX_NEW_BYTES), _smaller_images():
        answer, body = decode(content, Question(MAX_SIDE, MAX_IMAGES), MAX_PIXELS // 4)
    if answer.error:
        assert not body
        _assert_readable(Exception(answer.error))
        return
    request = pb.ClassifyRequest.FromString(body)
    channels = {pb.PIXEL_FORMAT_GRAY8: 1, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}[request.pixel_format]
    assert len(request.pixels) == request.num_images * request.height * request.width * channels > 0
    assert request.num_images <= MAX_IMAGES
    assert max(request.height, request.width) <= MAX_SIDE
    if answer.reduction is not None:
        assert answer.reduction.factor > 1
        assert answer.reduction.size == (request.height, request.width)


@contextlib.contextmanager
def _smaller_images() -> Iterator[None]:
    before, image_files.MAX_FILE_PIXELS = image_files.MAX_FILE_PIXELS, MAX_PIXELS
    try:
        yield
    finally:
        image_files.MAX_FILE_PIXELS = before


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return an image as a file."""
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def png(width: int, height: int, depth: int = 8, color: int = 0, pixels: bytes = b"", **chunks: bytes) -> bytes:
    """Return a PNG file with these header, compressed pixels and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *((name.encode(), chunk) for name, chunk in chunks.items()),
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
        for name, chunk in parts
    )


def patched(content: bytes, offset: int, layout: str, *numbers: int) -> bytes:
    """Return a file with other numbers at an offset."""
    written = struct.pack(layout, *numbers)
    return content[:offset] + written + content[offset + len(written) :]


def npy(shape: tuple[int, ...], dtype: str = "|u1", content: bytes = bytes(100)) -> bytes:
    """Return a ``.npy`` file whose header declares any shape and type."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def many_tags(num_tags: int = 3_000, num_bytes: int = 20_000) -> bytes:
    """Return a TIFF file whose tags all refer to the same bytes: each would be read once more."""
    tags = b"".join(struct.pack("<HHII", 300 + number, 7, num_bytes, 8) for number in range(num_tags))
    return (
        b"II*\0" + struct.pack("<I", 8 + num_bytes) + bytes(num_bytes) + struct.pack("<H", num_tags) + tags + bytes(4)
    )


def _valid_images() -> Iterator[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (16, 12, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    gray, rgb, rgba = (Image.fromarray(noise[..., 0]), Image.fromarray(noise[..., :3]), Image.fromarray(noise))
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) << 4)
    for image in (gray, rgb, rgba, deep, gray.convert("1"), rgb.quantize(7), gray.convert("LA")):
        yield save(image, "PNG", exif=exif)
    yield save(rgb.quantize(7), "PNG", transparency=3)
    yield save(rgb, "JPEG", exif=exif, progressive=True)
    yield save(gray, "JPEG", comment=b"text")
    yield save(rgb.convert("CMYK"), "JPEG")
    yield save(gray, "GIF", save_all=True, append_images=[gray.rotate(90)], duration=10, loop=0)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield save(gray, "TIFF", compression=compression)
    yield save(deep, "TIFF")
    yield save(gray.convert("F"), "TIFF")
    yield save(rgb, "TIFF", save_all=True, append_images=[rgb])
    yield save(gray, "BMP")
    yield save(rgba, "BMP")
    yield save(gray.convert("1"), "BMP")
    yield save(rgb, "WEBP", exif=exif)
    yield save(rgba, "WEBP", lossless=True)
    yield save(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)], duration=10)
    yield save(gray.resize((300, 300)).convert("1"), "PNG")  # more than MAX_PIXELS
    yield npy((2, 5, 10))
    yield npy((100,), ">i4")


@cache
def hostile_images() -> dict[str, bytes]:
    """Return small files that declare huge images, or expand to much more than their size."""
    side = 1 << 14
    gray, rgba = Image.new("L", (8, 8)), Image.new("RGBA", (8, 8))
    gif, bmp, jpeg = (save(gray, file_format) for file_format in ("GIF", "BMP", "JPEG"))
    webp = save(rgba, "WEBP", save_all=True, append_images=[Image.new("RGBA", (8, 8), (9, 9, 9, 9))])
    lossless, lossy = save(rgba, "WEBP", lossless=True), save(gray, "WEBP")
    tiff = save(gray, "TIFF")
    first_tag = struct.unpack("<I", tiff[4:8])[0] + 2
    bomb = zlib.compress(bytes(1 << 26))
    return {
        "png": png(2**31 - 1, 2**31 - 1),
        "png, one bit": png(side, side, 1, 0, zlib.compress(bytes(side * (side // 8 + 1)), 9)),
        "png, text": png(4, 4, zTXt=b"x\0\0" + bomb),
        "png, international text": png(4, 4, iTXt=b"x\0\1\0\0\0" + bomb),
        "png, profile": png(4, 4, iCCP=b"x\0\0" + bomb),
        "png, exif": png(4, 4, eXIf=many_tags(), pixels=zlib.compress(bytes(20))),
        "gif": patched(gif, 6, "<HH", 65_535, 65_535),
        "gif, frame": patched(gif, gif.index(b",", 13) + 5, "<HH", 65_535, 65_535),
        "bmp": patched(bmp, 18, "<ii", 2**31 - 1, 2**31 - 1),
        "bmp, top down": patched(bmp, 18, "<ii", 1 << 20, -(1 << 20)),
        "jpeg": patched(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_535, 65_535),
        "webp": patched(webp, 24, "<HBHB", 0xFFFF, 0xFF, 0xFFFF, 0xFF),
        "webp, canvas": patched(webp, 24, "<HBHB", 12_999, 0, 12_999, 0),
        "webp, lossless": patched(lossless, 21, "<I", 12_999 | 12_999 << 14),
        "webp, lossy": patched(lossy, 26, "<HH", 13_000, 13_000),
        "tiff": patched(
            patched(tiff, first_tag, "<HHII", 256, 4, 1, 1 << 31), first_tag + 12, "<HHII", 257, 4, 1, 1 << 31
        ),
        "tiff, tags": many_tags(),
        "npy": npy((100, 10_000, 10_000)),
        "npy, wide": npy((10, 10), "|S1000000000"),
        "npy, deep": b"\x93NUMPY\1\0" + struct.pack("<H", 9_000) + b"(" * 9_000,
        "npy, negative": npy((-1 << 20, -1 << 20)),
    }


# Files of a bundle.

PATH = Path("models/digits/1")
GRAPH = echo_graph()


def _golden() -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **asdict(echo_golden()))
    return content.getvalue()


GOLDEN = _golden()
DESCRIBED = asdict(manifest(1)) | {"sha256": hashlib.sha256(GRAPH).hexdigest()}


def _parse(files: BundleFiles, checks: set[str]) -> bundle.Bundle | None:
    """Parse a bundle; None if it fails one of these checks."""
    with limited_to(MAX_NEW_BYTES):
        try:
            return bundle.parse_bundle(files)
        except BundleError as error:
            _assert_readable(error)
            assert error.check in checks, error
            return None


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 10**30, -1e300, 1e-9, 1e-2, "", "7", "\ud800", "\0", "\u202e", "x" * 300, [], {}, [[]],
    ["0"] * 10, [str(n) for n in range(10)], [str(n) for n in range(1001)], {"name": "images"}, [{"name": "images"}],
    [{"name": "images", "dtype": "uint8", "shape": [None, 28, 28, 1]}], {"x": 1}, {"x": "y"}, {"\ud800": 1}, [None] * 10,
)  # fmt: skip
TOKENS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'"\\ud83d"',
    b"\xff",
    b"01",
)
"""Pieces of text in place of a value that no writer of JSON returns."""


def manifests(choices: bytes) -> None:
    """A manifest describes what the service can serve, or fails its check: random text, or a valid one with other values."""
    source = Source(choices)
    if source.byte() & 1:
        content = choices[1:]
    else:
        described: dict[str, Any] = dict(DESCRIBED)
        token = b"0"
        for _ in range(1 + source.byte() % 3):
            name = source.pick((*DESCRIBED, "more"))
            how = source.byte()
            if how < 30:
                described.pop(name, None)
            elif how < 60:
                described[name], token = "token", source.pick(TOKENS)
            else:
                described[name] = source.pick(VALUES)
        content = json.dumps(described).encode("utf-8", "surrogatepass").replace(b'"token"', token)
        if source.byte() & 1:
            content = content[:-1] + b', "labels": ' + json.dumps(source.pick(VALUES)).encode() + b"}"
    parsed = _parse(BundleFiles(PATH, content, GRAPH, GOLDEN), {"manifest", "sha256", "golden"})
    if parsed is not None:
        _check_manifest(parsed.manifest)


def _check_manifest(read: bundle.Manifest) -> None:
    """Check a manifest that was accepted, by the documentation of its fields."""
    assert (read.name, read.version, read.format, read.ink, read.framing) == ("digits", 1, 1, "light_on_dark", "mnist")
    assert read.sha256 == DESCRIBED["sha256"]
    assert len(set(read.labels)) == len(read.labels) == 10
    assert all(label.isprintable() and 0 < len(label) <= 256 for label in read.labels)
    assert np.isfinite(read.ood_threshold) and 0 < read.golden_tolerance <= 1e-2
    assert all(np.isfinite(value) for value in read.quality.values())
    assert (read.inputs, read.outputs) == bundle.graph_signature(10)
    # It can be encoded again, for GetModel and the log.
    json.dumps([read.labels, read.training, read.quality], allow_nan=False, ensure_ascii=False).encode()


def graphs(choices: bytes) -> None:
    """A graph that is accepted is self-contained, as the package onnx reads it; the input extends or replaces a valid one."""
    graph = choices[1:] if choices[:1] == b"\1" else GRAPH + choices[1:]
    with limited_to(MAX_NEW_BYTES):
        try:
            graph_check.check_graph(graph, [bundle.INPUT_NAME], bundle.OUTPUT_NAMES)
        except BundleError as error:
            _assert_readable(error)
            assert error.check == "signature"
            return
    try:
        model = onnx.ModelProto.FromString(graph)
    except DecodeError:  # in a part that the check does not read: onnxruntime refuses it, too
        return
    assert not model.functions and not model.graph.sparse_initializer
    assert sorted(value.name for value in model.graph.output) == sorted(bundle.OUTPUT_NAMES)
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        assert node.domain in graph_check.DOMAINS
        for attribute in node.attribute:
            assert not attribute.HasField("g") and not attribute.graphs
            assert not attribute.HasField("sparse_tensor") and not attribute.sparse_tensors
            tensors += [attribute.t, *attribute.tensors]
    for tensor in tensors:
        assert tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data
        assert np.prod([float(axis) for axis in tensor.dims]) <= 2 * len(graph)


def _graph_seeds() -> Iterator[bytes]:
    external = number_field(14, 1) + field(13, field(1, b"location") + field(2, b"/dev/zero"))
    body = field(1, field(4, b"Identity"))
    for in_graph in (
        field(1, field(4, b"Run") + field(7, b"evil.ops")),
        field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, body))),
        field(1, field(4, b"Constant") + field(5, field(1, b"value") + field(5, number_field(1, 1 << 40)))),
        field(1, field(4, b"Constant") + field(5, field(22, number_field(3, 1 << 40)))),
        field(5, external), field(5, number_field(1, 1 << 62) * 30), field(5, field(1, b"\1" * 300)), field(15, number_field(3, 9)),
        field(11, field(1, b"more")), field(12, field(1, b"\xff")), field(1, b"") * 500, field(13, field(1, b"value")),
    ):  # fmt: skip
        yield b"\0" + field(7, in_graph)
    yield b"\0" + field(25, field(1, b"Twice"))
    yield b"\0" + field(8, field(1, b"evil.ops") + number_field(2, 1))
    yield b"\0\x0b\x0c"
    yield b"\1" + GRAPH[:3_000]


def golden(content: bytes) -> None:
    """Arrays of golden.npz have their shapes and types, or the file fails its check."""
    parsed = _parse(BundleFiles(PATH, json.dumps(DESCRIBED).encode(), GRAPH, content), {"golden"})
    if parsed is not None:
        num_images = len(parsed.golden.images)
        assert num_images
        assert parsed.golden.images.shape == (num_images, 28, 28, 1)
        assert parsed.golden.probabilities.shape == (num_images, 10)
        assert parsed.golden.ood_score.shape == (num_images,)


def npz(**files: bytes) -> bytes:
    """Return an archive with arrays as bytes of ``.npy`` files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in files.items():
            archive.writestr(f"{name}.npy", file)
    return content.getvalue()


def hostile_golden() -> dict[str, bytes]:
    """Return archives that expand to gigabytes, or whose arrays declare them."""
    images = npy((1, 28, 28, 1), content=bytes(784))
    return {
        "declared": npz(images=npy((10**6, 28, 28, 1)), probabilities=npy((1, 10), "<f4"), ood_score=npy((1,), "<f4")),
        "wide": npz(images=images, probabilities=npy((1, 10), "|S1000000000"), ood_score=npy((1,), "<f4")),
        "object": npz(images=npy((1, 28, 28, 1), "|O"), probabilities=npy((1, 10), "<f4"), ood_score=npy((1,), "<f4")),
        "expands": npz(images=bytes(1 << 27)),
        "array": images,
    }


TARGETS = {
    "images": Target(
        images, (*_valid_images(), *(file for file in hostile_images().values() if len(file) < 8_000)), 8_000
    ),
    "uploads": Target(
        uploads,
        (
            *_valid_images(),
            save(Image.new("RGB", (200, 150), (250, 240, 90)), "JPEG"),
            npy((5, 4, 5)),
            *(file for file in hostile_images().values() if len(file) < 8_000),
        ),
        8_000,
    ),
    "manifests": Target(
        manifests,
        (
            b"\1" + json.dumps(DESCRIBED).encode(),
            b"\1" + json.dumps(DESCRIBED | {"ood_threshold": np.inf}).encode(),
            b"\1" + b"[" * 900,
            *CHOICES,
        ),
        4_000,
    ),
    "graphs": Target(graphs, tuple(_graph_seeds()), 4_000),
    "golden": Target(golden, (GOLDEN, *(file for file in hostile_golden().values() if len(file) < 8_000)), 8_000),
}
