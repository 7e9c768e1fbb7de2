from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_GRAY8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGB8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGBA8: _ClassVar[PixelFormat]

class Ink(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INK_UNSPECIFIED: _ClassVar[Ink]
    INK_LIGHT_ON_DARK: _ClassVar[Ink]
    INK_DARK_ON_LIGHT: _ClassVar[Ink]
    INK_AUTO: _ClassVar[Ink]

class Framing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAMING_UNSPECIFIED: _ClassVar[Framing]
    FRAMING_AS_IS: _ClassVar[Framing]
    FRAMING_MNIST: _ClassVar[Framing]

class Artefact(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTEFACT_UNSPECIFIED: _ClassVar[Artefact]
    ARTEFACT_PAGE_EDGE: _ClassVar[Artefact]
    ARTEFACT_RECTANGLE: _ClassVar[Artefact]
    ARTEFACT_BORDER: _ClassVar[Artefact]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ACCEPTED: _ClassVar[Verdict]
    VERDICT_UNFAMILIAR: _ClassVar[Verdict]
    VERDICT_BLANK: _ClassVar[Verdict]
    VERDICT_SEVERAL: _ClassVar[Verdict]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_PAGE: _ClassVar[Layout]
    LAYOUT_LINE: _ClassVar[Layout]
    LAYOUT_CELLS: _ClassVar[Layout]

class MarkKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MARK_KIND_UNSPECIFIED: _ClassVar[MarkKind]
    MARK_KIND_DIGIT: _ClassVar[MarkKind]
    MARK_KIND_SEPARATOR: _ClassVar[MarkKind]
    MARK_KIND_UNREAD: _ClassVar[MarkKind]
    MARK_KIND_EMPTY: _ClassVar[MarkKind]

class IgnoredKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IGNORED_KIND_UNSPECIFIED: _ClassVar[IgnoredKind]
    IGNORED_KIND_RULING: _ClassVar[IgnoredKind]
    IGNORED_KIND_SPECK: _ClassVar[IgnoredKind]
    IGNORED_KIND_SHAPE: _ClassVar[IgnoredKind]
    IGNORED_KIND_OTHER_LINE: _ClassVar[IgnoredKind]
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_GRAY8: PixelFormat
PIXEL_FORMAT_RGB8: PixelFormat
PIXEL_FORMAT_RGBA8: PixelFormat
INK_UNSPECIFIED: Ink
INK_LIGHT_ON_DARK: Ink
INK_DARK_ON_LIGHT: Ink
INK_AUTO: Ink
FRAMING_UNSPECIFIED: Framing
FRAMING_AS_IS: Framing
FRAMING_MNIST: Framing
ARTEFACT_UNSPECIFIED: Artefact
ARTEFACT_PAGE_EDGE: Artefact
ARTEFACT_RECTANGLE: Artefact
ARTEFACT_BORDER: Artefact
VERDICT_UNSPECIFIED: Verdict
VERDICT_ACCEPTED: Verdict
VERDICT_UNFAMILIAR: Verdict
VERDICT_BLANK: Verdict
VERDICT_SEVERAL: Verdict
LAYOUT_UNSPECIFIED: Layout
LAYOUT_PAGE: Layout
LAYOUT_LINE: Layout
LAYOUT_CELLS: Layout
MARK_KIND_UNSPECIFIED: MarkKind
MARK_KIND_DIGIT: MarkKind
MARK_KIND_SEPARATOR: MarkKind
MARK_KIND_UNREAD: MarkKind
MARK_KIND_EMPTY: MarkKind
IGNORED_KIND_UNSPECIFIED: IgnoredKind
IGNORED_KIND_RULING: IgnoredKind
IGNORED_KIND_SPECK: IgnoredKind
IGNORED_KIND_SHAPE: IgnoredKind
IGNORED_KIND_OTHER_LINE: IgnoredKind

class ClassifyRequest(_message.Message):
    __slots__ = ("pixels", "height", "width", "num_images", "pixel_format", "ink", "framing", "top_k", "model_version", "explain")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    INK_FIELD_NUMBER: _ClassVar[int]
    FRAMING_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    height: int
    width: int
    num_images: int
    pixel_format: PixelFormat
    ink: Ink
    framing: Framing
    top_k: int
    model_version: str
    explain: bool
    def __init__(self, pixels: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., num_images: _Optional[int] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., ink: _Optional[_Union[Ink, str]] = ..., framing: _Optional[_Union[Framing, str]] = ..., top_k: _Optional[int] = ..., model_version: _Optional[str] = ..., explain: _Optional[bool] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("predictions", "model_name", "model_version", "timing")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    model_name: str
    model_version: str
    timing: Timing
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ClassifyRequest
    def __init__(self, request: _Optional[_Union[ClassifyRequest, _Mapping]] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: ClassifyResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("label", "class_index", "confidence", "verdict", "ood_score", "top", "preparation")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    OOD_SCORE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    PREPARATION_FIELD_NUMBER: _ClassVar[int]
    label: str
    class_index: int
    confidence: float
    verdict: Verdict
    ood_score: float
    top: _containers.RepeatedCompositeFieldContainer[ClassScore]
    preparation: Preparation
    def __init__(self, label: _Optional[str] = ..., class_index: _Optional[int] = ..., confidence: _Optional[float] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., ood_score: _Optional[float] = ..., top: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ..., preparation: _Optional[_Union[Preparation, _Mapping]] = ...) -> None: ...

class Preparation(_message.Message):
    __slots__ = ("pixels", "framing", "ink", "box", "removed")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    FRAMING_FIELD_NUMBER: _ClassVar[int]
    INK_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    framing: Framing
    ink: Ink
    box: Box
    removed: _containers.RepeatedCompositeFieldContainer[Removed]
    def __init__(self, pixels: _Optional[bytes] = ..., framing: _Optional[_Union[Framing, str]] = ..., ink: _Optional[_Union[Ink, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., removed: _Optional[_Iterable[_Union[Removed, _Mapping]]] = ...) -> None: ...

class Removed(_message.Message):
    __slots__ = ("artefact", "box")
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    artefact: Artefact
    box: Box
    def __init__(self, artefact: _Optional[_Union[Artefact, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("top", "bottom", "left", "right")
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    top: int
    bottom: int
    left: int
    right: int
    def __init__(self, top: _Optional[int] = ..., bottom: _Optional[int] = ..., left: _Optional[int] = ..., right: _Optional[int] = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("label", "class_index", "confidence")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    label: str
    class_index: int
    confidence: float
    def __init__(self, label: _Optional[str] = ..., class_index: _Optional[int] = ..., confidence: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_s", "preprocess_s", "inference_s", "batch_size")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_S_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    preprocess_s: float
    inference_s: float
    batch_size: int
    def __init__(self, queue_s: _Optional[float] = ..., preprocess_s: _Optional[float] = ..., inference_s: _Optional[float] = ..., batch_size: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    def __init__(self, model_version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "sha256", "labels", "height", "width", "ink", "framing", "ood_threshold", "execution_provider", "max_request_bytes", "max_images_per_request", "max_batch_size", "quality", "precision")
    class QualityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    INK_FIELD_NUMBER: _ClassVar[int]
    FRAMING_FIELD_NUMBER: _ClassVar[int]
    OOD_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    sha256: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    height: int
    width: int
    ink: Ink
    framing: Framing
    ood_threshold: float
    execution_provider: str
    max_request_bytes: int
    max_images_per_request: int
    max_batch_size: int
    quality: _containers.ScalarMap[str, float]
    precision: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., ink: _Optional[_Union[Ink, str]] = ..., framing: _Optional[_Union[Framing, str]] = ..., ood_threshold: _Optional[float] = ..., execution_provider: _Optional[str] = ..., max_request_bytes: _Optional[int] = ..., max_images_per_request: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., quality: _Optional[_Mapping[str, float]] = ..., precision: _Optional[str] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("pixels", "height", "width", "pixel_format", "ink", "layout", "num_digits", "pattern", "min_confidence", "placeholder", "top_k", "model_version")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    INK_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NUM_DIGITS_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    MIN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PLACEHOLDER_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    height: int
    width: int
    pixel_format: PixelFormat
    ink: Ink
    layout: Layout
    num_digits: int
    pattern: str
    min_confidence: float
    placeholder: str
    top_k: int
    model_version: str
    def __init__(self, pixels: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., ink: _Optional[_Union[Ink, str]] = ..., layout: _Optional[_Union[Layout, str]] = ..., num_digits: _Optional[int] = ..., pattern: _Optional[str] = ..., min_confidence: _Optional[float] = ..., placeholder: _Optional[str] = ..., top_k: _Optional[int] = ..., model_version: _Optional[str] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("lines", "ignored", "model_name", "model_version", "timing")
    LINES_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedCompositeFieldContainer[ReadLine]
    ignored: _containers.RepeatedCompositeFieldContainer[Ignored]
    model_name: str
    model_version: str
    timing: Timing
    def __init__(self, lines: _Optional[_Iterable[_Union[ReadLine, _Mapping]]] = ..., ignored: _Optional[_Iterable[_Union[Ignored, _Mapping]]] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class ReadStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ReadRequest
    def __init__(self, request: _Optional[_Union[ReadRequest, _Mapping]] = ...) -> None: ...

class ReadStreamResponse(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: ReadResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[ReadResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ReadLine(_message.Message):
    __slots__ = ("text", "confidence", "box", "marks", "matches")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    text: str
    confidence: float
    box: Box
    marks: _containers.RepeatedCompositeFieldContainer[Mark]
    matches: bool
    def __init__(self, text: _Optional[str] = ..., confidence: _Optional[float] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., marks: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., matches: _Optional[bool] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("text", "kind", "box", "label", "class_index", "confidence", "verdict", "ood_score", "top")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    OOD_SCORE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    text: str
    kind: MarkKind
    box: Box
    label: str
    class_index: int
    confidence: float
    verdict: Verdict
    ood_score: float
    top: _containers.RepeatedCompositeFieldContainer[ClassScore]
    def __init__(self, text: _Optional[str] = ..., kind: _Optional[_Union[MarkKind, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., label: _Optional[str] = ..., class_index: _Optional[int] = ..., confidence: _Optional[float] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., ood_score: _Optional[float] = ..., top: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ...) -> None: ...

class Ignored(_message.Message):
    __slots__ = ("kind", "box")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    kind: IgnoredKind
    box: Box
    def __init__(self, kind: _Optional[_Union[IgnoredKind, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...
