"""The first release beside this one: accuracy of the networks, images/s and CPU time.

Pure functions to Markdown; ``compare`` calls them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks import ratios
from benchmarks.accuracy import Accuracy
from benchmarks.load import LOADS
from benchmarks.ratios import Figures
from digitserve.inference.bundle import Manifest

COMPARED = ("large", "single", "stream")
"""Loads of both releases."""

SIDES = {
    "float32": ("first release", "native, first network", "native"),
    "int8": ("first release int8", "native int8, first network", "native int8"),
}
"""Servers by precision: the first release, this code with the networks of the first release, and this release."""

COLUMNS = ("first release", "its network and this code", "this release")
"""Names of the sides in the table."""


@dataclass(frozen=True)
class Network:
    """A network of a release.

    Attributes:
        manifest: of its bundle.
        figure: name of the figure that holds its seconds per image.
        accuracy: as recorded; None if it is not.
    """

    manifest: Manifest
    figure: str
    accuracy: Accuracy | None


def networks(listed: Sequence[Network], rounds: Sequence[Figures]) -> str:
    """Return size, speed and accuracy of networks as a Markdown table."""
    lines = [
        "| network | multiply-adds | onnxruntime alone, images/s | relative to B | MNIST's test images | corruption suite | core | core: wrong and ACCEPTED |",
        "|---" * 8 + "|",
    ]
    first_s = [figures[listed[0].figure] for figures in rounds]
    for network in listed:
        manifest, accuracy = network.manifest, network.accuracy
        times_s = [figures[network.figure] for figures in rounds]
        ratio = median(theirs / ours for theirs, ours in zip(first_s, times_s, strict=True))
        cells = [
            f"{manifest.name}/{manifest.version}", _thousands(manifest.training.get("multiply_adds")),
            f"{1 / median(times_s):,.0f}", f"{ratio:.2f}", _percent(manifest.quality.get("test_accuracy")),
            *(_accuracy(accuracy) if accuracy else ("", "", "")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def services(rounds: Sequence[Figures]) -> str:
    """Return images/s and CPU time of both releases as a Markdown table."""
    servers_of = [f"{server}, {what}" for what in ("images/s", "CPU s per million images") for server in COLUMNS]
    lines = [f"| {' | '.join(['load', 'network', *servers_of, 'this / first'])} |", "|---" * 9 + "|"]
    for load in COMPARED:
        for precision, servers in SIDES.items():
            if all(f"{server}/{load}/rate" in figures for figures in rounds for server in servers):
                num_images = LOADS[load].images
                images = [f"{_median(rounds, server, load, 'rate') * num_images:,.0f}" for server in servers]
                cpu_s = [f"{_median(rounds, server, load, 'cpu_us') / num_images:.1f}" for server in servers]
                ratio = str(ratios.spread(rounds, load, "rate", servers[2], servers[0]))
                lines.append(f"| {' | '.join([load, precision, *images, *cpu_s, ratio])} |")
    return "\n".join(lines)


def _median(rounds: Sequence[Figures], server: str, load: str, metric: str) -> float:
    return median(figures[f"{server}/{load}/{metric}"] for figures in rounds)


def _accuracy(accuracy: Accuracy) -> tuple[str, str, str]:
    core = accuracy.core
    pictures = (f"{core.right / core.images:.2%}", f"{core.wrong_accepted / core.images:.2%}") if core else ("", "")
    return f"{accuracy.corruption_suite:.2%}", *pictures


def _thousands(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else ""


def _percent(share: object) -> str:
    return f"{share:.2%}" if isinstance(share, float) else ""
