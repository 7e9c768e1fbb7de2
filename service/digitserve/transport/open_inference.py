"""Handlers of the RPCs of the Open Inference Protocol that answer at once; ``classify`` handles ``ModelInfer``.

    transport ──request──▶ OpenInference ──response──▶ transport                 see Respond

Called on the worker's one thread.
"""

from collections.abc import Callable
from functools import cached_property

from digitserve.errors import NotServed
from digitserve.inference.bundle import Manifest
from digitserve.open_inference import open_inference_pb2 as pb
from digitserve.protocol.codec import parse
from digitserve.protocol.infer import DATATYPE, INPUT, check_model
from digitserve.protocol.names import MODEL_METADATA, MODEL_READY, SERVER_LIVE, SERVER_METADATA, SERVER_READY, Method
from digitserve.protocol.tensors import outputs_of

EXTENSIONS = ("classification",)
"""Extensions of the protocol that are supported, by the names that Triton gives them."""

PLATFORM = "onnx_onnxv1"
"""The protocol's name for ONNX."""

ANY = -1
"""A dimension of any size."""

_LIVE = pb.ServerLiveResponse(live=True).SerializeToString()


class OpenInference:
    """Describes server and model; owned by the worker.

    Attributes:
        handlers: a ``Respond`` handler for each RPC.
    """

    def __init__(self, manifest: Manifest, is_serving: Callable[[], bool]) -> None:
        """Describe the model of a manifest.

        Args:
            manifest: of the model being served.
            is_serving: whether the worker accepts requests.
        """
        self._name, self._version = manifest.name, str(manifest.version)
        self._is_serving = is_serving
        metadata = pb.ModelMetadataResponse(name=self._name, versions=[self._version], platform=PLATFORM)
        metadata.inputs.add(name=INPUT, datatype=DATATYPE, shape=[ANY, ANY, ANY, ANY])
        for output in outputs_of(manifest.labels).values():
            metadata.outputs.add(name=output.name, datatype=output.datatype, shape=[ANY, *output.row])
        self._model = metadata.SerializeToString()
        self.handlers: dict[Method, Callable[[bytes], bytes]] = {
            SERVER_LIVE: self._server_live,
            SERVER_READY: self._server_ready,
            MODEL_READY: self._model_ready,
            SERVER_METADATA: self._server_metadata,
            MODEL_METADATA: self._model_metadata,
        }

    @cached_property
    def _server(self) -> bytes:
        from importlib.metadata import version  # noqa: PLC0415 - takes 15 ms, which would delay the start of a worker

        return pb.ServerMetadataResponse(
            name="digitserve", version=version("digitserve"), extensions=EXTENSIONS
        ).SerializeToString()

    def _server_live(self, body: bytes) -> bytes:
        parse(pb.ServerLiveRequest, body)
        return _LIVE

    def _server_ready(self, body: bytes) -> bytes:
        parse(pb.ServerReadyRequest, body)
        return pb.ServerReadyResponse(ready=self._is_serving()).SerializeToString()

    def _model_ready(self, body: bytes) -> bytes:
        """A model or version that is not served is not ready; this is not an error, so that clients can wait for a version."""
        request = parse(pb.ModelReadyRequest, body)
        try:
            check_model(self._name, self._version, request.name, request.version)
        except NotServed:
            ready = False
        else:
            ready = self._is_serving()
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    def _server_metadata(self, body: bytes) -> bytes:
        parse(pb.ServerMetadataRequest, body)
        return self._server

    def _model_metadata(self, body: bytes) -> bytes:
        request = parse(pb.ModelMetadataRequest, body)
        check_model(self._name, self._version, request.name, request.version)
        return self._model
