"""On a machine with a GPU: digitserve's sessions on CUDA beside those on the CPU, and beside onnxruntime alone on CUDA.

    python -m benchmarks.cuda_check --models models

First, whether CUDA answers as the CPU does: labels equal, probabilities within 1e-3. Then images a second of ``Session``
at each bucket, and of onnxruntime's own CUDA session at the same sizes, fed plain arrays and opened with all defaults but
one: TF32 is off there too, as both must answer like the CPU. Its best is the measure, of which ``Session`` should reach 80 %
at its own best. Rounds are interleaved, medians are shown. Exit status 0: it does; 1: it does not; 3: there is no CUDA here.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import bundles
from digitserve.errors import ProviderError
from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES, Bundle
from digitserve.inference.session import Session
from digitserve.settings import Settings
from digitserve.types import IMAGE_SIZE

PROBABILITY_TOLERANCE = 1e-3
TARGET = 0.8
EXIT_MISSED, EXIT_NO_CUDA = 1, 3


@dataclass(frozen=True)
class Agreement:
    """How far CUDA is from the CPU.

    Attributes:
        num_images: compared.
        num_labels_differ: images with another most probable label.
        probability: largest difference.
        ood_score: largest difference, relative beyond 1.
    """

    num_images: int
    num_labels_differ: int
    probability: float
    ood_score: float

    @property
    def holds(self) -> bool:
        """Whether CUDA answers as the CPU does; written so that a NaN does not."""
        return self.num_labels_differ == 0 and self.probability <= PROBABILITY_TOLERANCE


def make_images(golden: NDArray[np.uint8], num_images: int, seed: int) -> NDArray[np.uint8]:
    """Return the golden images as they are, then shifted, dimmed and grainy ones of them, then plain noise (a tenth)."""
    chance = np.random.default_rng(seed)
    images = golden[np.arange(num_images) % len(golden)].copy()
    for row in range(len(golden), num_images):
        if row % 10 == 0:
            images[row] = chance.integers(0, 256, images[row].shape)
            continue
        shifted = np.roll(images[row], tuple(chance.integers(-3, 4, 2)), (0, 1))
        grain = chance.normal(0, chance.uniform(0, 20), shifted.shape)
        images[row] = np.clip(shifted * chance.uniform(0.4, 1) + grain, 0, 255).astype(np.uint8)
    return images


def compare(on_cuda: Session, on_cpu: Session, images: NDArray[np.uint8], batch_size: int) -> Agreement:
    """Run the images on both, in batches of all sizes up to ``batch_size``: each bucket is used, most with padding."""
    chance = np.random.default_rng(len(images))
    start, parts = 0, []
    while start < len(images):
        batch = images[start : start + int(2 ** chance.uniform(0, np.log2(batch_size)))]
        parts.append((on_cuda.run(batch), on_cpu.run(batch)))
        start += len(batch)
    got, expected = ([pair[side] for pair in parts] for side in (0, 1))
    probabilities, wanted = (np.concatenate([outputs.probabilities for outputs in side]) for side in (got, expected))
    score, wanted_score = (np.concatenate([outputs.ood_score for outputs in side]) for side in (got, expected))
    return Agreement(
        len(images),
        int((probabilities.argmax(axis=1) != wanted.argmax(axis=1)).sum()),
        float(np.abs(probabilities - wanted).max()),
        float((np.abs(score - wanted_score) / np.maximum(1, np.abs(wanted_score))).max()),
    )


def rate(run: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8], seconds: float) -> float:
    """Return images a second, in batches of all of ``images``, for at least so many seconds."""
    run(images)
    num_batches, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        run(images)
        num_batches += 1
    return num_batches * len(images) / (time.perf_counter() - start)


def open_alone(bundle: Bundle, provider: str) -> Callable[[NDArray[np.uint8]], object]:
    """Return a run of onnxruntime's own session, as its documentation opens one."""
    same_arithmetic = {"use_tf32": "0"} if provider.startswith("CUDA") else {}
    session = ort.InferenceSession(bundle.graph, providers=[(provider, same_arithmetic)])
    assert session.get_providers()[0] == provider, session.get_providers()
    return lambda images: session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})


def measure(
    session: Session,
    alone: Callable[[NDArray[np.uint8]], object],
    images: NDArray[np.uint8],
    seconds: float,
    rounds: int,
) -> dict[int, tuple[float, float]]:
    """Return images a second of ``session`` and of onnxruntime alone by batch size: powers of two up to all images."""
    sizes = [1 << power for power in range(len(images).bit_length()) if 1 << power <= len(images)]
    taken: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            batch = np.ascontiguousarray(images[:size])
            taken[size].append((rate(session.run, batch, seconds), rate(alone, batch, seconds)))
    return {size: (median(own for own, _ in pairs), median(bare for _, bare in pairs)) for size, pairs in taken.items()}


def report(provider: str, agreement: Agreement, rates: dict[int, tuple[float, float]]) -> float:
    """Write the tables and return which part of the best of onnxruntime alone the best of ``Session`` is."""
    best = max(bare for _, bare in rates.values())
    share = max(own for own, _ in rates.values()) / best
    lines = [
        f"{provider}, onnxruntime {ort.__version__}",
        "",
        "| beside the CPU | |",
        "|---|---|",
        f"| images | {agreement.num_images} |",
        f"| other labels | {agreement.num_labels_differ} |",
        f"| probabilities differ by at most | {agreement.probability:.1e} (allowed {PROBABILITY_TOLERANCE:g}) |",
        f"| ood_score differs by at most | {agreement.ood_score:.1e} |",
        "",
        "| batch | digitserve's session, images/s | onnxruntime alone, images/s | of its best |",
        "|---|---|---|---|",
        *(f"| {size} | {own:.0f} | {bare:.0f} | {own / best:.0%} |" for size, (own, bare) in rates.items()),
        "",
        f"Best against best: {share:.0%} (target {TARGET:.0%}).",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return share


def main() -> int:
    """Run as a command; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--num-images", type=int, default=20_000, help="compared with the CPU (default 20000)")
    parser.add_argument("--largest", type=int, default=4096, help="largest batch that is measured (default 4096)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement (default 0.3)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved (default 5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the check itself")
    options = parser.parse_args()
    bundle = bundles.served(options.models)
    try:
        session = Session(bundle, device=options.device)
    except ProviderError as error:
        sys.stderr.write(f"cuda_check: no CUDA here, nothing was checked: {error}\n")
        return EXIT_NO_CUDA
    session.warm_up(Settings(device=options.device).batch_limit)
    images = make_images(bundle.golden.images, options.num_images, seed=1)
    agreement = compare(session, Session(bundle), images, Settings(device=options.device).batch_limit)
    golden = np.resize(bundle.golden.images, (options.largest, IMAGE_SIZE, IMAGE_SIZE, 1))
    rates = measure(session, open_alone(bundle, session.provider), golden, options.seconds, options.rounds)
    share = report(session.provider, agreement, rates)
    return 0 if agreement.holds and share >= TARGET else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
