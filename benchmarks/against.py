"""The working tree compared with another commit: the same loads, model and cores, in alternating rounds.

``compare --against COMMIT`` runs it. Each run has a server that is started for it, so that both commits meet the same
conditions; the two runs that are compared follow each other directly.
"""

import argparse
from dataclasses import dataclass, field

from benchmarks import installation, load, ratios, runs, targets
from benchmarks.installation import BenchError
from benchmarks.ratios import THAT, THIS
from benchmarks.runs import print_progress
from benchmarks.servers import Digitserve
from digitserve.inference.bundle import Bundle

ROUNDS = 6
"""An even number: each server is measured first equally often."""


@dataclass
class AgainstCommit:
    """All rounds of one invocation.

    Attributes:
        rounds: the figures of each round, named ``this/LOAD/METRIC`` and ``that/LOAD/METRIC``.
    """

    options: argparse.Namespace
    bundle: Bundle
    rounds: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Install the commit, and check that each side runs its own code."""
        self._installations = {
            THIS: installation.working_tree(),
            THAT: installation.install(self.options.against, self.options.cache),
        }
        self._answers: dict[str, runs.Answer] = {}
        for name, installed in self._installations.items():
            print_progress(f"{name}: {installed.description}, imported from {installed.verify()}")

    def run(self) -> None:
        """Run all rounds."""
        for number in range(1, self.options.rounds + 1):
            figures: dict[str, float] = {}
            for load_name in self.options.loads:
                for name in ratios.order(number):
                    print_progress(f"round {number} of {self.options.rounds}: {load_name}, {name}")
                    measured = self._measure(name, load_name)
                    figures |= {f"{name}/{load_name}/{metric}": value for metric, value in measured.items()}
            self.rounds.append(figures)

    def document(self) -> str:
        """Return the result as Markdown."""
        options = self.options
        setup = runs.describe_setup(self.bundle, options.cores, options.load_cores, options.rounds, options.seconds)
        parts = [
            f"# Working tree against {options.against}",
            "\n".join(f"- {name}: {installed.description}" for name, installed in self._installations.items()),
            setup,
            "## Ratios this/that, per round: median (minimum to maximum)",
            ratios.table(self.rounds, options.loads),
            (
                "More than 1 is better for requests/s; less than 1 is better for the other columns. If a range contains 1.00, "
                "the rounds disagree on which side is better."
            ),
            self._describe_answers(),
            "## Figures: median of all rounds",
            targets.rates(self.rounds),
            load.DESCRIPTION,
        ]
        return "\n\n".join(parts) + "\n"

    def _measure(self, name: str, load_name: str) -> dict[str, float]:
        options = self.options
        with Digitserve(options.models, options.cores, self._installations[name]) as server:
            if name not in self._answers:
                self._answers[name] = runs.classify_golden(server, self.bundle)
            return runs.measure(server, load_name, options.load_cores, options.seconds)

    def _describe_answers(self) -> str:
        try:
            runs.check_same_answers(THIS, self._answers[THIS], self._answers[THAT])
        except BenchError as error:
            return f"**The two sides answer differently to the model's golden images**, so they may not do the same work. {error}"
        return "Both sides give the same answers to the model's golden images."
