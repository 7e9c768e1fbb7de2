"""The plan of a chaos run: episodes of faults, the same for the same seed."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from support.chaos.faults import ACTIONS, CONDITIONS, LOG_FAULTS

QUIET = ""
"""No condition: only actions."""


class EpisodePlan(NamedTuple):
    """The faults of an episode.

    Attributes:
        seed: of all random numbers of the episode.
        condition: key of ``CONDITIONS`` that lasts while the actions happen, or ``QUIET``.
        actions: keys of ``ACTIONS``, one after another.
    """

    seed: int
    condition: str
    actions: tuple[str, ...]

    @property
    def title(self) -> str:
        """A name for people."""
        return " + ".join(part for part in (self.condition, *self.actions) if part) or "no fault"


NUM_FIRST = 1 + len(ACTIONS) + len(CONDITIONS)
"""Episodes after which each fault has been injected."""


def episodes(seed: int) -> Iterator[EpisodePlan]:
    """Return episodes without end: first one without a fault, each fault once, and each log fault with a killed worker; then
    random combinations.
    """
    rng = random.Random(seed)
    yield EpisodePlan(rng.getrandbits(32), QUIET, ())
    alone: list[tuple[str, tuple[str, ...]]] = [(QUIET, (action,)) for action in ACTIONS]
    # Workers that end write log lines, and so does their replacement.
    alone += [(condition, ("kill",) if condition in LOG_FAULTS else ()) for condition in CONDITIONS]
    rng.shuffle(alone)
    for condition, actions in alone:
        yield EpisodePlan(rng.getrandbits(32), condition, actions)
    while True:
        condition = rng.choice([QUIET, *CONDITIONS])
        actions = tuple(rng.choices(list(ACTIONS), k=rng.randrange(1, 4)))
        yield EpisodePlan(rng.getrandbits(32), condition, actions)


def disk_episodes(seed: int) -> list[EpisodePlan]:
    """Return the episodes of a service whose log is on a full disk: conditions that need a log that is a pipe are absent."""
    rng = random.Random(f"disk {seed}")
    names = [("kill",), ("terminate",), ("reload",)]
    rng.shuffle(names)
    return [EpisodePlan(rng.getrandbits(32), QUIET, actions) for actions in names]
