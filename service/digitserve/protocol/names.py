"""Facts of the protocol, stated once: names of services and methods, gRPC's status codes, enums of the messages."""

from enum import IntEnum
from typing import NamedTuple

SERVICE = "digitserve.v1.DigitService"
OPEN_INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
REFLECTION_V1_SERVICE = "grpc.reflection.v1.ServerReflection"


class Method(NamedTuple):
    """An RPC method.

    Attributes:
        kind: ``unary``, ``server_stream`` or ``bidi_stream``: the label ``grpc_type`` of metrics.
        service: full name of its service.
        name: its name within the service.
    """

    kind: str
    service: str
    name: str

    @property
    def path(self) -> str:
        """The path of its HTTP/2 requests, ``/package.Service/Method``."""
        return f"/{self.service}/{self.name}"


CLASSIFY = Method("unary", SERVICE, "Classify")
CLASSIFY_STREAM = Method("bidi_stream", SERVICE, "ClassifyStream")
READ = Method("unary", SERVICE, "Read")
READ_STREAM = Method("bidi_stream", SERVICE, "ReadStream")
GET_MODEL = Method("unary", SERVICE, "GetModel")
SERVER_LIVE = Method("unary", OPEN_INFERENCE_SERVICE, "ServerLive")
SERVER_READY = Method("unary", OPEN_INFERENCE_SERVICE, "ServerReady")
MODEL_READY = Method("unary", OPEN_INFERENCE_SERVICE, "ModelReady")
SERVER_METADATA = Method("unary", OPEN_INFERENCE_SERVICE, "ServerMetadata")
MODEL_METADATA = Method("unary", OPEN_INFERENCE_SERVICE, "ModelMetadata")
MODEL_INFER = Method("unary", OPEN_INFERENCE_SERVICE, "ModelInfer")
HEALTH_CHECK = Method("unary", HEALTH_SERVICE, "Check")
HEALTH_WATCH = Method("server_stream", HEALTH_SERVICE, "Watch")
HEALTH_LIST = Method("unary", HEALTH_SERVICE, "List")
REFLECTION = Method("bidi_stream", REFLECTION_SERVICE, "ServerReflectionInfo")
REFLECTION_V1 = Method("bidi_stream", REFLECTION_V1_SERVICE, "ServerReflectionInfo")


class Code(IntEnum):
    """gRPC's status codes.

    Source: github.com/grpc/grpc, doc/statuscodes.md.
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    # Faster than ``Enum.__hash__``, which is a Python function: each call looks up its status.
    __hash__ = int.__hash__

    @property
    def label(self) -> str:
        """The value of the metrics' label ``grpc_code``, as go-grpc-prometheus writes it."""
        if self is Code.OK:
            return "OK"
        # Go spells this one with one l.
        return "Canceled" if self is Code.CANCELLED else self.name.title().replace("_", "")


SERVICE_FAULTS = (
    Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS,
)  # fmt: skip
"""Codes of requests that count against the availability of the service; the others are OK, or faults of clients."""


class Verdict(IntEnum):
    """Whether a prediction can be used; the numbers are those of ``digitserve.v1.Verdict``."""

    UNSPECIFIED = 0
    ACCEPTED = 1
    UNFAMILIAR = 2
    BLANK = 3
    SEVERAL = 4


class Artefact(IntEnum):
    """What framing removed from an image; the numbers are those of ``digitserve.v1.Artefact``."""

    UNSPECIFIED = 0
    PAGE_EDGE = 1
    RECTANGLE = 2
    BORDER = 3


class Layout(IntEnum):
    """How the numbers are arranged in an image; the numbers are those of ``digitserve.v1.Layout``."""

    UNSPECIFIED = 0
    PAGE = 1
    LINE = 2
    CELLS = 3


class MarkKind(IntEnum):
    """What a mark in a line is; the numbers are those of ``digitserve.v1.MarkKind``."""

    UNSPECIFIED = 0
    DIGIT = 1
    SEPARATOR = 2
    UNREAD = 3
    EMPTY = 4


class IgnoredKind(IntEnum):
    """Why ink is part of no line; the numbers are those of ``digitserve.v1.IgnoredKind``."""

    UNSPECIFIED = 0
    RULING = 1
    SPECK = 2
    SHAPE = 3
    OTHER_LINE = 4
