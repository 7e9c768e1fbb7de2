"""The client library: numpy in, predictions out, over several connections, so that every worker gets its share.

    images ──parts.check──▶ groups of one size ──parts.split──▶ parts ──Pool──▶ connections ──▶ service
    predictions ◀──────────────── Assembly, in the order of the images ◀──────────── responses

``Client`` blocks, ``AsyncClient`` is awaited; what they share does no I/O (``parts``, ``pool``). ``connect``,
``classify`` and ``health`` are the plain calls on which the commands stand.
"""

from digitserve.client.asynchronous import AsyncClient
from digitserve.client.blocking import Client
from digitserve.client.calls import OPTIONS, RETRY_POLICY, Refused, Unreachable, classify, connect, health
from digitserve.client.parts import ClassScore, Prediction, Verdict
from digitserve.client.pool import Closed
from digitserve.errors import InvalidRequest
from digitserve.types import Framing, Ink

__all__ = [
    "OPTIONS",
    "RETRY_POLICY",
    "AsyncClient",
    "ClassScore",
    "Client",
    "Closed",
    "Framing",
    "Ink",
    "InvalidRequest",
    "Prediction",
    "Refused",
    "Unreachable",
    "Verdict",
    "classify",
    "connect",
    "health",
]
