"""``digitserve models``: choose the version that services serve, and list the versions."""

import os
from pathlib import Path

import click

from digitserve.cli.options import Command, Option, require_extra
from digitserve.cli.output import print_line
from digitserve.settings import VERSION, Settings, environment_value, environment_variable, setting_named

_MODELS, _ACTIVE_FILE = setting_named("models"), setting_named("active_file")


@click.group()
def models() -> None:
    """Choose the version of a model that services serve, and list the versions."""


def _default_models() -> str:
    return environment_value(_MODELS, os.environ) or str(Settings.models)


_folder = click.option(
    "--models", "folder", cls=Option, type=click.Path(path_type=Path), default=_default_models, metavar="FOLDER",
    show_default=f"${environment_variable(_MODELS)}, by default {Settings.models}",
    help="Folder of the model bundles, <name>/<version>/.",
)  # fmt: skip


class _Version(click.ParamType[tuple[str, int]]):
    """NAME/VERSION."""

    name = "NAME/VERSION"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Convert the argument."""
        if isinstance(value, tuple):
            return value
        name, _, version = value.partition("/")
        if not name or name.startswith(".") or not VERSION.fullmatch(version):
            self.fail(f"got '{value}'; expected a name and a version, such as digits/4", param, ctx)
        return name, int(version)


@models.command(cls=Command)
@click.argument("model", metavar="NAME/VERSION", type=_Version())
@_folder
@click.option(
    "--active-file", cls=Option, type=click.Path(path_type=Path), metavar="FILE",
    envvar=environment_variable(_ACTIVE_FILE), show_envvar=True, show_default="FOLDER/NAME/active",
    help="File to write, as in digitserve serve.",
)  # fmt: skip
def activate(model: tuple[str, int], folder: Path, active_file: Path | None) -> None:
    """Verify and activate a version.

    Running services of this model replace their workers without downtime (rolling update). To roll back, activate the previous
    version.

    \b
    Exit codes: 0 activated; 1 the version failed a check, or the folder cannot be
    written; 2 wrong usage.
    """
    require_extra("serve")
    from digitserve.supervision.activation import activate as write

    path = write(folder, *model, active_file)
    print_line(f"{model[0]}/{model[1]} is active: {path}")


@models.command("list", cls=Command)
@_folder
def list_versions(folder: Path) -> None:
    """List all versions.

    Each line has the precision and the accuracy on test images. An asterisk marks the versions that services serve.
    """
    require_extra("serve")
    from digitserve.supervision.activation import list_models

    print_line("   model                 precision  test accuracy")
    for listed in list_models(folder):
        mark, name = " *"[listed.active], f"{listed.name}/{listed.version}"
        if listed.manifest is None:
            print_line(f" {mark} {name:<20}  {listed.error}")
            continue
        accuracy = listed.manifest.quality.get("test_accuracy")
        print_line(
            f" {mark} {name:<20}  {listed.manifest.training.get('precision', '-'):<9}  "
            + ("-" if accuracy is None else f"{accuracy:.2%}")
        )
