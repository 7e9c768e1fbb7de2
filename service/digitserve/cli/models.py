"""``digitserve models``: choose the version that services serve, list the versions, and verify them.

Bundles are not trusted: whatever a folder or manifest contains, each version is one line.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import Command, Option, require_extra
from digitserve.cli.output import print_line
from digitserve.settings import VERSION, Settings, environment_value, environment_variable, setting_named
from digitserve.terminal import printable

if TYPE_CHECKING:
    from digitserve.supervision.activation import ListedVersion

_MODELS, _ACTIVE_FILE = setting_named("models"), setting_named("active_file")


@click.group()
def models() -> None:
    """Choose the version of a model that services serve; list and verify the versions."""


def _default_models() -> str:
    return environment_value(_MODELS, os.environ) or str(Settings.models)


_folder = click.option(
    "--models", "folder", cls=Option, type=click.Path(path_type=Path), default=_default_models, metavar="FOLDER",
    show_default=f"${environment_variable(_MODELS)}, by default {Settings.models}",
    help="Folder of the model bundles, <name>/<version>/, or of one bundle.",
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


_as_json = click.option("--json", "as_json", cls=Option, is_flag=True, help="Print one JSON object per version.")


@models.command("list", cls=Command)
@_folder
@_as_json
def list_versions(folder: Path, *, as_json: bool) -> None:
    """List all versions, with the quality that was measured before their export.

    An asterisk marks the versions that services serve. The networks are not run; 'digitserve models verify' runs them.

    \b
    Columns:
      sha256       first digits of the checksum of model.onnx; --json has all
      accuracy     on the test images of the dataset that the model was trained on
      calibration  expected calibration error on them: difference of confidence and accuracy
    --json has all figures of the manifest.

    \b
    Exit codes: 0 listed, also versions with problems; 1 there is no model, or the
    folder cannot be read; 2 wrong usage.
    """
    from digitserve.supervision.activation import list_models

    listed = list_models(folder)
    for line in map(_to_json, listed) if as_json else _table(listed):
        print_line(line)


def _table(listed: "Iterator[ListedVersion]") -> Iterator[str]:
    for index, one in enumerate(listed):
        if not index:
            yield "   model                 sha256        precision  accuracy  calibration"
        start = f" {' *'[one.active]} {printable(str(one)):<20}  "
        if one.manifest is None:
            yield f"{start}{one.problem}"
            continue
        accuracy, calibration = (
            f"{figure:.2%}" if (figure := one.manifest.quality.get(f"test_{name}")) is not None else "-"
            for name in ("accuracy", "calibration_error")
        )
        yield f"{start}{one.manifest.sha256[:12]}  {one.manifest.precision or '-':<9}  {accuracy:<8}  {calibration}"


def _to_json(one: "ListedVersion") -> str:
    described: dict[str, Any] = {
        "name": one.name, "version": one.version, "active": one.active, "problem": one.problem,
    }  # fmt: skip
    if one.manifest is not None:
        described |= {
            "sha256": one.manifest.sha256, "precision": one.manifest.precision or None, "quality": one.manifest.quality,
        }  # fmt: skip
    return json.dumps(described)


@models.command(cls=Command)
@click.argument("chosen", metavar="[NAME/VERSION]...", type=_Version(), nargs=-1)
@_folder
@_as_json
@click.pass_context
def verify(context: click.Context, /, chosen: tuple[tuple[str, int], ...], folder: Path, *, as_json: bool) -> None:
    """Verify versions, by default all, with the start-up checks of the service.

    The checks are: files, manifest, sha256 of the network, its operators, signature, golden outputs, and a warm-up, on the CPU.
    Nothing is served.

    \b
    Exit codes: 0 all passed; 1 a version failed a check, or there is no model;
    2 wrong usage.
    """
    require_extra("serve")
    from digitserve.supervision.activation import verify_models

    failed = False
    for one in verify_models(folder, chosen):
        failed |= one.problem is not None
        print_line(_to_json(one) if as_json else f"{printable(str(one)):<20}  {one.problem or 'ok'}")
    context.exit(ExitCode.NEGATIVE if failed else ExitCode.OK)
