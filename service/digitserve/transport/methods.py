"""The methods of the service: which handler each has, and what the worker does with all handlers of streams.

    worker ──pipeline, readings──▶ Methods ──unary, streams──▶ Server
    worker ──flush, drain, has_unsent_answers, ...──▶ Methods ──▶ handlers of streams

Built once by the worker, and called on its one thread unless stated otherwise.
"""

from typing import TYPE_CHECKING

from digitserve.batching.pipeline import Pipeline
from digitserve.batching.readings import Readings
from digitserve.inference.bundle import Bundle
from digitserve.protocol.codec import Limits
from digitserve.protocol.infer import InferDecoder
from digitserve.protocol.names import (
    CLASSIFY,
    CLASSIFY_STREAM,
    GET_MODEL,
    HEALTH_CHECK,
    HEALTH_LIST,
    HEALTH_WATCH,
    MODEL_INFER,
    READ,
    READ_STREAM,
    REFLECTION,
    REFLECTION_V1,
    Method,
)  # fmt: skip
from digitserve.settings import Settings
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify import ClassifyHandler, InferResponder
from digitserve.transport.classify_stream import WINDOW_BATCHES, ClassifyStreamHandler
from digitserve.transport.health import Health
from digitserve.transport.model import ModelHandler
from digitserve.transport.open_inference import OpenInference
from digitserve.transport.read import read_handler
from digitserve.transport.read_stream import read_stream_handler
from digitserve.transport.reflection import ReflectionHandler, Schema
from digitserve.transport.respond import RespondHandler
from digitserve.types import native_framing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from digitserve.transport.handlers import Respond, StreamHandler, UnaryHandler


class Methods:
    """The handlers of one worker.

    Attributes:
        health: what the worker reports.
        unary: handlers of unary methods.
        streams: handlers of streams.
    """

    def __init__(
        self,
        settings: Settings,
        served: Bundle,
        provider: str,
        pipeline: Pipeline,
        readings: Readings,
        recorder: Recorder,
    ) -> None:
        """Build the handlers.

        Args:
            settings: of the service.
            served: the bundle, with the name that callers know.
            provider: onnxruntime's name of the execution provider in use.
            pipeline: classifies.
            readings: reads numbers.
            recorder: of the worker.
        """
        manifest = served.manifest
        limits = Limits(
            model_version=str(manifest.version),
            max_side=settings.max_side,
            max_images=settings.max_pending_images,
            max_request_bytes=settings.max_request_bytes,
            native_framing=native_framing(manifest.labels),
        )
        self.health = Health(recorder, settings.connection_limit)
        window = WINDOW_BATCHES * settings.batch_limit
        self._classify_streams = ClassifyStreamHandler(pipeline, limits, window, recorder)
        self._answering = (self._classify_streams, read_stream_handler(readings, limits, recorder))
        self._reflections = _reflections(settings, recorder)
        respond: dict[Method, Respond] = {
            GET_MODEL: ModelHandler(served, provider, limits, settings.batch_limit),
            HEALTH_CHECK: self.health.check,
            HEALTH_LIST: self.health.list_services,
            **OpenInference(manifest, lambda: self.health.serving).handlers,
        }
        decoder = InferDecoder(manifest.name, str(manifest.version), manifest.labels)
        self.unary: Mapping[Method, UnaryHandler] = {
            CLASSIFY: ClassifyHandler(pipeline, limits, recorder),
            MODEL_INFER: ClassifyHandler(pipeline, limits, recorder, responder=InferResponder, decode=decoder.decode),
            READ: read_handler(readings, limits, recorder),
            **{method: RespondHandler(method, handler, recorder) for method, handler in respond.items()},
        }
        self.streams: Mapping[Method, StreamHandler] = {
            **dict(zip((CLASSIFY_STREAM, READ_STREAM), self._answering, strict=True)),
            HEALTH_WATCH: self.health,
            **self._reflections,
        }

    @property
    def stream_images_in_flight(self) -> list[int]:
        """Number of images in flight on each open stream that classifies; may be read from any thread."""
        return self._classify_streams.images_in_flight

    def flush(self) -> None:
        """Start sending the answers that streams have got since the last call."""
        for handler in self._answering:
            handler.flush()

    def drain(self) -> None:
        """End all streams once the messages that arrived are answered; watches of health end at once."""
        for handler in self._answering:
            handler.drain()
        self.health.close_watches()
        for reflection in self._reflections.values():
            reflection.drain()

    def has_unsent_answers(self) -> bool:
        """Return whether answers of streams are not sent yet."""
        return any(handler.has_unsent_answers() for handler in self._answering)

    def num_unsent_answers(self) -> int:
        """Return the number of answers of streams that are not sent yet."""
        return sum(handler.num_unsent_answers() for handler in self._answering)


def _reflections(settings: Settings, recorder: Recorder) -> dict[Method, ReflectionHandler]:
    if settings.reflection != "on":
        return {}
    schema = Schema()
    return {method: ReflectionHandler(method, schema, recorder) for method in (REFLECTION, REFLECTION_V1)}
