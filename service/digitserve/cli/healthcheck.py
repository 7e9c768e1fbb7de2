"""``digitserve healthcheck``: the health of a service by grpc.health.v1, for container health checks."""

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import Command, Option, address_option, timeout_option
from digitserve.cli.output import print_line


@click.command(cls=Command)
@address_option()
@timeout_option(2.0, "Maximum time to wait for the answer, in seconds.")
@click.option(
    "--service",
    cls=Option,
    default="",
    metavar="NAME",
    help="Full name of the gRPC service to check, such as digitserve.v1.DigitService.  [default: the server as a whole]",
)
@click.pass_context
def healthcheck(context: click.Context, /, *, address: str, timeout_s: float, service: str) -> None:
    """Print the health status of the service (grpc.health.v1).

    \b
    Exit codes: 0 SERVING; 1 any other status; 2 wrong usage; 3 no service answers;
    4 no answer in time; 130 stopped by Ctrl-C.
    """  # noqa: D301 - click does not wrap a paragraph that starts with backslash b
    from digitserve.client import Client  # noqa: PLC0415

    with Client(address, num_connections=1, timeout_s=timeout_s) as client:
        status = client.health(service)
    print_line(status)
    context.exit(ExitCode.OK if status == "SERVING" else ExitCode.NEGATIVE)
