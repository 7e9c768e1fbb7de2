"""The settings of ``digitserve serve``, each declared once.

A field below feeds its flag, its environment variable ``DIGITSERVE_...``, its validation (``cli`` builds a click option
from it) and its row in the README. Workers get the same values as JSON from the supervisor. This module imports nothing
heavy, since every worker imports it.
"""

import json
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """What a setting accepts: a range, or a list of words."""

    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def _setting(default: Any, text: str, bounds: Bounds | None = None, shown: str | None = None) -> Any:
    """Declare a setting: its default, its help text, what it accepts, and how the default is shown."""
    return field(default=default, metadata={"help": text, "bounds": bounds or Bounds(), "shown": shown})


_MODELS = Path("models")
_BATCH_LIMITS = {"cpu": 64, "cuda": 1024}
"""The default of ``max_batch_size`` by device: at the size that suits a core, a GPU would stand idle for the most part."""


@dataclass(frozen=True)
class Settings:
    """What an operator can choose, with the defaults."""

    host: str = _setting("127.0.0.1", "Address to listen on; 0.0.0.0 for all IPv4 addresses, :: for all.")
    grpc_port: int = _setting(50051, "Port for gRPC; 0 takes a free one.", Bounds(0, 65535))
    http_port: int = _setting(8080, "Port for /metrics, /livez, /readyz and /; 0 takes a free one.", Bounds(0, 65535))
    models: Path = _setting(_MODELS, "Directory that holds the model bundles, <name>/<version>/.")
    model: str = _setting("digits", "Name of the model to serve.")
    model_version: int | None = _setting(None, "Version to serve.", Bounds(1), shown="highest")
    workers: int | None = _setting(
        None,
        "Worker processes; 0 runs everything in one process, for debuggers.",
        Bounds(0, 1024),
        shown="CPU budget, at least 1; on CUDA 1",
    )
    device: str = _setting(
        "cpu",
        "Where the network runs; cuda is CUDA or nothing, auto takes CUDA where it loads and finds a device.",
        Bounds(choices=("cpu", "cuda", "auto")),
    )
    max_batch_size: int | None = _setting(
        None,
        "Most images in one run of the network; on CUDA best a power of two.",
        Bounds(1, 65536),
        shown="64; on CUDA 1024",
    )
    max_pending_images: int = _setting(
        4096, "Most images waiting in a worker; beyond it requests get RESOURCE_EXHAUSTED.", Bounds(1, 1 << 24)
    )
    max_request_bytes: int = _setting(16 * MIB, "Largest request message, in bytes.", Bounds(1024, 1 << 30))
    max_side: int = _setting(4096, "Largest height or width of an image, in pixels.", Bounds(28, 1 << 16))
    grace_s: float = _setting(
        20.0, "After SIGTERM, seconds that admitted requests have to be answered.", Bounds(0, 86400)
    )
    lame_duck_s: float = _setting(
        1.0,
        "After SIGTERM, seconds in which health says NOT_SERVING while requests are still taken, so that "
        "balancers can look elsewhere; counts towards the grace.",
        Bounds(0, 86400),
    )
    stall_s: float = _setting(
        10.0, "A worker whose loop has not turned for so many seconds is replaced.", Bounds(0.5, 86400)
    )
    max_connection_age_s: float = _setting(
        300.0,
        "Seconds after which a client is asked to connect anew, give or take a tenth, so that connections spread over "
        "the workers; open calls and streams are not cut. 0: never.",
        Bounds(0, 86400),
    )
    log_format: str = _setting(
        "auto", "Log lines for people, or JSON for machines; auto looks for a terminal.",
        Bounds(choices=("auto", "text", "json")),
    )  # fmt: skip

    def settled(self, device: str, cpu_budget: float) -> "Settings":
        """Return the settings with device and number of workers decided.

        Args:
            device: what ``device`` comes to here, ``cpu`` or ``cuda``.
            cpu_budget: cores that this service may use.
        """
        # One worker keeps a GPU busy; another would hold the network and its buffers a second time.
        workers = 1 if device == "cuda" else max(1, int(cpu_budget))
        return replace(self, device=device, workers=workers if self.workers is None else self.workers)

    @property
    def batch_limit(self) -> int:
        """Most images in one run of the network: ``max_batch_size``, or its default for the device."""
        return self.max_batch_size or _BATCH_LIMITS.get(self.device, _BATCH_LIMITS["cpu"])

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "models": str(self.models)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """Return the settings that ``to_dict`` returned."""
        return cls(**{**values, "models": Path(values["models"])})

    def to_json(self) -> str:
        """Return the settings as one line of JSON, for ``from_json`` in a worker."""
        return json.dumps({**asdict(self), "models": str(self.models)})

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Return the settings that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(**{**values, "models": Path(values["models"])})


def endpoint(host: str, port: int) -> str:
    """Write host and port as one; the colons of an IPv6 address need brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def flag(setting: Field[Any]) -> str:
    """Return the command-line flag of a setting."""
    return "--" + setting.name.replace("_", "-")


def environment_variable(setting: Field[Any]) -> str:
    """Return the environment variable of a setting."""
    return "DIGITSERVE_" + setting.name.upper()


def table() -> str:
    """Return the README's table of settings, as Markdown."""
    rows = [
        f"| `{flag(f)}` | `{environment_variable(f)}` | {f.metadata['shown'] or f'`{f.default}`'} | {f.metadata['help']} |"
        for f in fields(Settings)
    ]
    return "\n".join(["| flag | environment | default | what it does |", "|---|---|---|---|", *rows])
