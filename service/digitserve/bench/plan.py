"""What is to be measured: made by ``command`` from flags, sent by ``fleet`` to each process as one JSON line."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from digitserve.telemetry.block import SERVICE

UNARY, STREAM = "unary", "stream"
PATHS = {UNARY: f"/{SERVICE}/Classify", STREAM: f"/{SERVICE}/ClassifyStream"}


@dataclass(frozen=True)
class Size:
    """Images of one size in the mix.

    Attributes:
        height: in pixels.
        width: in pixels.
        weight: how often it comes, beside the weights of the others.
    """

    height: int
    width: int
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A load, and how long it is measured.

    Attributes:
        address: host:port, as it was given; also sent as ``:authority``.
        connections: open at once, over all processes.
        in_flight: most requests under way on one connection.
        processes: of the load generator.
        images: a request.
        sizes: the mix.
        method: ``unary`` or ``stream``.
        rate: requests a second in all, open loop; None for the closed loop.
        poisson: intended times are a Poisson process; else they are evenly spaced.
        duration_s: measured.
        warm_up_s: before that, under load but not measured.
        deadline_s: of each request; None for no deadline.
        timeout_s: longest wait for connections, and for answers after the measured time.
        seed: of images, mix and Poisson times.
    """

    address: str
    connections: int = 64
    in_flight: int = 4
    processes: int = 1
    images: int = 1
    sizes: tuple[Size, ...] = (Size(28, 28),)
    method: str = UNARY
    rate: float | None = None
    poisson: bool = False
    duration_s: float = 10.0
    warm_up_s: float = 1.0
    deadline_s: float | None = None
    timeout_s: float = 5.0
    seed: int = 0

    def share_of_connections(self, index: int) -> int:
        """Return how many connections the process with this index opens; each opens at least one."""
        return self.connections // self.processes + (index < self.connections % self.processes)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what ``to_json`` returned."""
        values = json.loads(line)
        return cls(**values | {"sizes": tuple(Size(**size) for size in values["sizes"])})
