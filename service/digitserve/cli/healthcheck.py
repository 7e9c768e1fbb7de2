"""``digitserve healthcheck``: the health of a service by grpc.health.v1, for container health checks."""

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import Command, Option, address_option, timeout_option
from digitserve.cli.output import print_error, print_line
from digitserve.protocol.names import SERVICE


@click.command(cls=Command)
@address_option()
@timeout_option(2.0, "Maximum time to wait for the answer, in seconds.")
@click.option(
    "--service",
    cls=Option,
    default="",
    metavar="NAME",
    help=f"Full name of the gRPC service to check, such as {SERVICE}.  [default: the server as a whole]",
)
@click.pass_context
def healthcheck(context: click.Context, /, *, address: str, timeout_s: float, service: str) -> None:
    """Print the health status of the service (grpc.health.v1).

    \b
    Exit codes: 0 SERVING; 1 any other status, or an unknown service; 2 wrong usage; 3 no service answers;
    4 no answer in time; 130 stopped by Ctrl-C.
    """
    from digitserve.client import Client, RequestRejected

    with Client(address, num_connections=1, timeout_s=timeout_s) as client:
        try:
            status = client.health(service)
        except RequestRejected as error:
            if error.code.name != "NOT_FOUND":
                raise
            print_error(
                f"--service: the server has no service '{service}'; expected {SERVICE}, or no --service for the server as a whole"
            )
            context.exit(ExitCode.NEGATIVE)
    print_line(status)
    context.exit(ExitCode.OK if status == "SERVING" else ExitCode.NEGATIVE)
