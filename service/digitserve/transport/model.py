"""Handler of ``GetModel``.

    transport ──GetModelRequest──▶ ModelHandler ──GetModelResponse, serialized once──▶ transport

Called on the worker's one thread.
"""

from digitserve.inference.bundle import Bundle
from digitserve.protocol.codec import Limits, not_served, parse
from digitserve.types import IMAGE_SIZE
from digitserve.v1 import digits_pb2 as pb


class ModelHandler:
    """Describes the model being served; owned by the worker. See ``handlers.Respond``."""

    def __init__(self, bundle: Bundle, provider: str, limits: Limits, max_batch_size: int) -> None:
        """Describe a bundle that runs on an execution provider, with the limits of this worker."""
        manifest = bundle.manifest
        self._version = str(manifest.version)
        self._response = pb.GetModelResponse(
            model=pb.Model(
                name=manifest.name,
                version=self._version,
                sha256=manifest.sha256,
                labels=manifest.labels,
                height=IMAGE_SIZE,
                width=IMAGE_SIZE,
                ink=pb.INK_LIGHT_ON_DARK,
                framing=pb.FRAMING_MNIST,
                ood_threshold=manifest.ood_threshold,
                execution_provider=provider,
                max_request_bytes=limits.max_request_bytes,
                max_images_per_request=limits.max_images,
                max_batch_size=max_batch_size,
                quality=dict(manifest.quality),
                precision=manifest.precision,
            )
        ).SerializeToString()

    def __call__(self, body: bytes) -> bytes:
        """Return a serialized ``GetModelResponse``.

        Raises:
            InvalidRequest: the body is not a ``GetModelRequest``.
            NotServed: the request names another model version.
        """
        request: pb.GetModelRequest = parse(pb.GetModelRequest, body)
        if request.model_version not in {"", self._version}:
            raise not_served(request.model_version, self._version)
        return self._response
