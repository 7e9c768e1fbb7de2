"""The load to send and how long to measure it: made by ``command`` from flags, sent by ``coordinator`` to each process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from digitserve.credentials import Credentials
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM

UNARY, STREAM = "unary", "stream"
PATHS = {UNARY: CLASSIFY.path, STREAM: CLASSIFY_STREAM.path}


@dataclass(frozen=True)
class Size:
    """Images of one size in the mix.

    Attributes:
        height: in pixels.
        width: in pixels.
        weight: relative frequency among all sizes of the mix.
    """

    height: int
    width: int
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A load, and how long it is measured.

    Attributes:
        address: host:port as the user gave it; also sent as ``:authority``.
        tls: whether to use TLS.
        credentials: for TLS, and the file of the token.
        connections: number of open connections, over all processes.
        in_flight: maximum number of concurrent requests per connection.
        processes: number of load generator processes.
        images: images per request.
        sizes: the mix of image sizes.
        method: ``unary`` or ``stream``.
        rate: requests/s over all processes, open loop; None for the closed loop.
        poisson: whether intended times are a Poisson process instead of evenly spaced.
        duration_s: measured time.
        warm_up_s: time under load before the measured time.
        deadline_s: deadline per request; None for no deadline.
        timeout_s: longest wait for connections, and for answers after the measured time.
        seed: random seed for images, mix and arrival times.
    """

    address: str
    tls: bool = False
    credentials: Credentials = field(default_factory=Credentials)
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

    def num_connections_of(self, index: int) -> int:
        """Return how many connections the process with this index opens: at least one."""
        return self.connections // self.processes + (index < self.connections % self.processes)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returned."""
        sizes, credentials = tuple(Size(**size) for size in stored["sizes"]), Credentials(**stored["credentials"])
        return cls(**{**stored, "sizes": sizes, "credentials": credentials})
