"""Handler of ``Read``: that of ``Classify``, with another codec, and with the readings instead of the pipeline.

    transport ──on_message──▶ ClassifyHandler ──admit──▶ Readings ──reply──▶ ReadResponder ──▶ UnaryCall

Called on the worker's one thread.
"""

from digitserve.batching.readings import Readings
from digitserve.protocol.codec import Limits
from digitserve.protocol.names import READ
from digitserve.protocol.read_codec import decode_read
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify import CallResponder, ClassifyHandler


class ReadResponder(CallResponder):
    """The ``Responder`` of one call of ``Read``."""

    __slots__ = ()

    completes = READ


def read_handler(readings: Readings, limits: Limits, recorder: Recorder) -> ClassifyHandler:
    """Return the handler; owned by the worker."""
    return ClassifyHandler(readings, limits, recorder, responder=ReadResponder, decode=decode_read)
