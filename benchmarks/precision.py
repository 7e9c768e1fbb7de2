"""Speed of two bundles of one network, such as float32 and int8: images/s of a session on one thread.

    python -m benchmarks.precision models/digits/1 models/digits/2 --rounds 9

Rounds are interleaved, so that other activity of the machine affects both; the result is the ratio of the medians.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from digitserve.inference.bundle import read_bundle
from digitserve.inference.session import Session
from digitserve.supervision.autotune import mean_s
from digitserve.types import IMAGE_SIZE

BATCH_SIZES = (1, 8, 64)


def measure(session: Session, images: NDArray[np.uint8], seconds: float) -> float:
    """Return images/s in batches of all ``images``, measured for at least this many seconds."""
    return len(images) / mean_s(lambda: session.run(images), seconds)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs=2, type=Path, metavar="BUNDLE", help="the second is compared to the first")
    parser.add_argument("--rounds", type=int, default=9, help="number of interleaved rounds (default 9)")
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement (default 0.2)")
    options = parser.parse_args()
    bundles = [read_bundle(path.resolve()) for path in options.bundles]
    sessions = [Session(bundle, num_threads=1) for bundle in bundles]
    sys.stdout.write("| batch | first, images/s | second, images/s | second / first |\n|---|---|---|---|\n")
    for size in BATCH_SIZES:
        # The same images for both: the first bundle's golden images, most of them real digits.
        images = np.ascontiguousarray(np.resize(bundles[0].golden.images, (size, IMAGE_SIZE, IMAGE_SIZE, 1)))
        rounds = [[measure(session, images, options.seconds) for session in sessions] for _ in range(options.rounds)]
        first, second = (median(rates) for rates in zip(*rounds, strict=True))
        sys.stdout.write(f"| {size} | {first:.0f} | {second:.0f} | {second / first:.2f} |\n")


if __name__ == "__main__":
    main()
