"""The command ``digitserve``: thin; what it does is in the modules that it calls.

Exit codes: 0 done, 1 the answer is no (not healthy, not served, refused to start), 2 wrong usage, 3 nobody answers.
"""

import json
import math
import os
import sys
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from digitserve.errors import DigitserveError, RefusalToStart
from digitserve.settings import Settings, environment_variable, flag

if TYPE_CHECKING:
    from digitserve.v1 import digits_pb2 as pb

# Each command imports what it stands on when it runs: all of it together would take as long as the rest of the start.

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_STOPPED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("digitserve"), prog_name="digitserve")
def main() -> None:
    """Classify handwritten digits over gRPC."""


class _FiniteRange(click.FloatRange):
    """A range that NaN, which is never outside of one, does not slip through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def _type(setting: Field[Any]) -> "click.ParamType[Any]":
    bounds = setting.metadata["bounds"]
    if bounds.choices:
        return click.Choice(bounds.choices)
    if "float" in str(setting.type):
        return _FiniteRange(bounds.minimum, bounds.maximum)
    if "int" in str(setting.type):
        return click.IntRange(bounds.minimum, bounds.maximum)
    if "Path" in str(setting.type):
        return click.Path(path_type=Path)
    return click.STRING


def _option(setting: Field[Any]) -> click.Option:
    """Make the option of ``serve`` that a setting declares."""
    return click.Option(
        [flag(setting), setting.name],
        type=_type(setting),
        default=setting.default,
        envvar=environment_variable(setting),
        show_envvar=True,
        show_default=setting.metadata["shown"] or True,
        help=setting.metadata["help"],
    )


@click.pass_context
def _serve(context: click.Context, /, *, tune: bool, **values: Any) -> None:
    from digitserve import log  # noqa: PLC0415

    settings = Settings(**values)
    log.configure(settings.log_format)
    try:
        context.exit(_propose(settings) if tune else _run(settings))
    except RefusalToStart as error:
        click.echo(f"digitserve: refusing to start: {error}", err=True)
        context.exit(EXIT_NO)


def _run(settings: Settings) -> int:
    from digitserve.supervision import supervisor  # noqa: PLC0415

    return supervisor.serve(settings)


def _propose(settings: Settings) -> int:
    from digitserve.supervision import autotune, device  # noqa: PLC0415
    from digitserve.supervision.cpu_budget import cpu_budget  # noqa: PLC0415

    budget = cpu_budget()
    trials: list[autotune.Trial] = []
    for trial in autotune.measure(settings.resolve(device.resolve(settings), budget), max(1, int(budget))):
        click.echo(autotune.table([trial], header=not trials))
        trials.append(trial)
    click.echo(autotune.proposal(autotune.best(trials)))
    return 0


main.add_command(
    click.Command(
        "serve",
        params=[
            *(_option(setting) for setting in fields(Settings)),
            click.Option(["--tune"], is_flag=True, help="Serve nothing; measure this machine and propose settings."),
        ],
        callback=_serve,
        help="Serve a model until SIGTERM. Every flag has its environment variable; a flag wins.",
    )
)


def _own_address() -> str:
    """Return where a service with this environment listens: in a container, one variable moves it and its health check."""
    return f"127.0.0.1:{os.environ.get('DIGITSERVE_GRPC_PORT') or 50051}"


_address = click.option(
    "--address", default=_own_address, show_default="127.0.0.1 and $DIGITSERVE_GRPC_PORT, else 50051", envvar="DIGITSERVE_ADDRESS", show_envvar=True,
    help="Where the service listens, host:port.",
)  # fmt: skip
_timeout = click.option(
    "--timeout-s", default=5.0, show_default=True, type=click.FloatRange(0.001), help="Longest wait for an answer."
)


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise click.BadParameter(f"got '{text}'; expected HEIGHTxWIDTH in pixels, such as 28x28")
    return int(height), int(width)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_address
@_timeout
@click.option("--size", callback=_size, help="Files are raw GRAY8 pixels of images of this HEIGHTxWIDTH.")
@click.option("--top-k", default=0, type=click.IntRange(0), help="Also list the K most probable labels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line and image, for scripts.")
@click.pass_context
def classify(
    context: click.Context, files: tuple[Path, ...], address: str, timeout_s: float, size: tuple[int, int] | None,
    top_k: int, as_json: bool,  # noqa: FBT001 - click gives it by name
) -> None:  # fmt: skip
    """Classify digits in FILES: PNG, JPEG, or raw pixels.

    \b
    Exit codes: 0 every image was classified; 1 a file or image was refused;
    2 wrong usage; 3 nobody answers at the address.
    """
    from digitserve import client  # noqa: PLC0415
    from digitserve.vision import image_files  # noqa: PLC0415

    code = 0
    with client.connect(address) as channel:
        for path in files:
            try:
                request = image_files.read_request(path, size)
                request.top_k = top_k
                _show(path, client.classify(channel, request, timeout_s), as_json)
            except client.Unreachable as error:
                context.exit(_complain(str(error), EXIT_UNREACHABLE))
            except client.Refused as error:
                code = _complain(f"{path}: {error}", EXIT_NO)
            except DigitserveError as error:
                code = _complain(str(error), EXIT_NO)
    context.exit(code)


def _show(path: Path, response: "pb.ClassifyResponse", as_json: bool) -> None:  # noqa: FBT001
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    for index, prediction in enumerate(response.predictions):
        name = str(path) if len(response.predictions) == 1 else f"{path}[{index}]"
        if as_json:
            fields_of = MessageToDict(
                prediction, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            model = f"{response.model_name}/{response.model_version}"
            click.echo(json.dumps({"file": str(path), "image": index, **fields_of, "model": model}))
        else:
            click.echo(f"{name}: {_describe(prediction)}")


def _describe(prediction: "pb.Prediction") -> str:
    from digitserve.v1 import digits_pb2 as pb  # noqa: PLC0415

    if prediction.verdict == pb.VERDICT_BLANK:
        return "blank: no ink"
    remarks = {
        pb.VERDICT_UNFAMILIAR: "  (unfamiliar: does not look like a digit)",
        pb.VERDICT_SEVERAL: "  (several figures: send them one by one)",
    }
    others = ", ".join(f"{score.label} {score.confidence:.1%}" for score in prediction.top[1:])
    also = f"  (then {others})" if others else ""
    return f"{prediction.label}  {prediction.confidence:.1%}{also}{remarks.get(prediction.verdict, '')}"


@main.command()
@_address
@click.option("--timeout-s", default=2.0, show_default=True, type=click.FloatRange(0.001), help="Longest wait.")
@click.option("--service", default="", help="Ask for this service's health instead of the whole.")
@click.pass_context
def healthcheck(context: click.Context, address: str, timeout_s: float, service: str) -> None:
    """Ask the service for its health by grpc.health.v1.

    \b
    Exit codes: 0 SERVING; 1 any other answer; 3 nobody answers.
    """
    from digitserve import client  # noqa: PLC0415

    with client.connect(address) as channel:
        try:
            status = client.health(channel, service, timeout_s)
        except client.Unreachable as error:
            context.exit(_complain(str(error), EXIT_UNREACHABLE))
        except DigitserveError as error:
            context.exit(_complain(str(error), EXIT_NO))
    click.echo(status)
    context.exit(0 if status == "SERVING" else EXIT_NO)


def _sizes(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[tuple[int, int, float], ...]:
    """Read ``28x28,64x64:0.2``: sizes, each with its weight, 1 unless it is said."""
    sizes = []
    for part in text.split(","):
        size, _, weight = part.strip().partition(":")
        height, _, width = size.partition("x")
        try:
            sizes.append((int(height), int(width), float(weight or 1)))
        except ValueError:
            sizes.append((0, 0, 0.0))
        if min(sizes[-1]) <= 0 or not math.isfinite(sizes[-1][2]):
            raise click.BadParameter(f"got '{part}'; expected HEIGHTxWIDTH or HEIGHTxWIDTH:WEIGHT, such as 64x64:0.2")
    return tuple(sizes)


_positive = _FiniteRange(0, min_open=True)


@main.command()
@_address
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1), help="Connections, in all.")
@click.option(
    "--in-flight", default=4, show_default=True, type=click.IntRange(1), help="Most requests under way on each."
)
@click.option(
    "--rate", type=_positive, help="Open loop at so many requests/s; without it a closed loop, as fast as it goes."
)
@click.option("--poisson", is_flag=True, help="Open loop at random times instead of even ones.")
@click.option(
    "--method",
    default="unary",
    show_default=True,
    type=click.Choice(["unary", "stream"]),
    help="Classify, or ClassifyStream with one stream a connection.",
)
@click.option("--images", default=1, show_default=True, type=click.IntRange(1), help="Images a request.")
@click.option(
    "--sizes",
    default="28x28",
    show_default=True,
    callback=_sizes,
    help="HEIGHTxWIDTH of images, or a mix with relative weights: 28x28:4,64x64:1. Other sizes than 28x28 are framed by the service.",
)
@click.option(
    "--duration-s", default=10.0, show_default=True, type=_positive, help="Measured time; of each probe with --slo-ms."
)
@click.option(
    "--warm-up-s", default=1.0, show_default=True, type=_FiniteRange(0), help="Load before that, not measured."
)
@click.option("--deadline-s", type=_positive, help="Deadline of each request; unary only.")
@click.option(
    "--slo-ms",
    type=_positive,
    help="Find the highest rate at which 99 % of the requests are answered with OK within so many ms; begins at --rate, else at 500.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes of the load generator.  [default: the CPUs that it may use, at most --connections]",
)
@click.option(
    "--timeout-s",
    default=5.0,
    show_default=True,
    type=_positive,
    help="Longest wait for connections, and for answers after the measured time.",
)
@click.option("--metrics", "metrics_url", help="The service's /metrics page.  [default: http://HOST:8080/metrics]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of images, mix and random times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write latencies and rate as a PNG; needs 'digitserve[plot]'.",
)
@click.pass_context
def bench(context: click.Context, /, **values: Any) -> None:
    """Load a service and report throughput, latencies, errors, batch sizes and CPU time.

    \b
    Exit codes: 0 measured; 1 nothing was answered with OK, or an answer was wrong,
    or no rate held; 2 wrong usage; 3 nobody answers; 130 stopped by Ctrl-C.
    """
    from digitserve.bench import command  # noqa: PLC0415
    from digitserve.bench.load import Unreachable  # noqa: PLC0415
    from digitserve.bench.plan import Plan, Size  # noqa: PLC0415

    _check_bench(values)
    slo_ms = values.pop("slo_ms")
    url = values.pop("metrics_url") or f"http://{values['address'].rpartition(':')[0]}:8080/metrics"
    options = command.Options(url, slo_ms and slo_ms / 1e3, values.pop("as_json"), values.pop("plot"))
    values["processes"] = values["processes"] or min(values["connections"], len(os.sched_getaffinity(0)))
    values["sizes"] = tuple(Size(*size) for size in values["sizes"])
    try:
        outcome = command.run(Plan(**values), options, sys.stdout, sys.stderr)
    except Unreachable as error:
        context.exit(_complain(str(error), EXIT_UNREACHABLE))
    except DigitserveError as error:
        context.exit(_complain(str(error), EXIT_NO))
    context.exit(EXIT_STOPPED if outcome.stopped else 0 if outcome.good else EXIT_NO)


def _check_bench(values: dict[str, Any]) -> None:
    """Refuse flags that say nothing together."""
    if values["method"] == "stream" and values["deadline_s"] is not None:
        raise click.UsageError("--deadline-s goes with --method unary: on a stream it would end the whole stream")
    if values["poisson"] and values["rate"] is None and values["slo_ms"] is None:
        raise click.UsageError("--poisson goes with --rate or --slo-ms: a closed loop has no times of its own")
    if (values["processes"] or 1) > values["connections"]:
        raise click.UsageError(
            f"--processes: got {values['processes']} for {values['connections']} connections; each process needs one"
        )


def _complain(message: str, code: int) -> int:
    click.echo(f"digitserve: {message}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
