"""The service that ``compare`` measures as ``mosec``: the same contract over HTTP/1, as far as mosec's model allows it.

    Rust front end :own threads ──bodies, Unix socket──▶ one Python process: decode, prepare, run, encode

A request body is a ``ClassifyRequest`` of one 28x28 image, and the response a ``ClassifyResponse``, by the same functions as
in the service. mosec knows no deadlines per request, admits by a count of requests, and cannot split requests over batches.
Runs in the environment that ``mosec`` creates.
"""

import argparse
from pathlib import Path
from typing import Any

import mosec
import numpy as np

from benchmarks import bundles
from benchmarks.aio_service import STATS
from digitserve.batching.prepare import decide_verdicts, prepare
from digitserve.errors import RequestError
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.protocol.encoder import Encoder
from digitserve.settings import Settings
from digitserve.types import native_framing


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    # mosec parses the others.
    return parser.parse_known_args()[0]


class Classifier(mosec.Worker):  # type: ignore[misc] # mosec is not installed where types are checked
    """Decodes, runs and encodes whole batches in one process."""

    resp_mime_type = "application/x-protobuf"

    def __init__(self) -> None:
        super().__init__()
        options = _options()
        bundle = bundles.served(options.models)
        manifest, settings = bundle.manifest, Settings()
        self._session = Session(bundle, num_threads=1)
        self._session.warm_up(settings.batch_limit)
        self._threshold = manifest.ood_threshold
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        framing = native_framing(manifest.labels)
        self._limits = Limits(str(manifest.version), settings.max_side, 1, settings.max_request_bytes, framing)
        self._stats = np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),))

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
        prepared = prepare([(request, 0, 1) for request in data])
        outputs = self._session.run(prepared.images)
        class_index = outputs.probabilities.argmax(axis=1).tolist()
        confidence = outputs.probabilities.max(axis=1).tolist()
        ood_score = outputs.ood_score.tolist()
        verdicts = decide_verdicts(ood_score, self._threshold, prepared)
        # The load asks for no alternatives.
        records = self._encoder.plain_records(class_index, confidence, verdicts, ood_score)
        self._stats[STATS.index("ok")] += len(data)
        return [self._encoder.encode_records([record], (0.0, 0.0, 0.0), len(data)) for record in records]


def main() -> None:
    """Serve until SIGTERM."""
    server = mosec.Server()
    # The shortest wait that mosec has, in milliseconds: longer ones delay an idle client and fill batches no better.
    server.append_worker(Classifier, num=1, max_batch_size=Settings().batch_limit, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    main()
