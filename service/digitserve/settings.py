"""The settings of ``digitserve serve``, each declared once.

A field of ``Settings`` feeds its flag, its environment variable ``DIGITSERVE_...``, its validation (``cli`` builds a click
option from it), its group in ``--help`` and its row in the documentation. The supervisor sends the resolved settings to its
workers. This module imports nothing heavy, because every command and every worker imports it.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

KIB, MIB = 1 << 10, 1 << 20

VERSION = re.compile("[1-9][0-9]{0,8}")
"""The only spelling of the version of a model: no sign, no leading zero, no digits of other scripts."""


@dataclass(frozen=True)
class Bounds:
    """The values that a setting accepts: a range, or a list of words."""

    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def _setting(default: Any, group: str, text: str, bounds: Bounds | None = None, shown: str | None = None) -> Any:
    """Declare a setting.

    Args:
        default: its default value.
        group: its heading in ``--help``.
        text: its help text.
        bounds: the values that it accepts.
        shown: how help and documentation show the default, if not as its value.
    """
    metadata = {"group": group, "help": text, "bounds": bounds or Bounds(), "shown": shown}
    return field(default=default, metadata=metadata)


_NETWORK, _CONNECTIONS, _MODEL, _COMPUTE = "Network", "Connections", "Model", "Workers and device"
_BATCHING, _LIFECYCLE, _LOGGING = "Batching and limits", "Lifecycle", "Logging"

_MODELS = Path("models")
_BATCH_LIMITS = {"cpu": 64, "cuda": 1024}
"""Default of ``max_batch_size`` by device: with the size that suits a CPU core, a GPU would be idle most of the time."""

_CONNECTION_LIMITS = (4096, 2048)
"""Default of ``max_connections`` in clear text, and with TLS, which takes up to 31 KiB for each."""


_PATHS = ("models", "active_file", "tls_certificate", "tls_key", "tls_client_ca", "token_file")
"""Settings that are paths."""


@dataclass(frozen=True)
class Settings:
    """The settings that an operator can choose, with their defaults."""

    host: str = _setting("127.0.0.1", _NETWORK, "Address to listen on; 0.0.0.0 for all IPv4 addresses, :: for all.")
    grpc_port: int = _setting(50051, _NETWORK, "Port for gRPC; 0 selects a free port.", Bounds(0, 65535))
    http_port: int = _setting(
        8080,
        _NETWORK,
        "Port for the HTTP API (/v1/), /metrics, /livez, /readyz and /; 0 selects a free port.",
        Bounds(0, 65535),
    )
    transport: str = _setting(
        "native",
        _NETWORK,
        "Implementation of gRPC. native: HTTP/2 on the event loop of the worker; grpcio: gRPC core, the reference, which is "
        "several times slower and has fewer limits.",
        Bounds(choices=("native", "grpcio")),
    )
    tls_certificate: Path | None = _setting(
        None,
        _NETWORK,
        "PEM file with the certificate of the gRPC and HTTP ports, followed by its chain. Clients must use TLS 1.2 or 1.3. This "
        "file, --tls-key, --tls-client-ca and --token-file are read again when they change.",
        shown="none: clear text",
    )
    tls_key: Path | None = _setting(
        None,
        _NETWORK,
        "PEM file with the private key of the certificate, without a password.",
        shown="none: clear text",
    )
    tls_client_ca: Path | None = _setting(
        None,
        _NETWORK,
        "PEM file with certificates of authorities. Clients of the gRPC port must then have a certificate that one of them "
        "signed, and so must those of the HTTP API; /metrics needs such a certificate or a token.",
        shown="none: clients need no certificate",
    )
    token_file: Path | None = _setting(
        None,
        _NETWORK,
        "File with the tokens that clients may use, one per line, of at least 16 characters. Clients must then send "
        "'authorization: Bearer TOKEN', except for health checks.",
        shown="none: clients need no token",
    )
    reflection: str = _setting(
        "on",
        _NETWORK,
        "Whether clients may list services and messages (gRPC server reflection).",
        Bounds(choices=("on", "off")),
    )
    max_connections: int | None = _setting(
        None,
        _CONNECTIONS,
        "Maximum number of connections of a worker, and of its health watches. Beyond it, the connections whose clients have "
        "been silent longest are closed. With the transport grpcio only watches are limited.",
        Bounds(1, 1 << 20),
        shown="4096; with TLS 2048",
    )
    max_http_connections: int = _setting(
        2048,
        _CONNECTIONS,
        "Maximum number of connections of the HTTP port, fewer if there are few file descriptors. Beyond it, the one that has "
        "waited longest for an answer is closed.",
        Bounds(1, 1 << 20),
    )
    max_concurrent_streams: int = _setting(
        1024,
        _CONNECTIONS,
        "Maximum number of open calls and streams of a connection (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS).",
        Bounds(1, 1 << 20),
    )
    max_header_bytes: int = _setting(
        16 * KIB,
        _CONNECTIONS,
        "Maximum size of the header fields of a request in bytes, decoded, with 32 bytes for each field (HTTP/2 "
        "SETTINGS_MAX_HEADER_LIST_SIZE).",
        Bounds(4 * KIB, MIB),
    )
    max_connection_unsent_bytes: int = _setting(
        MIB,
        _CONNECTIONS,
        "Bytes that may wait to be sent on a connection before nothing more is read from it. Native transport only.",
        Bounds(64 * KIB, 1 << 30),
    )
    max_held_bytes: int = _setting(
        64 * MIB,
        _CONNECTIONS,
        "Maximum memory of all connections of a worker in bytes: unsent answers, open requests, incomplete headers. Beyond "
        "it, the connections that hold most are closed. Native transport only.",
        Bounds(MIB, 1 << 40),
    )
    max_receive_bytes: int | None = _setting(
        None,
        _CONNECTIONS,
        "Maximum size of all unfinished request messages of a worker in bytes, at least twice --max-request-bytes. Beyond it, "
        "clients wait or get RESOURCE_EXHAUSTED. Native transport only.",
        Bounds(MIB, 1 << 40),
        shown="5 times --max-request-bytes, at least 16 MiB",
    )
    max_connection_age_s: float = _setting(
        300.0,
        _CONNECTIONS,
        "Maximum age of a connection in seconds (+/- 10 %); then the client must reconnect, so that connections spread over "
        "the workers. Open calls and streams continue. 0: no maximum.",
        Bounds(0, 86400),
    )
    max_connection_age_grace_s: float = _setting(
        0.0,
        _CONNECTIONS,
        "Seconds after the maximum age of a connection at which its open calls and streams end as UNAVAILABLE. 0: never.",
        Bounds(0, 86400),
    )
    max_connection_idle_s: float = _setting(
        0.0,
        _CONNECTIONS,
        "Seconds without a call after which the client must reconnect. 0: no limit except the maximum age.",
        Bounds(0, 86400),
    )
    handshake_timeout_s: float = _setting(
        10.0,
        _CONNECTIONS,
        "Maximum seconds for TLS handshake, preface and SETTINGS of a connection, and for the header fields of a request. "
        "Native transport only.",
        Bounds(0.1, 3600),
    )
    message_timeout_s: float = _setting(
        60.0,
        _CONNECTIONS,
        "Maximum seconds for a client to send a request message, and to read an answer. Native transport only.",
        Bounds(1, 86400),
    )
    max_resets_per_s: int = _setting(
        2000,
        _CONNECTIONS,
        "Maximum number of streams per second and connection that the client resets, or that are reset because of its "
        "errors; bursts of 5 times as many. Beyond it, the connection is closed. Native transport only.",
        Bounds(1, 1_000_000),
    )
    max_control_frames_per_s: int = _setting(
        10_000,
        _CONNECTIONS,
        "Maximum number of PING, SETTINGS and other frames without a request per second and connection; bursts of a tenth of "
        "it, at least 1000. Beyond it, the connection is closed. Native transport only.",
        Bounds(100, 1_000_000),
    )
    models: Path = _setting(
        _MODELS,
        _MODEL,
        "Folder of the model bundles, <name>/<version>/. It may also be one bundle itself; then --model is not used, and no "
        "version can be selected.",
    )
    model: str = _setting("digits", _MODEL, "Name of the model to serve.")
    precision: str | None = _setting(
        None,
        _MODEL,
        "Precision of the network. float32: the bundle <model>/<version>, which must be in float32; int8: its int8 bundle, "
        "<model>-int8/<version>; auto: int8 if there is one and the processor multiplies 8-bit integers fast (VNNI), otherwise "
        "<model>/<version>. Clients see the name <model>.",
        Bounds(choices=("float32", "int8", "auto")),
        shown="that of the bundle <model>/<version>",
    )
    served_name: str | None = _setting(
        None,
        _MODEL,
        "Name of the model for clients, if it differs from that of the bundle: in answers and in requests of the Open Inference "
        "Protocol. KServe uses the name of the InferenceService.",
        shown="that of the bundle",
    )
    model_version: int | None = _setting(
        None,
        _MODEL,
        "Version to serve; the active file is then ignored.",
        Bounds(1),
        shown="that in the active file, else the highest",
    )
    active_file: Path | None = _setting(
        None,
        _MODEL,
        "File with the version to serve. When it changes, the workers are replaced without downtime.",
        shown="<models>/<model>/active",
    )
    shadow: str | None = _setting(
        None,
        _MODEL,
        "Shadow version (VERSION or NAME/VERSION): runs on the same images without answering; metrics count how its answers differ.",
        shown="none",
    )
    shadow_share: float = _setting(
        0.1,
        _MODEL,
        "Share of a worker's time that the shadow version may use while requests arrive. 0: it runs only if none has arrived for 2 ms.",
        Bounds(0, 1),
    )
    workers: int | None = _setting(
        None,
        _COMPUTE,
        "Number of worker processes. 0 runs everything in one process, for debuggers.",
        Bounds(0, 1024),
        shown="CPU budget rounded down, at least 1; on CUDA 1",
    )
    device: str = _setting(
        "cpu",
        _COMPUTE,
        "Device that runs the network. With cuda, the service does not start if CUDA is unavailable or cannot run the whole "
        "network; auto uses CUDA if it loads and finds a device, otherwise the CPU.",
        Bounds(choices=("cpu", "cuda", "auto")),
    )
    max_batch_size: int | None = _setting(
        None,
        _BATCHING,
        "Maximum number of images in a batch; on CUDA preferably a power of two.",
        Bounds(1, 65536),
        shown="64; on CUDA 1024",
    )
    max_pending_images: int = _setting(
        4096,
        _BATCHING,
        "Maximum number of pending images of a worker, of small and of large requests each. Further requests get "
        "RESOURCE_EXHAUSTED.",
        Bounds(1, 1 << 24),
    )
    max_request_bytes: int = _setting(
        16 * MIB + 64 * KIB,
        _BATCHING,
        "Maximum size of a request message in bytes. The default fits one grey image of 4096x4096 pixels.",
        Bounds(1024, 1 << 30),
    )
    max_side: int = _setting(4096, _BATCHING, "Maximum height and width of an image in pixels.", Bounds(28, 1 << 16))
    grace_s: float = _setting(
        20.0,
        _LIFECYCLE,
        "Seconds after SIGTERM within which admitted requests are answered; the others then fail.",
        Bounds(0, 86400),
    )
    lame_duck_s: float = _setting(
        1.0,
        _LIFECYCLE,
        "Seconds after SIGTERM during which health is NOT_SERVING but requests are still accepted, so that load "
        "balancers can react. Part of the grace period.",
        Bounds(0, 86400),
    )
    stall_s: float = _setting(
        10.0,
        _LIFECYCLE,
        "Seconds without progress of a worker's event loop after which the worker is replaced.",
        Bounds(0.5, 86400),
    )
    log_format: str = _setting(
        "auto",
        _LOGGING,
        "Log lines as text or as JSON; auto writes text to a terminal and JSON elsewhere.",
        Bounds(choices=("auto", "text", "json")),
    )
    log_requests_per_s: float = _setting(
        10.0,
        _LOGGING,
        "Maximum log lines per second and worker about single requests: those that failed, were refused or were slow. 0: none.",
        Bounds(0, 10_000),
    )
    log_slow_s: float = _setting(
        1.0, _LOGGING, "Seconds from which an answered call is logged as slow. 0: never.", Bounds(0, 86400)
    )

    def resolve(self, device: str, cpu_budget: float) -> "Settings":
        """Return the settings with ``device`` and ``workers`` decided.

        Args:
            device: the device to use on this machine, ``cpu`` or ``cuda``.
            cpu_budget: cores that this service may use.
        """
        # Each worker takes about 0.8 GB of the GPU's memory, most of it for CUDA itself.
        workers = 1 if device == "cuda" else max(1, int(cpu_budget))
        return replace(self, device=device, workers=workers if self.workers is None else self.workers)

    @property
    def batch_limit(self) -> int:
        """Maximum number of images in a batch: ``max_batch_size``, or its default for the device."""
        return self.max_batch_size or _BATCH_LIMITS.get(self.device, _BATCH_LIMITS["cpu"])

    @property
    def connection_limit(self) -> int:
        """Maximum number of connections of a worker: ``max_connections``, or its default with or without TLS."""
        return self.max_connections or _CONNECTION_LIMITS[self.tls_certificate is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can represent, for ``from_dict`` in another process."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings from the values that ``to_dict`` returned."""
        paths = {name: Path(values[name]) for name in _PATHS if values[name]}
        return cls(**{**values, **paths})


def setting_named(name: str) -> Field[Any]:
    """Return the declaration of a setting."""
    return next(declared for declared in fields(Settings) if declared.name == name)


def endpoint(host: str, port: int | str) -> str:
    """Return ``host:port``; an IPv6 address is put in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def flag(setting: Field[Any]) -> str:
    """Return the command-line flag of a setting."""
    return "--" + setting.name.replace("_", "-")


def environment_variable(setting: Field[Any]) -> str:
    """Return the environment variable of a setting."""
    return "DIGITSERVE_" + setting.name.upper()


_INJECTED = ("tcp://", "udp://", "sctp://")
"""Start of the values that Kubernetes injects for the port of a Service."""


def environment_value(
    setting: Field[Any], environ: Mapping[str, str], on_injected: Callable[[str, str], object] | None = None
) -> str | None:
    """Return the text of a setting's environment variable, or ``None`` if the setting is not set there.

    An empty variable counts as not set: Compose files and Helm charts pass on empty variables. A port with a value such as
    ``tcp://ADDRESS:PORT`` also counts as not set: Kubernetes injects ``DIGITSERVE_GRPC_PORT=tcp://...`` into each container of a
    namespace that has a Service named ``digitserve-grpc``. The other variables that it injects are names of no setting.

    Args:
        setting: a field of ``Settings``.
        environ: usually ``os.environ``.
        on_injected: called with the variable and the value that Kubernetes injected; by default, standard error gets a line.
    """
    variable = environment_variable(setting)
    value = environ.get(variable)
    if value and variable.endswith("_PORT") and value.startswith(_INJECTED):
        (on_injected or _warn_ignored)(variable, value)
        return None
    return value or None


def _warn_ignored(variable: str, value: str) -> None:
    # Not as a log line: logging is not configured yet, and never is in the client library.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"digitserve: ignoring {variable}={value}, which Kubernetes injects for a Service\n")


def table() -> str:
    """Return the documentation's table of settings, as Markdown."""
    rows = [
        f"| `{flag(f)}` | `{environment_variable(f)}` | {f.metadata['shown'] or f'`{f.default}`'} | {f.metadata['help']} |"
        for f in fields(Settings)
    ]
    lines = ["| flag | environment | default | what it does |", "|---|---|---|---|", *rows]
    return "\n".join(lines).replace("<", r"\<")  # <name> is not an HTML element
