"""``digitserve top``: flags to options; ``top.command`` shows the service."""

import os
import sys

import click

from digitserve.cli.options import Command, FiniteRange, Option, Target, require_extra, target_options
from digitserve.cli.output import print_line, with_flags
from digitserve.terminal import can_move_cursor

_MIN_INTERVAL_S = 0.1


@click.command(cls=Command)
@target_options
@click.option(
    "--metrics",
    cls=Option,
    section="Connection",
    metavar="URL",
    help="URL of the /metrics page.  [default: with --address http://HOST:8080/metrics or https://; else that of the service "
    "with the same environment: DIGITSERVE_HOST, DIGITSERVE_HTTP_PORT, DIGITSERVE_TLS_CERTIFICATE]",
)
@click.option(
    "--interval-s",
    cls=Option,
    section="Output",
    default=1.0,
    show_default=True,
    type=FiniteRange(_MIN_INTERVAL_S),
    help="Seconds from one reading of the page to the next.",
)
@click.option(
    "--once", cls=Option, section="Output", is_flag=True, help="Print one table, after two readings, and end."
)
@click.option(
    "--json",
    "as_json",
    cls=Option,
    section="Output",
    is_flag=True,
    help="Print one JSON object per reading, or with --once one.",
)
def top(target: Target, metrics: str | None, interval_s: float, *, once: bool, as_json: bool) -> None:
    """Show what a running service does, from its metrics: rates, latencies, batches, queue, workers, errors.

    The screen shows the last 10 seconds. q ends it. While the service does not answer, the last figures stay.

    \b
    Exit codes: 0 ended by q, or printed; 2 wrong usage; 130 stopped by Ctrl-C.
    With --once also: 1 no metrics of digitserve at the URL; 3 no service
    answers; 4 no answer in time; 5 access denied: TLS handshake failed, or token
    not accepted.
    """
    require_extra("bench", "prometheus_client")
    from digitserve.scrape import NotAvailable, Scraper
    from digitserve.top import command

    if not (once or as_json or can_move_cursor(sys.stdout, os.environ)):
        raise click.UsageError(
            "standard output is not a terminal with a cursor that can be moved; use --once or --json"
        )
    url, verify, credentials = target.metrics_page(metrics)
    try:
        scraper = Scraper(url, credentials, verify=verify)
    except NotAvailable as error:
        raise click.BadParameter(with_flags(str(error)), param_hint="--metrics") from None
    options = command.Options(url, interval_s, once=once, as_json=as_json)
    command.run(scraper, options, print_line, with_flags)
