"""``digitserve serve``: flags from the declarations in ``settings``; the supervisor does the work."""

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import DEFAULT_SECTION, Command, FiniteRange, Option, require_extra
from digitserve.cli.output import print_error, print_line
from digitserve.errors import StartupError
from digitserve.settings import Settings, environment_variable, flag


def _type(setting: Field[Any]) -> "click.ParamType[Any]":
    bounds = setting.metadata["bounds"]
    if bounds.choices:
        return click.Choice(bounds.choices)
    if "float" in str(setting.type):
        return FiniteRange(bounds.minimum, bounds.maximum)
    if "int" in str(setting.type):
        return click.IntRange(bounds.minimum, bounds.maximum)
    if "Path" in str(setting.type):
        return click.Path(path_type=Path)
    return click.STRING


def _option(setting: Field[Any]) -> Option:
    """Create the option that a setting declares."""
    return Option(
        [flag(setting), setting.name],
        section=setting.metadata.get("group", DEFAULT_SECTION),
        type=_type(setting),
        default=setting.default,
        envvar=environment_variable(setting),
        show_envvar=True,
        show_default=setting.metadata["shown"] or True,
        help=setting.metadata["help"],
    )


@click.pass_context
def _serve(context: click.Context, /, *, tune: bool, **values: Any) -> None:
    require_extra("serve")
    from digitserve import log  # noqa: PLC0415

    settings = Settings(**values)
    log.configure(settings.log_format)
    try:
        context.exit(_propose(settings) if tune else _run(settings))
    except StartupError as error:
        print_error(f"refusing to start: {error}")
        context.exit(ExitCode.NEGATIVE)


def _run(settings: Settings) -> int:
    from digitserve.supervision import supervisor  # noqa: PLC0415

    return supervisor.serve(settings)


def _propose(settings: Settings) -> int:
    from digitserve.supervision import autotune, device  # noqa: PLC0415
    from digitserve.supervision.cpu_budget import cpu_budget  # noqa: PLC0415

    budget = cpu_budget()
    trials: list[autotune.Trial] = []
    for trial in autotune.measure(settings.settled(device.settle(settings), budget), max(1, int(budget))):
        print_line(autotune.table([trial], header=not trials))
        trials.append(trial)
    print_line(autotune.proposal(autotune.best(trials)))
    return ExitCode.OK


serve = Command(
    "serve",
    params=[
        *(_option(setting) for setting in fields(Settings)),
        Option(["--tune"], is_flag=True, help="Do not serve; measure this machine and propose settings."),
    ],
    callback=_serve,
    help="Serve a model until SIGTERM. Each flag has an environment variable; the flag takes precedence.",
)
