"""``digitserve bench``: flags to a plan; ``bench.command`` runs it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import (
    POSITIVE,
    Command,
    FiniteRange,
    Option,
    Target,
    parse_size,
    require_extra,
    target_options,
)
from digitserve.cli.output import print_line, with_flags


def _sizes(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[tuple[int, int, float], ...]:
    """Parse ``28x28,64x64:0.2``: sizes, each with its weight, by default 1."""
    sizes = []
    for part in text.split(","):
        size, _, weight = part.strip().partition(":")
        sizes.append((*parse_size(size), POSITIVE.convert(weight or 1, None, None)))
    return tuple(sizes)


def _option(name: str, section: str, /, **arguments: Any) -> Callable[[Any], Any]:
    return click.option(name, cls=Option, section=section, **arguments)


@click.command(cls=Command)
@target_options
@_option(
    "--timeout-s",
    "Connection",
    default=5.0,
    show_default=True,
    type=POSITIVE,
    help="Maximum time in seconds to wait for connections, and for answers after the measured time.",
)
@_option(
    "--metrics",
    "Connection",
    metavar="URL",
    help="URL of the /metrics page of the service.  [default: http://HOST:8080/metrics, with TLS https://]",
)
@_option(
    "--connections",
    "Load",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Number of connections in total.",
)
@_option(
    "--in-flight",
    "Load",
    default=4,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of requests in flight per connection.",
)
@_option(
    "--rate",
    "Load",
    type=POSITIVE,
    help="Send this many requests/s (open loop). Default: as fast as the service answers (closed loop).",
)
@_option(
    "--poisson",
    "Load",
    is_flag=True,
    help="Send requests at random times (Poisson process) instead of at equal intervals.",
)
@_option(
    "--method",
    "Load",
    default="unary",
    show_default=True,
    type=click.Choice(["unary", "stream"]),
    help="Classify, or ClassifyStream with one stream per connection.",
)
@_option("--deadline-s", "Load", type=POSITIVE, help="Deadline of each request; with --method unary only.")
@_option(
    "--processes",
    "Load",
    type=click.IntRange(1),
    help="Processes of the load generator.  [default: the available CPUs, at most --connections]",
)
@_option("--images", "Images", default=1, show_default=True, type=click.IntRange(1), help="Images per request.")
@_option(
    "--sizes",
    "Images",
    default="28x28",
    show_default=True,
    callback=_sizes,
    metavar="HEIGHTxWIDTH[:WEIGHT],...",
    help="Size of the images, or several sizes with relative weights: 28x28:4,64x64:1. The service frames images of other "
    "sizes than 28x28.",
)
@_option(
    "--seed",
    "Images",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed for images, mix and arrival times.",
)
@_option(
    "--duration-s",
    "Measurement",
    default=10.0,
    show_default=True,
    type=POSITIVE,
    help="Measured time in seconds; with --slo-ms, that of each probe.",
)
@_option(
    "--warm-up-s",
    "Measurement",
    default=1.0,
    show_default=True,
    type=FiniteRange(0),
    help="Time under load before the measured time, in seconds.",
)
@_option(
    "--slo-ms",
    "Measurement",
    type=POSITIVE,
    help="Search for the highest rate at which 99 % of the requests are answered with OK within this many milliseconds. "
    "The search starts at --rate, or at 500 requests/s.",
)
@_option("--json", "Output", is_flag=True, help="Print one JSON object instead of text.")
@_option(
    "--plot",
    "Output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write latencies and rate as a PNG image; needs 'digitserve[plot]'.",
)
@click.pass_context
def bench(context: click.Context, /, target: Target, **values: Any) -> None:
    """Measure throughput and latency of a service.

    The report also has errors, batch sizes and CPU time.

    \b
    Exit codes: 0 measured; 1 no request was answered with OK, an answer was
    wrong, the service ended during it, or no rate met --slo-ms; 2 wrong usage;
    3 no service answers; 5 access denied: TLS handshake failed; 130 stopped by
    Ctrl-C.
    """
    require_extra("bench")
    from digitserve.bench import command
    from digitserve.bench.plan import Plan, Size

    _check(values)
    slo_ms = values.pop("slo_ms")
    address, tls, credentials = target.resolve()
    url = values.pop("metrics") or f"{'https' if tls else 'http'}://{address.rpartition(':')[0]}:8080/metrics"
    options = command.Options(url, slo_ms and slo_ms / 1e3, values.pop("json"), values.pop("plot"))
    values["processes"] = values["processes"] or min(values["connections"], len(os.sched_getaffinity(0)))
    values["sizes"] = tuple(Size(*size) for size in values["sizes"])
    plan = Plan(address, tls=tls, credentials=credentials, **values)
    outcome = command.run(plan, options, lambda text: print_line(with_flags(text)), sys.stderr)
    context.exit(ExitCode.INTERRUPTED if outcome.stopped else ExitCode.OK if outcome.good else ExitCode.NEGATIVE)


def _check(values: dict[str, Any]) -> None:
    """Reject flags that contradict each other."""
    if values["method"] == "stream" and values["deadline_s"] is not None:
        raise click.UsageError("--deadline-s needs --method unary: on a stream it would end the whole stream")
    if values["poisson"] and values["rate"] is None and values["slo_ms"] is None:
        raise click.UsageError("--poisson needs --rate or --slo-ms: a closed loop has no arrival times")
    if (values["processes"] or 1) > values["connections"]:
        raise click.UsageError(
            f"--processes: got {values['processes']} for {values['connections']} connections; each process needs one"
        )
