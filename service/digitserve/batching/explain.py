"""How images were prepared, for requests with ``explain``.

    images of a request, Prepared ──explain──▶ Preparation for each image ──codec.Encoder──▶ ClassifyResponse

The pipeline calls it on the worker's one thread, after ``prepare`` and for such requests only.
"""

from digitserve.batching.prepare import Images, Prepared
from digitserve.protocol.codec import Preparation, Removed
from digitserve.protocol.names import Artefact
from digitserve.types import Box, Framing, Gray, Ink
from digitserve.vision.framing import Framed
from digitserve.vision.gray import to_gray
from digitserve.vision.polarity import find_ink


def explain(images: Images, start: int, stop: int, prepared: Prepared, row: int) -> list[Preparation]:
    """Return how images of one request were prepared.

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
    framed = {first + index: result for first, results in prepared.framed for index, result in enumerate(results)}
    return [
        _framed(image, inputs, images.ink, framed[row + index]) if row + index in framed else _as_is(image, inputs)
        for index, (image, inputs) in enumerate(zip(gray, prepared.images[row : row + stop - start], strict=True))
    ]


def _as_is(gray: Gray, inputs: Gray) -> Preparation:
    """Explain an image that was used as it is: uint8[28,28], and what the network saw: uint8[28,28,1]."""
    ink = Ink.LIGHT_ON_DARK if (gray == inputs[..., 0]).all() else Ink.DARK_ON_LIGHT
    return Preparation(inputs.tobytes(), Framing.AS_IS, ink)


def _framed(gray: Gray, inputs: Gray, ink: Ink, framed: Framed) -> Preparation:
    """Explain a framed image: uint8[H,W], and what the network saw: uint8[28,28,1]."""
    if framed.blank:
        return Preparation(inputs.tobytes(), Framing.MNIST, None)
    # Results of framing need not have these fields.
    found: Ink | None = getattr(framed, "ink", None)
    if found is None:
        found = find_ink(gray) if ink is Ink.AUTO else ink
    box = getattr(framed, "box", None)
    removed = [Removed(Artefact[artefact.name]) for artefact in getattr(framed, "removed", ())]
    return Preparation(inputs.tobytes(), Framing.MNIST, found, None if box is None else Box(*box), removed)
