"""``digitserve serve``: flags from the declarations in ``settings``; the supervisor does the work."""

import gc
import os
from contextlib import suppress
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import Command, FiniteRange, Option, require_extra
from digitserve.cli.output import print_line, report
from digitserve.errors import StartupError
from digitserve.settings import Settings, environment_value, environment_variable, flag

_INJECTED = "digitserve.injected"
"""Key of the context: variables that Kubernetes injected, and their values. They are logged once the log is configured."""


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


class _SettingOption(Option):
    """The option of a setting; its environment variable is read as ``settings`` defines."""

    def __init__(self, setting: Field[Any], **arguments: Any) -> None:
        super().__init__([flag(setting), setting.name], **arguments)
        self._setting = setting

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the environment variable."""
        return environment_value(self._setting, os.environ, ctx.meta.setdefault(_INJECTED, {}).__setitem__)


def _option(setting: Field[Any]) -> Option:
    """Create the option that a setting declares."""
    return _SettingOption(
        setting,
        section=setting.metadata["group"],
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
    from digitserve import log

    settings = Settings(**values)
    log.configure(settings.log_format, pid=os.getpid())
    for variable, value in context.meta.get(_INJECTED, {}).items():
        log.get_logger(__name__).warning(
            "ignored a variable that Kubernetes injects for a Service", variable=variable, value=value
        )
    try:
        context.exit(_propose(settings) if tune else _run(settings))
    except StartupError as error:
        report(error, "refusing to start: ")
        context.exit(ExitCode.NEGATIVE)


def _run(settings: Settings) -> int:
    # Until the service is ready, when the supervisor freezes and enables it: a collection of what is being imported frees
    # nothing, and takes 34 ms of the start (measured).
    gc.disable()
    try:
        from digitserve.supervision import supervisor

        return supervisor.serve(settings, print_banner)
    finally:
        gc.enable()


def print_banner(text: str) -> None:
    """Print the banner if standard output can be written: the service also runs without a reader."""
    with suppress(click.exceptions.Exit):
        print_line(text)


def _propose(settings: Settings) -> int:
    from digitserve.supervision import autotune, device
    from digitserve.supervision.cpu_budget import cpu_budget

    budget = cpu_budget()
    trials: list[autotune.Trial] = []
    for trial in autotune.measure(settings.resolve(device.resolve(settings), budget), max(1, int(budget))):
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
    help="Serve a model until SIGTERM. Each flag has an environment variable; the flag takes precedence.\n\n"
    "Exit codes: 0 all admitted requests were answered; 1 the service did not start, or requests were not answered within the "
    "grace period; 70 internal fault.",
)
