"""Handler of ``ReadStream``: that of ``ClassifyStream``, with another codec, and with the readings instead of the pipeline.

    ServerStream ──message──▶ ClassifyStreamHandler ──admit──▶ Readings ──reply──▶ StreamMessage ──in order──▶ ServerStream

``ReadStreamResponse`` and ``ClassifyStreamResponse`` have the same fields, so their bytes are the same. Called on the worker's one
thread.
"""

from digitserve.batching.readings import Readings
from digitserve.protocol.codec import Limits
from digitserve.protocol.names import READ_STREAM
from digitserve.protocol.read_codec import decode_read_stream_request
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify_stream import ClassifyStreamHandler

WINDOW_READINGS = 16
"""Limit on the messages in flight of a stream: enough for the readings of one stream to fill batches together."""


def read_stream_handler(readings: Readings, limits: Limits, recorder: Recorder) -> ClassifyStreamHandler:
    """Return the handler; owned by the worker."""
    return ClassifyStreamHandler(
        readings, limits, WINDOW_READINGS, recorder, method=READ_STREAM, decode=decode_read_stream_request
    )
