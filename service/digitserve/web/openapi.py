"""The OpenAPI 3.1 description of the HTTP API, built from the messages of the protocol and the declared parameters; no state.

Source: OpenAPI Specification 3.1.1; protobuf.dev, "ProtoJSON format".
"""

import json
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import status_pb2

from digitserve import __version__
from digitserve.v1 import digits_pb2 as pb
from digitserve.web.parameters import MODEL_VERSION, PARAMETERS, READ_PARAMETERS, Parameter
from digitserve.web.uploads import FILE_TYPES

CLASSIFY_PATH, READ_PATH, MODEL_PATH, OPENAPI_PATH = "/v1/classify", "/v1/read", "/v1/model", "/v1/openapi.json"

_ERRORS = {
    400: "`INVALID_ARGUMENT`: an empty body, a file that is not an image or is damaged, wrong sizes, an unknown or invalid parameter.",
    401: "`UNAUTHENTICATED`: no valid token or client certificate.",
    404: "`NOT_FOUND`: the model version is not served.",
    408: "`DEADLINE_EXCEEDED`: the body did not arrive in time.",
    413: "`RESOURCE_EXHAUSTED`, `INVALID_ARGUMENT`: the body, the image or its number of pixels is too large. The rest of the body "
    "is not read.",
    415: "`INVALID_ARGUMENT`: a content type that is not listed, or a compressed body.",
    429: "`RESOURCE_EXHAUSTED`: overload. `details` has `RetryInfo`.",
    500: "`INTERNAL`: a fault of the service. The message is fixed.",
    503: "`UNAVAILABLE`: no worker is ready, or the service drains.",
    504: "`DEADLINE_EXCEEDED`: no answer in time.",
}
"""Texts of errors, in Markdown: codes, then the cause."""

_WITH_RETRY = (429, 503)
_MODEL_ERRORS = (400, 401, 404, 429, 500, 503, 504)

_Field = FieldDescriptor
_NUMBERS: dict[int, dict[str, Any]] = {
    _Field.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    _Field.TYPE_INT32: {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    _Field.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$", "format": "uint64"},
    _Field.TYPE_FLOAT: {"type": "number", "format": "float"},
    _Field.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _Field.TYPE_BOOL: {"type": "boolean"},
    _Field.TYPE_STRING: {"type": "string"},
    _Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}


def description(max_images: int) -> str:
    """Return the description as JSON.

    Args:
        max_images: most images of a request.
    """
    schemas: dict[str, Any] = {}
    for message in (pb.ClassifyResponse, pb.ReadResponse, pb.GetModelResponse):
        _add_schema(cast("Descriptor", message.DESCRIPTOR), schemas)
    schemas["Status"] = _status_schema()
    files: dict[str, Any] = {name: {} for name in (*FILE_TYPES, "application/octet-stream")}
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "digitserve",
                "version": __version__,
                "summary": "Classifies images of handwritten digits, and reads numbers.",
                "description": "The HTTP form of the gRPC service digitserve.v1.DigitService. Answers are ProtoJSON with the field names "
                "of the protocol; errors are google.rpc.Status.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": {
                CLASSIFY_PATH: {
                    "post": {
                        "operationId": "classify",
                        "summary": "Classify one image, or several of the same size.",
                        "description": f"The body is a file, whose format is detected, or with `width` and `height` raw pixels: uint8, "
                        f"row-major, of one or more images. At most {max_images} images.",
                        "parameters": [_parameter(parameter) for parameter in PARAMETERS],
                        "requestBody": {"required": True, "content": files},
                        "responses": {
                            "200": _answer("One prediction per image, in order.", "ClassifyResponse"),
                            **_errors(tuple(_ERRORS)),
                        },
                    }
                },
                READ_PATH: {
                    "post": {
                        "operationId": "read",
                        "summary": "Read the numbers in an image.",
                        "description": "The body is a file with one image, whose format is detected, or with `width` and `height` raw "
                        "pixels: uint8, row-major.",
                        "parameters": [_parameter(parameter) for parameter in READ_PARAMETERS],
                        "requestBody": {"required": True, "content": files},
                        "responses": {
                            "200": _answer("Lines of text in reading order.", "ReadResponse"),
                            **_errors(tuple(_ERRORS)),
                        },
                    }
                },
                MODEL_PATH: {
                    "get": {
                        "operationId": "getModel",
                        "summary": "Describe the model that is served.",
                        "parameters": [_parameter(MODEL_VERSION)],
                        "responses": {"200": _answer("The model.", "GetModelResponse"), **_errors(_MODEL_ERRORS)},
                    }
                },
                OPENAPI_PATH: {
                    "get": {
                        "operationId": "getDescription",
                        "summary": "This description.",
                        "responses": {
                            "200": {
                                "description": "OpenAPI 3.1.",
                                "content": {"application/json": {"schema": {"type": "object"}}},
                            },
                            **_errors((400, 401, 500, 503)),
                        },
                    }
                },
            },
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer", "description": "With --token-file."},
                    "certificate": {"type": "mutualTLS", "description": "With --tls-client-ca."},
                },
            },
            "security": [{}, {"token": []}, {"certificate": []}, {"token": [], "certificate": []}],
        }
    )


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {"name": parameter.name, "in": "query", "description": parameter.text, "schema": parameter.schema}


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _reference(schema)}}}


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    errors = {str(status): _answer(_ERRORS[status], "Status") for status in statuses}
    for status in map(str, _WITH_RETRY):
        if status in errors:
            seconds = {
                "description": "Seconds until a retry should succeed.",
                "schema": {"type": "integer", "minimum": 1},
            }
            errors[status]["headers"] = {"Retry-After": seconds}
    return errors


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _add_schema(descriptor: Descriptor, schemas: dict[str, Any]) -> None:
    """Add the schema of a message, and of those that it contains."""
    if descriptor.name in schemas:
        return
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
    schemas[descriptor.name] = schema
    for field in descriptor.fields:
        schema["properties"][field.name] = _field(field, schemas)
        # ProtoJSON is written with fields that have their default value, but without messages that are absent.
        if not field.has_presence:
            schema["required"].append(field.name)


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(entry.fields_by_name["value"], schemas)}
    value = _value(field, schemas)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        _add_schema(field.message_type, schemas)
        return _reference(field.message_type.name)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return _NUMBERS[field.type]


def _status_schema() -> dict[str, Any]:
    """Return the schema of ``google.rpc.Status``, whose details are any messages."""
    fields = status_pb2.Status.DESCRIPTOR.fields_by_name
    detail = {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]}
    return {
        "type": "object",
        "properties": {
            "code": _NUMBERS[fields["code"].type],
            "message": _NUMBERS[fields["message"].type],
            "details": {"type": "array", "items": detail},
        },
        "required": ["code", "message", "details"],
    }
