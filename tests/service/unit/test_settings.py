"""Settings: one declaration gives the flag, the environment variable, the validation and the row of the table."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import Field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.settings import Bounds, Settings, environment_value, environment_variable, flag, setting_named, table

SERVE = main.commands["serve"]
SETTINGS = [pytest.param(setting, id=setting.name) for setting in fields(Settings)]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in fields(Settings):
        monkeypatch.delenv(environment_variable(setting), raising=False)


def parse(*arguments: str) -> Settings:
    """Return the settings that a command line gives, without starting anything."""
    with SERVE.make_context("serve", list(arguments)) as context:
        return Settings(**{name: value for name, value in context.params.items() if name != "tune"})


def run(*arguments: str, **environment: str) -> Result:
    """Run ``digitserve serve`` with arguments that it must reject."""
    return CliRunner().invoke(main, ["serve", *arguments], env=environment)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_has_a_complete_declaration(setting: Field[Any]) -> None:
    """Every field has a help text, a group, bounds, a flag, a variable and a row in the table."""
    assert setting.metadata["help"].endswith(".")
    assert setting.metadata["group"]
    assert isinstance(setting.metadata["bounds"], Bounds)
    assert flag(setting) == "--" + setting.name.replace("_", "-")
    assert environment_variable(setting) == f"DIGITSERVE_{setting.name.upper()}"
    (row,) = (line for line in table().splitlines() if f"`{flag(setting)}`" in line)
    assert f"`{environment_variable(setting)}`" in row
    assert setting.metadata["help"].replace("<", r"\<") in row
    assert row.count("|") == 5


def test_settings_of_a_group_are_declared_together() -> None:
    """``--help`` shows each group once, in the order of the declarations."""
    groups = [setting.metadata["group"] for setting in fields(Settings)]
    assert [group for group, _ in groupby(groups)] == list(dict.fromkeys(groups))


def test_table_has_one_row_per_setting() -> None:
    """The table has two heading lines, then one row for each setting."""
    assert len(table().splitlines()) == 2 + len(fields(Settings))


def test_help_shows_every_flag_with_its_variable_and_default() -> None:
    """``digitserve serve --help`` is generated from the declarations."""
    outcome = CliRunner().invoke(main, ["serve", "--help"], terminal_width=400)
    assert outcome.exit_code == 0
    for setting in fields(Settings):
        assert flag(setting) in outcome.output
        assert environment_variable(setting) in outcome.output
        assert str(setting.metadata["shown"] or setting.default) in outcome.output


def test_defaults_without_flags() -> None:
    """Without flags the command uses exactly the declared defaults, which are the documented ones."""
    settings = parse()
    assert settings == Settings()
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 50051, 8080)
    assert (settings.models, settings.model, settings.model_version) == (Path("models"), "digits", None)
    assert (settings.workers, settings.device, settings.grace_s) == (None, "cpu", 20.0)
    assert (settings.max_batch_size, settings.batch_limit, settings.max_pending_images) == (None, 64, 4096)
    assert (settings.max_request_bytes, settings.max_side) == (16 * 1024 * 1024 + 64 * 1024, 4096)


OTHER_VALUES = {
    "host": "0.0.0.0",  # noqa: S104 - parsed, not bound
    "transport": "native",
    "tls_certificate": Path("server.pem"),
    "tls_key": Path("server.key"),
    "tls_client_ca": Path("clients.pem"),
    "token_file": Path("tokens"),
    "reflection": "off",
    "max_connections": 100,
    "models": Path("elsewhere"),
    "model": "letters",
    "model_version": 12,
    "served_name": "my-digits",
    "precision": "auto",
    "shadow": "digits/3",
    "shadow_share": 0.5,
    "active_file": Path("active"),
    "workers": 3,
    "device": "auto",
    "max_batch_size": 32,
    "grace_s": 2.5,
    "lame_duck_s": 0.25,
    "max_receive_bytes": 1 << 26,
    "log_format": "json",
}


def other_value(setting: Field[Any]) -> Any:
    """Return a value that is allowed and not the default."""
    return OTHER_VALUES.get(setting.name) or setting.default + 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_flag_sets_its_setting_and_no_other(setting: Field[Any]) -> None:
    """The value of the flag is stored in its field, with the type of the field."""
    value = other_value(setting)
    assert parse(flag(setting), str(value)) == Settings(**{setting.name: value})


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_variable_sets_its_setting_and_the_flag_has_precedence(
    setting: Field[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment variable does what the flag does; if both are given, the flag is used."""
    value = other_value(setting)
    monkeypatch.setenv(environment_variable(setting), str(value))
    assert parse() == Settings(**{setting.name: value})
    if setting.default is not None:
        assert parse(flag(setting), str(setting.default)) == Settings()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and Helm charts pass on empty variables for values that are not set."""
    monkeypatch.setenv("DIGITSERVE_WORKERS", "")
    monkeypatch.setenv("DIGITSERVE_GRPC_PORT", "")
    assert parse() == Settings()


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_value_is_the_text_of_the_variable(setting: Field[Any]) -> None:
    """A variable that is set gives its text; one that is missing or empty gives ``None``."""
    variable = environment_variable(setting)
    assert environment_value(setting, {variable: "7"}) == "7"
    assert environment_value(setting, {variable: ""}) is None
    assert environment_value(setting, {}) is None


@pytest.mark.parametrize("name", ["grpc_port", "http_port"])
def test_a_port_that_kubernetes_injects_is_ignored_with_a_warning(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service named digitserve-grpc makes Kubernetes set DIGITSERVE_GRPC_PORT=tcp://...; one line on standard error states
    that it is ignored, and standard output stays empty.
    """
    setting = setting_named(name)
    assert environment_value(setting, {environment_variable(setting): "tcp://10.96.3.7:50051"}) is None
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert environment_variable(setting) in errors
    assert "tcp://10.96.3.7:50051" in errors


def injected(service: str, ports: Mapping[str, int], address: str = "10.96.3.7") -> dict[str, str]:
    """Return the variables that Kubernetes injects for a Service, as the kubelet makes them."""
    prefix, first = service.upper().replace("-", "_"), next(iter(ports.values()))
    variables = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(first),
        f"{prefix}_PORT": f"tcp://{address}:{first}",
    }
    for name, port in ports.items():
        variables[f"{prefix}_SERVICE_PORT_{name.upper()}"] = str(port)
        link = f"{prefix}_PORT_{port}_TCP"
        variables |= {link: f"tcp://{address}:{port}", f"{link}_PROTO": "tcp"}
        variables |= {f"{link}_PORT": str(port), f"{link}_ADDR": address}
    return variables


@pytest.mark.parametrize("address", ["10.96.3.7", "[fd00::7]"])
def test_services_of_kubernetes_change_no_setting(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Services named digitserve, and digitserve- followed by the name of any setting, leave each setting at its default."""
    names = [flag(setting).replace("--", "digitserve-") for setting in fields(Settings)]
    for name in ("digitserve", "digitserve-grpc", "digitserve-http", *names):
        for variable, value in injected(name, {"grpc": 50051, "http": 8080}, address).items():
            monkeypatch.setenv(variable, value)
    assert os.environ["DIGITSERVE_GRPC_PORT"] == os.environ["DIGITSERVE_HTTP_PORT"] == f"tcp://{address}:50051"
    assert parse() == Settings()


def test_serve_logs_injected_ports_in_its_format(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The lines about ignored ports are log lines of the service, not plain text between lines of JSON."""
    outcome = run("--models", str(tmp_path), "--log-format", "json", DIGITSERVE_GRPC_PORT="tcp://10.96.0.1:1")
    assert "ignoring" not in outcome.output
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["level"], line["variable"], line["value"]) == (
        "warning",
        "DIGITSERVE_GRPC_PORT",
        "tcp://10.96.0.1:1",
    )


def test_a_warning_that_cannot_be_written_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind standard error does not keep the service from starting."""
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        environment = {"DIGITSERVE_GRPC_PORT": "tcp://10.96.3.7:50051"}
        assert environment_value(setting_named("grpc_port"), environment) is None
        # What is buffered would be written again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_value_of_another_setting_is_never_ignored() -> None:
    """Kubernetes injects such values only into names that end with _PORT; elsewhere they are mistakes to report."""
    assert environment_value(setting_named("workers"), {"DIGITSERVE_WORKERS": "tcp://10.0.0.1:1"}) == "tcp://10.0.0.1:1"


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
        (("--max-connections", "0"), ("--max-connections", "1<=x<=1048576")),
        (("--message-timeout-s", "0"), ("--message-timeout-s", "1<=x<=86400")),
        (("--max-receive-bytes", "1"), ("--max-receive-bytes", "1048576<=x")),
        (("--log-format", "xml"), ("--log-format", "'auto', 'text', 'json'")),
        (("--no-such-flag",), ("--no-such-flag",)),
    ],
)
def test_a_bad_value_is_rejected_with_the_accepted_values(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Wrong usage ends with exit code 2 and a message with the flag, the value and the accepted values."""
    outcome = run("--models", "no-such-directory", *arguments)
    assert outcome.exit_code == 2, outcome.output
    for word in words:
        assert word in outcome.output


def test_a_bad_variable_is_rejected_by_name() -> None:
    """The message names the variable, the flag, the value and the accepted type."""
    outcome = run("--models", "no-such-directory", DIGITSERVE_HTTP_PORT="eighty")
    assert outcome.exit_code == 2
    for word in ("DIGITSERVE_HTTP_PORT", "--http-port", "'eighty'", "integer"):
        assert word in outcome.output


def test_a_missing_model_is_a_refusal_to_start(tmp_path: Path) -> None:
    """A valid value that cannot be served ends with exit code 1 and a message with the failed check."""
    outcome = run("--models", str(tmp_path), "--log-format", "text")
    assert outcome.exit_code == 1
    assert "refusing to start: check 'files' failed: no version of model 'digits'" in outcome.output


@pytest.mark.parametrize("name", ["a/b", " ", "x" * 257, "a\x00b"])
def test_a_served_name_is_checked(models: Path, name: str) -> None:
    """The name of the model for clients is part of answers: it must be a valid name."""
    outcome = run("--models", str(models), "--served-name", name)
    assert outcome.exit_code == 1
    assert "--served-name: got" in outcome.output and "expected 1 to 256 printable characters" in outcome.output


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(**{setting.name: other_value(setting) for setting in fields(Settings)})]
)
def test_settings_survive_the_way_to_another_process(settings: Settings) -> None:
    """Sent as JSON, ``to_dict`` and ``from_dict`` give the same values and types."""
    received = Settings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert received == settings
    assert isinstance(received.models, Path)
    assert received.tls_key is None or isinstance(received.tls_key, Path)


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
def test_defaults_that_depend_on_the_device(settings: Settings, device: str, expected: tuple[str, int, int]) -> None:
    """On the CPU one worker per core of the budget, on CUDA one worker and larger batches; given values are kept."""
    resolved = settings.resolve(device, 2.9)
    assert (resolved.device, resolved.workers, resolved.batch_limit) == expected


def test_a_budget_below_one_core_gives_one_worker() -> None:
    """Half a core is enough for one worker."""
    assert Settings().resolve("cpu", 0.5).workers == 1


def test_serve_has_an_option_for_each_setting() -> None:
    """``serve`` has the declared settings as options, and only ``--tune`` besides."""
    options = [parameter.name for parameter in SERVE.params if isinstance(parameter, click.Option)]
    assert options == [*(setting.name for setting in fields(Settings)), "tune"]
