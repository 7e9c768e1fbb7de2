"""The reader of the service, run with a network in this process. ``report`` opens it."""

from pathlib import Path
from typing import Protocol

from digitserve.batching.stepwise import Scores
from digitserve.protocol.readings import Reading, ReadOptions
from digitserve.reading.reader import Draft, Reader, read_now, run_steps
from digitserve.types import Gray
from digitserve_training.evaluate.numbers.samples import Pixels
from digitserve_training.evaluate.pictures.classifier import Network, open_network


class NumberReader(Protocol):
    """Reads one image at a time."""

    @property
    def name(self) -> str:
        """The model, for titles."""

    def read(self, pixels: Pixels, options: ReadOptions) -> Reading:
        """Read one image.

        Args:
            pixels: uint8[H,W,C] with C of 1, 3 or 4.
            options: how to read it.

        Raises:
            InvalidRequest: this image cannot be read, for example because it has too many components.
        """


class LocalReader:
    """Reads with a network in this process: its candidates run as one batch, as they do in the service."""

    def __init__(self, network: Network) -> None:
        """Read with ``network``."""
        self.name = network.name
        self._session = network.session
        self._reader = Reader(network.labels, network.threshold)

    def read(self, pixels: Pixels, options: ReadOptions) -> Reading:
        """Read one image, see ``NumberReader``."""
        return read_now(self._reader, pixels, options, self._run)

    def draft(self, pixels: Pixels, options: ReadOptions) -> Draft:
        """Read one image until its pieces have texts."""
        return run_steps(self._reader.draft(pixels, options), self._run)

    def _run(self, candidates: Gray) -> Scores:
        outputs = self._session.run(candidates)
        return Scores(outputs.probabilities, outputs.ood_score)


def open_reader(folder: Path, data_path: Path | None) -> LocalReader:
    """Open a run or a bundle to read numbers; arguments and errors as in ``pictures.classifier.open_network``."""
    return LocalReader(open_network(folder, data_path))
