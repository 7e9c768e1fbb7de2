"""What fuzz targets share: choices from the bytes of an input, and the declaration of a target."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


class Source:
    """Choices from the bytes of an input, in order; after its end all are 0."""

    def __init__(self, choices: bytes) -> None:
        self._choices = choices
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._choices)

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "big")

    def short(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def take(self, num_bytes: int) -> bytes:
        taken = self._choices[self._position : self._position + num_bytes]
        self._position += num_bytes
        return taken

    def pick(self, options: Any) -> Any:
        return options[self.byte() % len(options)]


@dataclass(frozen=True)
class Target:
    """A fuzz target.

    Attributes:
        run: raises an exception if a property is violated.
        seeds: inputs to start from.
        max_bytes: longest input.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    max_bytes: int = 2_000


def _choice_seeds() -> Iterator[bytes]:
    """Return inputs that reach most kinds of frames: each byte in turn, in steps that share no factor with 256."""
    for factor in (1, 7, 37, 91, 171, 253):
        yield bytes(factor * number % 256 for number in range(600))
    yield bytes(600)
    yield b"\x00\x50\x00\x0f" * 150


CHOICES = tuple(_choice_seeds())
