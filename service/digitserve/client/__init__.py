"""The client library: arrays or Pillow images in, predictions or readings out, over several connections, so that all workers are used.

    images ──requests.group──▶ groups of one size ──requests.split──▶ chunks ──reduction──▶ requests ──Pool──▶ service
    predictions ◀── ClassifyCall, in the order of the images ◀── responses

    image ──read_requests.Reader──▶ request ──Pool──▶ service ──▶ response ──readings──▶ Reading

``Client`` blocks, ``AsyncClient`` is awaited. What they share does no I/O: ``requests``, ``stream_window``, ``pool``.
The commands ``classify``, ``read`` and ``healthcheck`` use ``Client``.
"""

from digitserve.client.asynchronous import AsyncClient
from digitserve.client.blocking import Client
from digitserve.client.channel import CHANNEL_OPTIONS, RETRY_POLICY
from digitserve.client.errors import (
    ClientError,
    Closed,
    DeadlineExceeded,
    HandshakeFailed,
    InvalidAddress,
    InvalidCredentials,
    InvalidRequest,
    RequestRejected,
    Unauthenticated,
    Unreachable,
)
from digitserve.client.predictions import ClassScore, ModelInfo, Prediction, Preparation, Removed
from digitserve.client.readings import Ignored, Line, Mark, Reading, Timing
from digitserve.protocol.names import Artefact, IgnoredKind, Layout, MarkKind, Verdict
from digitserve.types import Box, Framing, Ink

__all__ = [
    "CHANNEL_OPTIONS",
    "RETRY_POLICY",
    "Artefact",
    "AsyncClient",
    "Box",
    "ClassScore",
    "Client",
    "ClientError",
    "Closed",
    "DeadlineExceeded",
    "Framing",
    "HandshakeFailed",
    "Ignored",
    "IgnoredKind",
    "Ink",
    "InvalidAddress",
    "InvalidCredentials",
    "InvalidRequest",
    "Layout",
    "Line",
    "Mark",
    "MarkKind",
    "ModelInfo",
    "Prediction",
    "Preparation",
    "Reading",
    "Removed",
    "RequestRejected",
    "Timing",
    "Unauthenticated",
    "Unreachable",
    "Verdict",
]
