"""The command ``digitserve``: parses flags, calls the modules that do the work, and maps errors to exit codes.

Each command imports what it needs when it runs, so that ``--help``, shell completion and short commands start fast.
"""

import click

from digitserve.cli import bench, classify, healthcheck, models, read, serve, top
from digitserve.cli.options import CommandGroup

__all__ = ["main"]


@click.group("digitserve", cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="digitserve", prog_name="digitserve")
def main() -> None:
    """Classify images of handwritten digits, and read numbers, over gRPC.

    \b
    Exit codes of all commands:
      0    success
      1    negative result: a file, image or model was rejected, the service is not healthy
           or did not start or answer all requests, or a measurement has no valid result
      2    wrong usage
      3    no service answers at the address
      4    the service did not answer in time
      5    access denied: TLS handshake failed, or token not accepted
      70   internal fault of serve; the log has it
      130  stopped by Ctrl-C
      141  the reader of standard output, such as head, has ended
    """


for command in (
    serve.serve,
    models.models,
    classify.classify,
    read.read,
    bench.bench,
    top.top,
    healthcheck.healthcheck,
):
    main.add_command(command)
