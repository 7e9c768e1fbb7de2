"""One declaration a setting: its flag, its environment variable, its check and its row in the README."""

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.settings import Bounds, Settings, environment_variable, flag, table

SERVE = main.commands["serve"]
SETTINGS = [pytest.param(setting, id=setting.name) for setting in fields(Settings)]


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in fields(Settings):
        monkeypatch.delenv(environment_variable(setting), raising=False)


def parse(*arguments: str) -> Settings:
    """Return the settings that a command line gives; nothing is started."""
    with SERVE.make_context("serve", list(arguments)) as context:
        return Settings(**{name: value for name, value in context.params.items() if name != "tune"})


def run(*arguments: str, **environment: str) -> Result:
    """Run ``digitserve serve`` with a command line that it must refuse."""
    return CliRunner().invoke(main, ["serve", *arguments], env=environment)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_is_declared_whole(setting: Field[Any]) -> None:
    """Every field has its help, its bounds, its flag, its variable and its row in the table."""
    assert setting.metadata["help"].endswith(".")
    assert isinstance(setting.metadata["bounds"], Bounds)
    assert flag(setting) == "--" + setting.name.replace("_", "-")
    assert environment_variable(setting) == f"DIGITSERVE_{setting.name.upper()}"
    (row,) = (line for line in table().splitlines() if f"`{flag(setting)}`" in line)
    assert f"`{environment_variable(setting)}`" in row
    assert setting.metadata["help"] in row
    assert row.count("|") == 5


def test_the_table_has_a_row_for_each_setting_and_no_other() -> None:
    """Two lines of heading, then the settings in their order."""
    assert len(table().splitlines()) == 2 + len(fields(Settings))


def test_the_help_shows_every_flag_with_its_variable_and_default() -> None:
    """``digitserve serve --help`` is generated from the same declaration."""
    outcome = CliRunner().invoke(main, ["serve", "--help"], terminal_width=400)
    assert outcome.exit_code == 0
    for setting in fields(Settings):
        assert flag(setting) in outcome.output
        assert environment_variable(setting) in outcome.output
        assert str(setting.metadata["shown"] or setting.default) in outcome.output


def test_without_flags_the_defaults_hold() -> None:
    """What the command passes on is exactly what the class declares, and what the design promises."""
    settings = parse()
    assert settings == Settings()
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 50051, 8080)
    assert (settings.models, settings.model, settings.model_version) == (Path("models"), "digits", None)
    assert (settings.workers, settings.device, settings.grace_s) == (None, "cpu", 20.0)
    assert (settings.max_batch_size, settings.batch_limit, settings.max_pending_images) == (None, 64, 4096)
    assert (settings.max_request_bytes, settings.max_side) == (16 * 1024 * 1024, 4096)


OTHER_VALUES = {
    "host": "0.0.0.0",  # noqa: S104 - parsed, not bound
    "models": Path("elsewhere"),
    "model": "letters",
    "model_version": 12,
    "workers": 3,
    "device": "auto",
    "max_batch_size": 32,
    "grace_s": 2.5,
    "lame_duck_s": 0.25,
    "log_format": "json",
}


def other_value(setting: Field[Any]) -> Any:
    """Return a value that is allowed and not the default."""
    return OTHER_VALUES.get(setting.name) or setting.default + 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_flag_sets_its_setting_and_no_other(setting: Field[Any]) -> None:
    """The flag's value arrives in the field, with the field's type."""
    value = other_value(setting)
    assert parse(flag(setting), str(value)) == Settings(**{setting.name: value})


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_variable_sets_its_setting_and_a_flag_wins(setting: Field[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment twin does what the flag does; where both are given, the flag counts."""
    value = other_value(setting)
    monkeypatch.setenv(environment_variable(setting), str(value))
    assert parse() == Settings(**{setting.name: value})
    if setting.default is not None:
        assert parse(flag(setting), str(setting.default)) == Settings()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and charts pass empty variables on for what nobody set."""
    monkeypatch.setenv("DIGITSERVE_WORKERS", "")
    monkeypatch.setenv("DIGITSERVE_GRPC_PORT", "")
    assert parse() == Settings()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grpc-port", "70000"), ("--grpc-port", "70000", "0<=x<=65535")),
        (("--grpc-port", "http"), ("--grpc-port", "'http'", "integer")),
        (("--workers", "-1"), ("--workers", "-1", "0<=x<=1024")),
        (("--model-version", "0"), ("--model-version", "x>=1")),
        (("--device", "tpu"), ("--device", "'tpu'", "'cpu', 'cuda', 'auto'")),
        (("--max-batch-size", "0"), ("--max-batch-size", "1<=x<=65536")),
        (("--max-side", "27"), ("--max-side", "28<=x<=65536")),
        (("--grace-s", "-0.1"), ("--grace-s", "0<=x<=86400")),
        (("--grace-s", "inf"), ("--grace-s", "0<=x<=86400")),
        (("--grace-s", "nan"), ("--grace-s", "nan")),
        (("--stall-s", "nan"), ("--stall-s", "nan")),
        (("--log-format", "xml"), ("--log-format", "'auto', 'text', 'json'")),
        (("--no-such-flag",), ("--no-such-flag",)),
    ],
)
def test_a_bad_value_is_refused_with_what_would_do(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Wrong usage ends with exit code 2 and names the flag, what was got and what is accepted."""
    outcome = run("--models", "no-such-directory", *arguments)
    assert outcome.exit_code == 2, outcome.output
    for word in words:
        assert word in outcome.output


def test_a_bad_variable_is_refused_by_its_name() -> None:
    """Whoever set the environment is told which variable is wrong."""
    outcome = run("--models", "no-such-directory", DIGITSERVE_HTTP_PORT="eighty")
    assert outcome.exit_code == 2
    for word in ("DIGITSERVE_HTTP_PORT", "--http-port", "'eighty'", "integer"):
        assert word in outcome.output


def test_a_model_that_is_not_there_is_a_refusal_to_start(tmp_path: Path) -> None:
    """A setting that is well formed and cannot be served: exit code 1, and the failed check in words."""
    outcome = run("--models", str(tmp_path), "--log-format", "text")
    structlog.reset_defaults()
    assert outcome.exit_code == 1
    assert "refusing to start: check 'files' failed: no version of model 'digits'" in outcome.output


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(**{setting.name: other_value(setting) for setting in fields(Settings)})]
)
def test_a_worker_gets_exactly_the_supervisors_settings(settings: Settings) -> None:
    """The line of JSON that a worker reads gives the same values and types again."""
    line = settings.to_json()
    assert "\n" not in line
    again = Settings.from_json(line)
    assert again == settings
    assert isinstance(again.models, Path)


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        (Settings(), "cpu", ("cpu", 2, 64)),
        (Settings(device="auto"), "cpu", ("cpu", 2, 64)),
        (Settings(device="auto"), "cuda", ("cuda", 1, 1024)),
        (Settings(device="cuda", workers=3, max_batch_size=256), "cuda", ("cuda", 3, 256)),
        (Settings(workers=0, max_batch_size=7), "cpu", ("cpu", 0, 7)),
    ],
)
def test_what_is_left_open_follows_the_device(settings: Settings, device: str, expected: tuple[str, int, int]) -> None:
    """On the CPU a worker for each core of the budget, on CUDA one worker and larger batches; what was given stays."""
    settled = settings.settled(device, 2.9)
    assert (settled.device, settled.workers, settled.batch_limit) == expected
    assert Settings.from_json(settled.to_json()) == settled


def test_a_budget_of_less_than_a_core_has_a_worker() -> None:
    """Half a core still serves."""
    assert Settings().settled("cpu", 0.5).workers == 1


def test_an_option_is_made_of_every_setting_and_nothing_else() -> None:
    """``serve`` has no option of its own that the README's table would miss, but for the one that serves nothing."""
    options = [parameter.name for parameter in SERVE.params if isinstance(parameter, click.Option)]
    assert options == [*(setting.name for setting in fields(Settings)), "tune"]
