"""Check of CUDA: correctness compared with the CPU, speed compared with onnxruntime alone.

    python -m benchmarks.cuda_check --models models

1. Correctness: labels equal those of the CPU, and probabilities differ by at most 1e-3.
2. Speed: images/s of ``Session`` at each batch bucket, and of onnxruntime's own CUDA session at the same batch sizes. That
   session gets plain arrays and has default options, except that TF32 is off, because both must match the CPU. The best
   rate of ``Session`` should be at least 80 % of its best rate. Rounds are interleaved; the table shows medians.
3. Changing sizes: the rate of ``Session`` when each batch has another size than the one before should be at least 80 % of its
   rate at the same sizes without changes.

Exit codes: 0 all met; 1 one not met; 3 CUDA is not available.
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
    """Differences between CUDA and the CPU.

    Attributes:
        num_images: number of compared images.
        num_labels_differ: images whose most probable label differs.
        probability: largest absolute difference.
        ood_score: largest difference, relative where the score is larger than 1.
    """

    num_images: int
    num_labels_differ: int
    probability: float
    ood_score: float

    @property
    def matches(self) -> bool:
        """Whether CUDA matches the CPU; false for NaN."""
        return self.num_labels_differ == 0 and self.probability <= PROBABILITY_TOLERANCE


def make_images(golden: NDArray[np.uint8], num_images: int, seed: int) -> NDArray[np.uint8]:
    """Return test images: the golden images, then shifted, dimmed and noisy copies of them; one in ten is plain noise."""
    generator = np.random.default_rng(seed)
    images = golden[np.arange(num_images) % len(golden)].copy()
    for row in range(len(golden), num_images):
        if row % 10 == 0:
            images[row] = generator.integers(0, 256, images[row].shape)
            continue
        shifted = np.roll(images[row], tuple(generator.integers(-3, 4, 2)), (0, 1))
        grain = generator.normal(0, generator.uniform(0, 20), shifted.shape)
        images[row] = np.clip(shifted * generator.uniform(0.4, 1) + grain, 0, 255).astype(np.uint8)
    return images


def compare(on_cuda: Session, on_cpu: Session, images: NDArray[np.uint8], batch_size: int) -> Agreement:
    """Run the images on both, in batches of random sizes up to ``batch_size``: every bucket is used, mostly with padding."""
    generator = np.random.default_rng(len(images))
    start, parts = 0, []
    while start < len(images):
        batch = images[start : start + int(2 ** generator.uniform(0, np.log2(batch_size)))]
        parts.append((on_cuda.run(batch), on_cpu.run(batch)))
        start += len(batch)
    got, expected = ([pair[side] for pair in parts] for side in (0, 1))
    probabilities, expected_probabilities = (
        np.concatenate([outputs.probabilities for outputs in side]) for side in (got, expected)
    )
    score, expected_score = (np.concatenate([outputs.ood_score for outputs in side]) for side in (got, expected))
    return Agreement(
        len(images),
        int((probabilities.argmax(axis=1) != expected_probabilities.argmax(axis=1)).sum()),
        float(np.abs(probabilities - expected_probabilities).max()),
        float((np.abs(score - expected_score) / np.maximum(1, np.abs(expected_score))).max()),
    )


def rate(run: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8], seconds: float) -> float:
    """Return images/s in batches of all ``images``, measured for at least this many seconds."""
    run(images)
    num_batches, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        run(images)
        num_batches += 1
    return num_batches * len(images) / (time.perf_counter() - start)


def open_reference(bundle: Bundle, provider: str) -> Callable[[NDArray[np.uint8]], object]:
    """Return the ``run`` of an onnxruntime session that is opened as in its documentation."""
    same_arithmetic = {"use_tf32": "0"} if provider.startswith("CUDA") else {}
    session = ort.InferenceSession(bundle.graph, providers=[(provider, same_arithmetic)])
    assert session.get_providers()[0] == provider, session.get_providers()
    return lambda images: session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})


def measure(
    session: Session,
    reference: Callable[[NDArray[np.uint8]], object],
    images: NDArray[np.uint8],
    seconds: float,
    rounds: int,
) -> dict[int, tuple[float, float]]:
    """Return images/s of ``session`` and of onnxruntime alone, by batch size: powers of two up to the number of images."""
    sizes = [1 << power for power in range(len(images).bit_length()) if 1 << power <= len(images)]
    taken: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            batch = np.ascontiguousarray(images[:size])
            taken[size].append((rate(session.run, batch, seconds), rate(reference, batch, seconds)))
    return {
        size: (median(own for own, _ in pairs), median(other for _, other in pairs)) for size, pairs in taken.items()
    }


def measure_changes(
    session: Session, images: NDArray[np.uint8], rates: dict[int, tuple[float, float]], seconds: float
) -> float:
    """Return the rate of batches whose size changes each time, relative to that of the same sizes without changes."""
    unchanged_s = sum(size / own for size, (own, _) in rates.items())
    batches = [np.ascontiguousarray(images[:size]) for size in rates]
    num_rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in batches:
            session.run(batch)
        num_rounds += 1
    return num_rounds * unchanged_s / (time.perf_counter() - start)


def report(provider: str, agreement: Agreement, rates: dict[int, tuple[float, float]], changes: float) -> float:
    """Print the tables; return the best rate of ``Session`` divided by the best rate of onnxruntime alone."""
    best = max(other for _, other in rates.values())
    relative_rate = max(own for own, _ in rates.values()) / best
    lines = [
        f"{provider}, onnxruntime {ort.__version__}",
        "",
        "| compared with the CPU | |",
        "|---|---|",
        f"| images | {agreement.num_images} |",
        f"| different labels | {agreement.num_labels_differ} |",
        f"| largest difference of probabilities | {agreement.probability:.1e} (allowed {PROBABILITY_TOLERANCE:g}) |",
        f"| largest difference of ood_score | {agreement.ood_score:.1e} |",
        "",
        "| batch | digitserve's session, images/s | onnxruntime alone, images/s | relative to its best |",
        "|---|---|---|---|",
        *(f"| {size} | {own:.0f} | {other:.0f} | {own / best:.0%} |" for size, (own, other) in rates.items()),
        "",
        f"Best rate relative to that of onnxruntime alone: {relative_rate:.0%} (target {TARGET:.0%}).",
        f"Batches of changing sizes, relative to the same sizes without changes: {changes:.0%} (target {TARGET:.0%}).",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return relative_rate


def main() -> int:
    """Run as a command; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--num-images", type=int, default=20_000, help="images to compare with the CPU (default 20000)")
    parser.add_argument("--largest", type=int, default=4096, help="largest measured batch (default 4096)")
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement (default 0.3)")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds (default 5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tests this script itself")
    options = parser.parse_args()
    bundle = bundles.served(options.models)
    try:
        session = Session(bundle, device=options.device)
    except ProviderError as error:
        sys.stderr.write(f"cuda_check: CUDA is not available, nothing was checked: {error}\n")
        return EXIT_NO_CUDA
    session.warm_up(Settings(device=options.device).batch_limit)
    images = make_images(bundle.golden.images, options.num_images, seed=1)
    agreement = compare(session, Session(bundle), images, Settings(device=options.device).batch_limit)
    golden = np.resize(bundle.golden.images, (options.largest, IMAGE_SIZE, IMAGE_SIZE, 1))
    rates = measure(session, open_reference(bundle, session.provider), golden, options.seconds, options.rounds)
    changes = measure_changes(session, golden, rates, options.seconds)
    relative_rate = report(session.provider, agreement, rates, changes)
    return 0 if agreement.matches and min(relative_rate, changes) >= TARGET else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
