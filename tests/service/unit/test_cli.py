"""The commands without a service: help, flags, exit codes, addresses, input files."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import digitserve
from digitserve.cli import main, options, output
from digitserve.cli.exit_codes import ExitCode, exit_code
from digitserve.client import Client, ClientError, DeadlineExceeded, HandshakeFailed, Unreachable
from digitserve.errors import CredentialsError
from support.bundles import echo_image

SUBCOMMANDS = {name: command for name, command in main.commands.items() if isinstance(command, click.Group)}
COMMANDS = {
    **{name: command for name, command in main.commands.items() if name not in SUBCOMMANDS},
    **{f"{group} {name}": command for group, held in SUBCOMMANDS.items() for name, command in held.commands.items()},
}
ARGUMENTS = {"classify": ["x.png"], "read": ["x.png"], "models activate": ["digits/1"]}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIGITSERVE_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments, env=environment, terminal_width=100)


def run_process(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``python -m digitserve`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "digitserve", *arguments],
        input=stdin, capture_output=True, env=os.environ | environment, timeout=60, check=False,
    )  # fmt: skip


def default_address(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """Return the address that commands use without ``--address``."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return options.Target(os.environ.get("DIGITSERVE_ADDRESS"), {}).resolve()[0]


def test_python_m_digitserve_is_the_command() -> None:
    """``python -m digitserve`` works as ``digitserve`` does, and both report the version of the package."""
    result = run_process("--version")

    assert result.stdout.decode() == f"digitserve, version {version('digitserve')}\n"
    assert digitserve.__version__ == version("digitserve")


@pytest.mark.parametrize("imported", ["click", "numpy", "prometheus_client"])
def test_ctrl_c_during_the_start(tmp_path: Path, imported: str) -> None:
    """Ctrl-C while the command imports its modules ends it with exit code 130 and without a traceback."""
    (tmp_path / f"{imported}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = run_process("serve", "--models", str(tmp_path), PYTHONPATH=path)
    assert (result.returncode, result.stderr.decode()) == (130, "")


def test_ctrl_c_that_is_ignored(tmp_path: Path) -> None:
    """A command that was started with SIGINT ignored, such as in the background of a script, continues to ignore it."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ignored = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "digitserve", "serve"]
    result = subprocess.run(ignored, env=os.environ | {"PYTHONPATH": path}, timeout=60, check=False)
    assert result.returncode == 7


def test_the_package_exports_the_clients_lazily() -> None:
    """``from digitserve import Client`` works; ``import digitserve`` loads neither gRPC nor numpy."""
    program = (
        "import sys, digitserve; print('grpc' in sys.modules, 'numpy' in sys.modules, digitserve.AsyncClient.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False", "AsyncClient"]
    assert digitserve.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = digitserve.Server  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_every_option_in_a_section(name: str) -> None:
    """Each option is in exactly one section of ``--help``; the general options are the last section."""
    result = run(*name.split(), "--help")
    command = COMMANDS[name]
    flags = [max(one.opts, key=len) for one in command.params if isinstance(one, click.Option)]

    assert result.exit_code == 0
    titles = [line for line in result.output.splitlines() if line.endswith(":") and not line.startswith(" ")]
    options_part = result.output.partition(f"\n{titles[0]}\n")[2]
    words = [line.split()[0].rstrip(",") for line in options_part.splitlines() if line.startswith("  -")]
    for flag in flags:
        assert words.count(flag) == 1, flag
    assert titles[-1] == "Options:"
    assert len(titles) == len(set(titles))


def test_help_lists_the_exit_codes() -> None:
    """``digitserve --help`` lists the codes of all commands."""
    output = run("--help").output
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"\n    {code} " in output


def test_shell_completion_works() -> None:
    """Bash completes commands and flags with click's protocol, without a service."""
    for words, index, expected in (
        ("digitserve cl", "1", b"plain,classify"),
        ("digitserve classify --to", "2", b"plain,--top-k"),
    ):
        environment = {"_DIGITSERVE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": index}
        assert expected in run_process(**environment).stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("x"), 3),
        (HandshakeFailed("x"), 5),
        (CredentialsError("ca", "x"), 2),
        (DeadlineExceeded("x"), 4),
        (ClientError("x"), 1),
        (options.MissingExtraError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int) -> None:
    """The same error has the same exit code in every command."""
    assert exit_code(error) == code  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["classify", "read", "healthcheck", "bench"])
@pytest.mark.parametrize("address", ["tcp://localhost", "localhost:http", "localhost:8080/metrics", "::1"])
def test_a_wrong_address_is_wrong_usage(name: str, address: str) -> None:
    """An address that cannot be corrected ends with exit code 2 and states what an address looks like."""
    result = run(name, *ARGUMENTS.get(name, []), "--address", address)

    assert result.exit_code == ExitCode.USAGE
    assert "--address" in result.output
    assert "expected host:port" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["classify", "read", "healthcheck", "bench"])
@pytest.mark.parametrize(
    ("arguments", "flag", "reason"),
    [
        (("--ca", "missing"), "--ca", "missing cannot be read: No such file or directory"),
        (("--client-certificate", "missing"), "--client-certificate", "got no key; a client certificate needs both"),
        (("--client-key", "missing"), "--client-key", "got no certificate; a client certificate needs both"),
        (("--address", "127.0.0.1:1", "--token-file", "missing"), "--token-file", "missing cannot be read"),
        (("--address", "digits", "--token-file", "missing"), "--token-file", "or pass --clear-text-token to send it"),
        (("--address", "http://digits", "--ca", "missing"), "--ca", "expected https:// or no scheme"),
    ],
)
def test_credentials_that_cannot_be_used_are_wrong_usage(
    name: str, arguments: tuple[str, ...], flag: str, reason: str
) -> None:
    """Exit code 2; the message names the flag and its environment variable, and the advice names flags."""
    result = run(name, *ARGUMENTS.get(name, []), *arguments)

    assert result.exit_code == ExitCode.USAGE
    text = " ".join(result.stderr.split())
    assert f"Invalid value for '{flag}' (env var: 'DIGITSERVE_" in text
    assert reason in text


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "127.0.0.1:50051"),
        ({"DIGITSERVE_GRPC_PORT": "6000"}, "127.0.0.1:6000"),
        ({"DIGITSERVE_GRPC_PORT": ""}, "127.0.0.1:50051"),
        ({"DIGITSERVE_GRPC_PORT": "tcp://10.96.0.1:50051"}, "127.0.0.1:50051"),
        ({"DIGITSERVE_HOST": "127.0.0.2"}, "127.0.0.2:50051"),
        ({"DIGITSERVE_HOST": "::1", "DIGITSERVE_GRPC_PORT": "7"}, "[::1]:7"),
        ({"DIGITSERVE_HOST": "0.0.0.0"}, "127.0.0.1:50051"),  # noqa: S104 - not bound
        ({"DIGITSERVE_HOST": "::"}, "[::1]:50051"),
        ({"DIGITSERVE_ADDRESS": "http://digits/"}, "digits:50051"),
    ],
)
def test_the_default_address_is_that_of_the_service(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: str
) -> None:
    """In the environment of a service, its container for example, commands reach that service without flags."""
    assert default_address(monkeypatch, **environment) == address


def test_serve_ignores_a_port_that_kubernetes_injects(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITSERVE_GRPC_PORT=tcp://... is not an operator's choice: the default port is used."""
    monkeypatch.setenv("DIGITSERVE_GRPC_PORT", "tcp://10.96.0.1:50051")
    with main.commands["serve"].make_context("serve", []) as context:
        assert context.params["grpc_port"] == 50051


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose packages are not installed states in one line what to install."""
    for name, missing in (("serve", "onnxruntime"), ("bench", "hpack")):
        monkeypatch.setattr(
            options, "find_spec", lambda module, missing=missing: None if module == missing else object()
        )
        result = run(name)
        assert result.exit_code == ExitCode.NEGATIVE
        assert result.stderr == (f"digitserve: 'digitserve {name}' needs {missing}: pip install 'digitserve[{name}]'\n")


def test_a_file_that_is_no_image_needs_no_service(tmp_path: Path) -> None:
    """Directory, missing, empty and other files: each is named in one line, and the exit code is 1."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_bytes(bytes(784))
    files = [str(tmp_path), str(tmp_path / "missing.png"), str(tmp_path / "empty.png"), str(tmp_path / "notes.txt")]
    result = run("classify", *files)

    assert result.exit_code == ExitCode.NEGATIVE
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == files
    assert "--size" in result.stderr.splitlines()[-1]


def test_an_address_without_a_service_has_its_exit_code(tmp_path: Path) -> None:
    """3 for commands that need an answer."""
    np.save(tmp_path / "seven.npy", echo_image(7))
    for arguments in (("classify", str(tmp_path / "seven.npy")), ("healthcheck",)):
        result = run(*arguments, "--address", "127.0.0.1:1")
        assert result.exit_code == ExitCode.UNREACHABLE
        assert "is 'digitserve serve' running at this address?" in result.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_ctrl_c_ends_every_command_without_a_traceback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130, and nothing on standard error."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[name], "callback", interrupt)
    result = run(*name.split(), *ARGUMENTS.get(name, []))

    assert (result.exit_code, result.stderr) == (ExitCode.INTERRUPTED, "")


def test_help_and_completion_load_no_large_package() -> None:
    """The commands are defined without numpy and gRPC, which take most of the time until ``--help`` is shown."""
    program = "import sys, digitserve.cli; print(*{'numpy', 'grpc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "\n"


def test_closed_standard_streams_do_no_harm() -> None:
    """With standard input, output and error closed, a command has its result, and their descriptors are occupied, also in
    child processes: a file or socket that got the number 2 would receive what is printed there.
    """
    program = """
import os, sys
from digitserve.cli import main
code = main(["classify", "-"], standalone_mode=False)
occupied = os.open(os.devnull, os.O_RDONLY) > 2 and all(map(os.get_inheritable, range(3)))
os._exit(10 + code if occupied and None not in {sys.stdin, sys.stdout, sys.stderr} else 9)
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program], check=False, timeout=60
    )

    assert done.returncode == 10 + ExitCode.NEGATIVE


@pytest.mark.parametrize(
    ("printer", "target", "code", "error"),
    [
        ("output.print_line", "closed pipe", ExitCode.BROKEN_PIPE, b""),
        ("output.print_line", "/dev/full", ExitCode.NEGATIVE, b"digitserve: cannot write standard output"),
        ("serve.print_banner", "closed pipe", ExitCode.OK, b""),
        ("serve.print_banner", "/dev/full", ExitCode.OK, b"digitserve: cannot write standard output"),
    ],
)
def test_output_that_cannot_be_written_ends_in_one_line(printer: str, target: str, code: int, error: bytes) -> None:
    """``digitserve classify | head`` ends silently; a full disk is reported; neither leaves a traceback. ``serve`` goes on
    without its banner.
    """
    module, _, function = printer.partition(".")
    program = f"from digitserve.cli.{module} import {function}; {function}('7')"
    if target == "closed pipe":
        reader, output = os.pipe()
        os.close(reader)
    else:
        output = os.open(target, os.O_WRONLY)
    try:
        command = [
            sys.executable,
            "-c",
            f"import click\nclick.Command('x', callback=lambda: exec({program!r})).main([])",
        ]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(output)

    assert done.returncode == code
    assert done.stderr.startswith(error) and done.stderr.count(b"\n") == bool(error)


def test_json_numbers_have_the_digits_of_float32() -> None:
    """A confidence of 0.9 is printed as 0.9, not as 0.8999999761581421."""
    assert output.shortest(float(np.float32(0.9))) == 0.9
