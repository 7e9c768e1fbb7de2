"""Parts that the commands share: the group, help in sections, common options and their types."""

import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from digitserve.cli.exit_codes import ExitCode, exit_code
from digitserve.cli.output import open_standard_streams, print_error
from digitserve.errors import DigitserveError
from digitserve.interrupt import exit_when_interrupted, raise_when_interrupted
from digitserve.settings import Settings, endpoint, environment_value, setting_named

if TYPE_CHECKING:
    from click.formatting import HelpFormatter

DEFAULT_SECTION = "Options"

_REQUIRED_MODULES = {
    "serve": ("onnxruntime", "prometheus_client", "starlette", "structlog", "uvicorn"),
    "bench": ("hpack",),
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
        except DigitserveError as error:
            print_error(str(error))
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


def require_extra(extra: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        MissingExtraError: one is not; the message states how to install it.
    """
    for module in _REQUIRED_MODULES[extra]:
        if find_spec(module) is None:
            raise MissingExtraError(
                f"'digitserve {extra}' needs the package '{module}': pip install 'digitserve[{extra}]'"
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


def _default_address() -> str:
    """Return the address of a service with the same environment: in a container, commands need no further variable."""
    host = environment_value(setting_named("host"), os.environ) or Settings.host
    port = environment_value(setting_named("grpc_port"), os.environ) or Settings.grpc_port
    # A service that listens on all addresses is reached by the loopback address of the same kind.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound
    return endpoint(host, port)


def _parse_address(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    from digitserve.client.address import normalize_address
    from digitserve.client.errors import InvalidAddress

    try:
        return normalize_address(text)
    except InvalidAddress as error:
        raise click.BadParameter(str(error).removeprefix("address: ")) from None


def address_option() -> Callable[[Any], Any]:
    """Return the option ``--address``."""
    return click.option(
        "--address", cls=Option, section="Connection", default=_default_address, callback=_parse_address,
        envvar="DIGITSERVE_ADDRESS", show_envvar=True, metavar="HOST:PORT",
        show_default="$DIGITSERVE_HOST:$DIGITSERVE_GRPC_PORT, by default 127.0.0.1:50051",
        help="Address of the service.",
    )  # fmt: skip


def timeout_option(default_s: float, text: str) -> Callable[[Any], Any]:
    """Return the option ``--timeout-s``."""
    return click.option(
        "--timeout-s", cls=Option, section="Connection", default=default_s, show_default=True, type=POSITIVE, help=text
    )
