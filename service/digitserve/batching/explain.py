"""How images were prepared, for requests with ``explain``.

    images of a request, Prepared ──explain──▶ Preparation for each image ──codec.Encoder──▶ ClassifyResponse

The pipeline calls it on the worker's one thread, after ``prepare`` and for such requests only.
"""

from digitserve.batching.prepare import Images, Prepared
from digitserve.protocol.codec import Preparation, Removed
from digitserve.protocol.names import Artefact
from digitserve.types import Box, Framing, Gray, Ink
from digitserve.vision.framing import frame
from digitserve.vision.gray import to_gray
from digitserve.vision.polarity import find_ink


def explain(images: Images, start: int, stop: int, prepared: Prepared, row: int) -> list[Preparation]:
    """Return how images of one request were prepared. Framed images are framed once more to find out.

    Args:
        images: of the request.
        start: index of the first image.
        stop: index after the last image.
        prepared: the batch that holds them.
        row: of the first image in that batch.
    """
    image_bytes = images.height * images.width * images.channels
    pixels = memoryview(images.pixels)[start * image_bytes : stop * image_bytes]
    gray = to_gray(pixels, stop - start, images.height, images.width, images.channels)
    return [
        _explain(image, inputs, images)
        for image, inputs in zip(gray, prepared.images[row : row + stop - start, ..., 0], strict=True)
    ]


def _explain(gray: Gray, inputs: Gray, images: Images) -> Preparation:
    """Explain one image: uint8[H,W], and what the network saw: uint8[28,28]."""
    if images.framing is not Framing.MNIST:
        unchanged = (gray == inputs).all()
        if unchanged or images.framing is Framing.AS_IS:
            return Preparation(inputs.tobytes(), Framing.AS_IS, Ink.LIGHT_ON_DARK if unchanged else Ink.DARK_ON_LIGHT)
    framed = frame(gray, images.ink)
    if framed.blank:
        return Preparation(inputs.tobytes(), Framing.MNIST, None)
    # Results of framing need not have these fields.
    ink: Ink | None = getattr(framed, "ink", None)
    if ink is None:
        ink = find_ink(gray) if images.ink is Ink.AUTO else images.ink
    box = getattr(framed, "box", None)
    removed = tuple(Removed(Artefact[artefact.name]) for artefact in getattr(framed, "removed", ()))
    return Preparation(inputs.tobytes(), Framing.MNIST, ink, None if box is None else Box(*box), removed)
