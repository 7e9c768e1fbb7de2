"""A service whose readings repeat what it was asked, so that tests of callers need no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import status_pb2

from digitserve.v1 import digits_pb2 as pb
from support.clients import serve_handlers

REFUSED = r"\q"
"""The pattern that it refuses."""

UNREAD = "9"
"""The first character of lines that it marks as unread."""


def answer(request: pb.ReadRequest) -> pb.ReadResponse:
    """Answer with two lines: the size of the image, and the mean of its pixels; the box is the whole image."""
    box = pb.Box(top=0, bottom=request.height, left=0, right=request.width)
    lines = []
    for text in (f"{request.height}/{request.width}", str(round(sum(request.pixels) / max(1, len(request.pixels))))):
        unread = text.startswith(UNREAD)
        kind = pb.MARK_KIND_UNREAD if unread else pb.MARK_KIND_DIGIT
        mark = pb.Mark(
            text=request.placeholder if unread else text[0], kind=kind, box=box, label=text[0], confidence=0.75
        )
        shown = mark.text + text[1:]
        lines.append(
            pb.ReadLine(
                text=shown, confidence=0 if unread else 0.75, box=box, marks=[mark], matches=not request.num_digits
            )
        )
    return pb.ReadResponse(
        lines=lines,
        ignored=[pb.Ignored(kind=pb.IGNORED_KIND_SPECK, box=box)],
        model_name="fake",
        model_version="1",
    )


def _read(request: pb.ReadRequest, context: grpc.ServicerContext) -> pb.ReadResponse:
    if request.pattern == REFUSED:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "pattern: got \\q; expected another one")
    return answer(request)


def _read_stream(requests: Iterator[pb.ReadStreamRequest], _context: Any) -> Iterator[pb.ReadStreamResponse]:
    for message in requests:
        if message.request.pattern == REFUSED:
            yield pb.ReadStreamResponse(error=status_pb2.Status(code=3, message="pattern"))
        else:
            yield pb.ReadStreamResponse(response=answer(message.request))


def _get_model(_request: pb.GetModelRequest, _context: Any) -> pb.GetModelResponse:
    limits = {"max_request_bytes": 16 << 20, "max_images_per_request": 64}
    return pb.GetModelResponse(model=pb.Model(name="fake", version="1", **limits))  # type: ignore[arg-type]


def _unary(function: Any, request: Any, response: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(function, request.FromString, response.SerializeToString)


@contextmanager
def serve_fake_reader(num_refusals: int = 0) -> Iterator[str]:
    """Serve it on a port of its own, and yield the address; it refuses the first calls with UNAVAILABLE."""
    refusals = iter(range(num_refusals))

    def read(request: pb.ReadRequest, context: grpc.ServicerContext) -> pb.ReadResponse:
        if next(refusals, None) is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "ends")
        return _read(request, context)

    handlers = {
        "Read": _unary(read, pb.ReadRequest, pb.ReadResponse),
        "GetModel": _unary(_get_model, pb.GetModelRequest, pb.GetModelResponse),
        "ReadStream": grpc.stream_stream_rpc_method_handler(
            _read_stream, pb.ReadStreamRequest.FromString, pb.ReadStreamResponse.SerializeToString
        ),
    }
    with serve_handlers(handlers, 8) as address:
        yield address
