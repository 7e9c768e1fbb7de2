"""How images were prepared, for requests with ``explain``.

    images of a request, Prepared ──explain──▶ Preparation for each image ──Encoder──▶ ClassifyResponse

The pipeline calls it on the worker's one thread, after ``prepare`` and for such requests only.
"""

import numpy as np

from digitserve.batching.prepare import Images, Prepared
from digitserve.protocol.encoder import Preparation, Removed
from digitserve.protocol.names import Artefact
from digitserve.types import Framing, Gray, Ink
from digitserve.vision.channel import select_channel
from digitserve.vision.framing import frame
from digitserve.vision.gray import to_gray


def explain(images: Images, start: int, stop: int, prepared: Prepared, row: int) -> list[Preparation]:
    """Return how images of one request were prepared. Framed images are framed once more to find out.

    Args:
        images: of the request.
        start: index of the first image.
        stop: index after the last image.
        prepared: the batch that holds them.
        row: of the first image in that batch.
    """
    shape = (images.num_images, images.height, images.width, images.channels)
    colors = np.frombuffer(images.pixels, np.uint8).reshape(shape)[start:stop]
    inputs = prepared.images[row : row + stop - start, ..., 0]
    return [_explain(pixels, seen, images) for pixels, seen in zip(colors, inputs, strict=True)]


def _explain(pixels: Gray, inputs: Gray, images: Images) -> Preparation:
    """Explain one image: uint8[H,W,C], and the network's input for it: uint8[28,28]."""
    if images.framing is Framing.AS_IS:
        gray = to_gray(pixels.tobytes(), 1, images.height, images.width, images.channels)[0]
        unchanged = (gray == inputs).all()
        return Preparation(inputs.tobytes(), Framing.AS_IS, Ink.LIGHT_ON_DARK if unchanged else Ink.DARK_ON_LIGHT)
    gray, ink = select_channel(pixels, images.ink)
    kept = Preparation(inputs.tobytes(), Framing.AS_IS, Ink.LIGHT_ON_DARK)
    if images.framing is Framing.AUTO and (gray == inputs).all():
        return kept
    framed = frame(gray, ink)
    # What is neither unchanged nor framed only got more contrast.
    if images.framing is Framing.AUTO and not (framed.pixels == inputs).all():
        return kept
    if framed.box is None:
        return Preparation(inputs.tobytes(), Framing.MNIST, None)
    removed = tuple(Removed(Artefact[artefact.name]) for artefact in framed.removed)
    return Preparation(inputs.tobytes(), Framing.MNIST, framed.ink, framed.box, removed)
