"""The service that ``compare`` measures as ``mosec``: the same contract over HTTP/1, as far as mosec's model allows it.

    Rust front end :own threads ──bodies, Unix socket──▶ one Python process: decode, prepare, run, encode

A request body is a ``ClassifyRequest``, and the response a ``ClassifyResponse``, by the same functions as in the service. mosec
knows no deadlines per request, admits by a count of requests, and counts requests, not images, in a batch: so a batch of large
requests runs in slices. Runs in the environment that ``mosec`` creates.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import mosec
import numpy as np

from benchmarks import bundles
from benchmarks.aio_service import MAX_PENDING_IMAGES, STATS, Network
from digitserve.errors import RequestError
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.settings import Settings
from digitserve.types import native_framing


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--stats", type=Path, required=True)
    # mosec parses the others.
    return parser.parse_known_args()[0]


class Classifier(mosec.Worker):  # type: ignore[misc] # mosec is not installed where types are checked
    """Decodes, runs and encodes whole batches in one process."""

    resp_mime_type = "application/x-protobuf"

    def __init__(self) -> None:
        super().__init__()
        options = _options()
        bundle = bundles.served(options.models, options.model)
        manifest, settings = bundle.manifest, Settings()
        stats = np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),))
        self._network = Network(bundle, stats, time.monotonic)
        framing = native_framing(manifest.labels)
        self._limits = Limits(
            str(manifest.version), settings.max_side, MAX_PENDING_IMAGES, settings.max_request_bytes, framing
        )

    def deserialize(self, data: bytes) -> Request:
        """Check a body; an error ends its request only."""
        try:
            return decode(data, self._limits)
        except RequestError as error:
            raise mosec.ValidationError(str(error)) from None

    def serialize(self, data: bytes) -> bytes:
        """Return the response as it is."""
        return data

    def forward(self, data: list[Request]) -> Any:
        """Answer a batch."""
        return self._network.encode(data, [time.monotonic()] * len(data))


def main() -> None:
    """Serve until SIGTERM."""
    server = mosec.Server()
    # The shortest wait that mosec has, in milliseconds: longer ones delay an idle client and fill batches no better.
    server.append_worker(Classifier, num=1, max_batch_size=Settings().batch_limit, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    main()
