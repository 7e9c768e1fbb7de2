"""Parts that the commands share: the group, help in sections, common options and their types."""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from digitserve.cli.exit_codes import ExitCode, exit_code
from digitserve.cli.output import CREDENTIALS, open_standard_streams, print_error, report, with_flags
from digitserve.errors import CredentialsError, DigitserveError
from digitserve.interrupt import exit_when_interrupted, raise_when_interrupted
from digitserve.settings import Settings, endpoint, environment_value, environment_variable, setting_named

if TYPE_CHECKING:
    from click.formatting import HelpFormatter

    from digitserve.client import Client
    from digitserve.credentials import Credentials

STDIN = "-"
"""The name of standard input among the files of a command."""

DEFAULT_SECTION = "Options"

_REQUIRED_MODULES = {
    "serve": ("onnxruntime", "prometheus_client", "starlette", "uvicorn"),
    "bench": ("hpack", "prometheus_client"),
}
"""By extra: top-level modules of its packages."""


class Option(click.Option):
    """An option in a section of ``--help``.

    Attributes:
        section: title of the section.
    """

    def __init__(self, *args: Any, section: str = DEFAULT_SECTION, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose ``--help`` lists options in sections."""

    def format_options(self, ctx: click.Context, formatter: "HelpFormatter") -> None:
        """Write the options, section by section in the order of their first option; those without a section last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", DEFAULT_SECTION), []).append(record)
        sections |= {DEFAULT_SECTION: sections.pop(DEFAULT_SECTION, [])}
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class CommandGroup(click.Group):
    """The group of all commands: errors become one line and an exit code."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line of this process."""
        open_standard_streams()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        exits = raise_when_interrupted()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except CredentialsError as error:
            print_error(f"--{CREDENTIALS[error.argument]}: {error.reason}")
            ctx.exit(exit_code(error))
        except DigitserveError as error:
            report(error)
            ctx.exit(exit_code(error))
        finally:
            if exits:
                exit_when_interrupted()


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which compares as inside every range, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a flag's value."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


POSITIVE = FiniteRange(0, min_open=True)


class MissingExtraError(DigitserveError):
    """A command needs packages that are not installed."""


def require_extra(extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed, or only some of its modules.

    Raises:
        MissingExtraError: one is not; the message states how to install it.
    """
    if missing := [module for module in modules or _REQUIRED_MODULES[extra] if find_spec(module) is None]:
        raise MissingExtraError(
            f"'{click.get_current_context().command_path}' needs {', '.join(missing)}: pip install 'digitserve[{extra}]'"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHTxWIDTH``.

    Raises:
        click.BadParameter: it is something else.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise click.BadParameter(f"got '{text}'; expected HEIGHTxWIDTH in pixels, such as 28x28")
    return int(height), int(width)


@dataclass(frozen=True)
class Target:
    """The service that a command calls.

    Attributes:
        address: as the user wrote it; None for that of a service with the same environment.
        credentials: the arguments of ``credentials.Credentials`` that the user gave.
    """

    address: str | None
    credentials: dict[str, Any]

    def open_client(self, **options: Any) -> "Client":
        """Return a client of the service; ``options`` are other arguments of ``client.Client``.

        Raises:
            click.BadParameter: the address or the credentials cannot be used.
        """
        from digitserve.client import Client

        # The service with the same environment is on this machine, whatever its host is called.
        use_proxy = self.address is not None
        with _bad_parameters():
            return Client(self.address or _local_address(), use_proxy=use_proxy, **self.credentials, **options)

    def resolve(self) -> tuple[str, bool, "Credentials"]:
        """Return ``host:port``, whether to use TLS, and the credentials, for another client.

        Raises:
            click.BadParameter: the address or the credentials cannot be used.
        """
        from digitserve.client.address import is_local, parse_address
        from digitserve.credentials import Credentials

        credentials = Credentials(**self.credentials)
        with _bad_parameters():
            host_port, tls = parse_address(self.address or _local_address())
            tls = credentials.check(tls=tls, local=is_local(host_port))
            credentials.authorization()
        return host_port, tls, credentials

    def metrics_page(self, url: str | None) -> "tuple[str, bool, Credentials]":
        """Return the URL of the ``/metrics`` page, whether to verify its certificate, and the credentials.

        Without ``url`` and address it is the page of the service with the same environment. At a loopback address its certificate
        is only verified against a given authority: it is seldom for the name of such an address.

        Raises:
            click.BadParameter: the address or the credentials cannot be used.
            click.UsageError: a port in the environment cannot be used.
        """
        from urllib.parse import urlsplit

        from digitserve.credentials import Credentials, is_local_host

        verify = True
        if url is None and self.address is None:
            url, tls = local_http_url("/metrics")
            verify = not tls or "ca" in self.credentials or not is_local_host(local_host())
        elif url is None:
            host_port, tls, _ = self.resolve()
            url = f"{'https' if tls else 'http'}://{host_port.rpartition(':')[0]}:{Settings.http_port}/metrics"
        credentials = Credentials(**self.credentials)
        parts = urlsplit(url)
        with _bad_parameters():
            credentials.check(tls=parts.scheme == "https", local=is_local_host(parts.hostname or ""))
            credentials.authorization()
        return url, verify, credentials


@contextmanager
def _bad_parameters() -> Iterator[None]:
    """Convert errors of the client library about addresses and credentials."""
    from digitserve.client.errors import InvalidAddress

    try:
        yield
    except InvalidAddress as error:
        raise _bad_parameter("address", str(error).removeprefix("address: ")) from None
    except CredentialsError as error:
        raise _bad_parameter(CREDENTIALS[error.argument], with_flags(error.reason)) from None


def _bad_parameter(flag: str, reason: str) -> click.BadParameter:
    """Return the error of an option of the current command; it shows the flag and its environment variable."""
    context = click.get_current_context()
    parameters = {parameter.name: parameter for parameter in context.command.params}
    return click.BadParameter(reason, context, parameters[flag.replace("-", "_")])


def local_host() -> str:
    """Return the host of a service with the same environment: in a container, commands need no further variable."""
    host = environment_value(setting_named("host"), os.environ) or Settings.host
    # A service that listens on all addresses is reached by the loopback address of the same kind.
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound


def local_http_url(path: str) -> tuple[str, bool]:
    """Return the URL of a page of the service with the same environment, and whether it has TLS.

    Raises:
        click.UsageError: the environment has no port of a service.
    """
    setting = setting_named("http_port")
    text = environment_value(setting, os.environ) or str(Settings.http_port)
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise click.UsageError(
            f"{environment_variable(setting)}: got '{text}', expected a port from 1 to 65535; or use --address for the gRPC port"
        )
    tls = environment_value(setting_named("tls_certificate"), os.environ) is not None
    return f"{'https' if tls else 'http'}://{endpoint(local_host(), text)}{path}", tls


def _local_address() -> str:
    port = environment_value(setting_named("grpc_port"), os.environ) or Settings.grpc_port
    return endpoint(local_host(), port)


def _target_option(name: str, variable: str, text: str, **arguments: Any) -> Callable[[Any], Any]:
    arguments = {"type": click.Path(path_type=str), "metavar": "FILE", **arguments}
    return click.option(
        f"--{name}",
        cls=Option,
        section="Connection",
        envvar=f"DIGITSERVE_{variable}",
        show_envvar=True,
        help=text,
        **arguments,
    )


_TARGET_OPTIONS = (
    _target_option(
        "address", "ADDRESS", "Address of the service; https://HOST:PORT for TLS.", type=str, metavar="HOST:PORT",
        show_default="$DIGITSERVE_HOST:$DIGITSERVE_GRPC_PORT, by default 127.0.0.1:50051",
    ),
    _target_option(
        "ca", "CA", "PEM file with the authorities that sign the certificate of the service. Implies TLS.",
        show_default="with https://, those of the system",
    ),
    _target_option("client-certificate", "CLIENT_CERTIFICATE", "PEM file with the certificate of this client. Implies TLS."),
    _target_option("client-key", "CLIENT_KEY", "PEM file with the private key of that certificate."),
    _target_option("token-file", "CLIENT_TOKEN_FILE", "File with the bearer token for the service."),
    _target_option(
        "clear-text-token", "CLIENT_CLEAR_TEXT_TOKEN", "Send the token also to another machine without TLS. Others in the network can read it.",
        type=bool, metavar=None, is_flag=True,
    ),
)  # fmt: skip


def image_source(name: str) -> tuple[Path | BinaryIO, str]:
    """Return the source of an image file, and its name in errors."""
    return (sys.stdin.buffer, "standard input") if name == STDIN else (Path(name), name)


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    return None if text is None else parse_size(text)


size_option = click.option(
    "--size",
    cls=Option,
    section="Images",
    callback=_size,
    metavar="HEIGHTxWIDTH",
    help="Read FILES as raw grey pixels of images of this size, one byte per pixel.",
)

ink_option = click.option(
    "--ink",
    cls=Option,
    section="Images",
    type=click.Choice(("light_on_dark", "dark_on_light", "auto")),
    help="Whether the strokes are lighter or darker than the background; auto detects it.  [default: decided by the "
    "service]",
)


def max_side_option(default: int) -> Callable[[Any], Any]:
    """Return the option ``--max-side``."""
    return click.option(
        "--max-side", cls=Option, section="Images", default=default, show_default=True, type=click.IntRange(0), metavar="PIXELS",
        help="Reduce larger images by block means before they are sent, until no side is longer. 0: send all as they are.",
    )  # fmt: skip


def top_k_option(text: str) -> Callable[[Any], Any]:
    """Return the option ``--top-k``."""
    return click.option(
        "--top-k", cls=Option, section="Output", default=0, type=click.IntRange(0), metavar="K", help=text
    )


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select a service and the credentials for it; the command gets them as ``target``."""

    @functools.wraps(function)
    def with_target(*arguments: Any, **values: Any) -> Any:
        # gRPC core, which is imported later, would print lines for each failed handshake.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        given = {name: values.pop(flag.replace("-", "_")) for name, flag in CREDENTIALS.items()}
        target = Target(values.pop("address"), {name: value for name, value in given.items() if value})
        return function(*arguments, target=target, **values)

    for option in reversed(_TARGET_OPTIONS):
        with_target = option(with_target)
    return with_target


def timeout_option(default_s: float, text: str) -> Callable[[Any], Any]:
    """Return the option ``--timeout-s``."""
    return click.option(
        "--timeout-s", cls=Option, section="Connection", default=default_s, show_default=True, type=POSITIVE, help=text
    )
