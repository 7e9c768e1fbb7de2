"""The commands against the real service with TLS, client certificates and tokens, configured by environment variables alone."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from digitserve.cli import main
from support.bundles import echo_image, write_echo_bundle
from support.certificates import make_certificate, sign_client
from support.serving import PATIENCE_S, Service, command, run_service

TOKEN = "a-token-0123456789"  # noqa: S105 - of this test


@dataclass
class Secure:
    """A service, and the environment of its clients.

    Attributes:
        service: it.
        server: environment variables of the service.
        client: environment variables of a client that has access.
        image: file with the digit 7.
    """

    service: Service
    server: dict[str, str]
    client: dict[str, str]
    image: Path

    def run(self, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command with a proxy that nobody can use."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DIGITSERVE_", "GRPC_"))}
        proxies = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        return subprocess.run(
            command(*arguments), env=own | proxies | environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )  # fmt: skip


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    write_echo_bundle(folder)
    Image.fromarray(echo_image(7)).save(folder / "seven.png")
    made, authority = make_certificate(folder / "server"), make_certificate(folder / "authority")
    client = sign_client(folder / "client", authority)
    (folder / "tokens").write_text(f"# one per line\nanother-{TOKEN}\n{TOKEN}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    server = {
        "DIGITSERVE_TLS_CERTIFICATE": str(made.certificate), "DIGITSERVE_TLS_KEY": str(made.key),
        "DIGITSERVE_TLS_CLIENT_CA": str(authority.certificate), "DIGITSERVE_TOKEN_FILE": str(folder / "tokens"),
        "DIGITSERVE_WORKERS": "1",
    }  # fmt: skip
    with run_service(folder, folder / "log", **server) as service:
        server["DIGITSERVE_HTTP_PORT"] = service.http_url.rpartition(":")[2]
        yield Secure(
            service, server,
            {
                "DIGITSERVE_ADDRESS": service.grpc_address, "DIGITSERVE_CA": str(made.certificate),
                "DIGITSERVE_CLIENT_CERTIFICATE": str(client.certificate), "DIGITSERVE_CLIENT_KEY": str(client.key),
                "DIGITSERVE_CLIENT_TOKEN_FILE": str(folder / "token"),
            },
            folder / "seven.png",
        )  # fmt: skip


def test_the_health_check_works_with_the_variables_of_the_service(secure: Secure) -> None:
    """In its container, ``digitserve healthcheck`` needs no flag and no variable of a client."""
    done = secure.run(secure.server, "healthcheck")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("digitserve ready: digits/1")


def test_the_commands_work_with_the_variables_of_a_client(secure: Secure) -> None:
    """``healthcheck`` calls grpc.health.v1, ``classify`` answers, ``bench`` measures and reads the metrics page."""
    health = secure.run(secure.client, "healthcheck")
    classified = secure.run(secure.client, "classify", str(secure.image))
    load = ("--connections", "4", "--processes", "1", "--duration-s", "0.3", "--warm-up-s", "0")
    url = secure.service.http_url + "/metrics"
    measured = secure.run(secure.client, "bench", *load, "--json", "--metrics", url)

    assert (health.stdout, health.stderr) == ("SERVING\n", "")
    assert classified.stdout == f"{secure.image}: 7  100.0%\n", classified.stderr
    report = json.loads(measured.stdout)
    assert list(report["codes"]) == ["OK"]
    assert report["service"]["mean_batch_size"] >= 1
    assert TOKEN not in measured.stdout


def test_top_works_with_the_variables_of_a_client_or_of_the_service(secure: Secure) -> None:
    """``top`` reads the page with the certificate and token of a client; beside the service it needs only a token, and without
    one it says what to pass.
    """
    page = ("--metrics", secure.service.http_url + "/metrics")
    token = {"DIGITSERVE_CLIENT_TOKEN_FILE": secure.client["DIGITSERVE_CLIENT_TOKEN_FILE"]}
    for environment, arguments in ((secure.client, page), (secure.server | token, ())):
        done = secure.run(environment, "top", "--once", "--json", "--interval-s", "0.1", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["ready_workers"] == 1

    refused = secure.run(secure.server, "top", "--once")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.endswith("it needs a token: pass --token-file\n")
    untrusted = secure.run(token, "top", "--once", *page)
    assert untrusted.returncode == 5
    assert "not signed by a trusted authority; pass --ca" in untrusted.stderr


def test_grpc_core_prints_no_lines_of_its_own(secure: Secure) -> None:
    """A failed handshake is one line on standard error."""
    done = secure.run(
        secure.client | {"DIGITSERVE_CLIENT_CERTIFICATE": "", "DIGITSERVE_CLIENT_KEY": ""},
        "classify",
        str(secure.image),
    )

    assert (done.returncode, done.stdout) == (5, "")
    assert "pass --client-certificate and --client-key" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "code", "advice"),
    [
        ({"DIGITSERVE_CLIENT_TOKEN_FILE": ""}, 5, "the token is missing or wrong: pass --token-file"),
        ({"DIGITSERVE_CA": ""}, 5, "pass --ca"),
    ],
)
def test_a_client_without_access_is_told_which_flag_to_pass(
    secure: Secure, change: dict[str, str], code: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error has its exit code; ``bench`` has the same for what it needs to connect."""
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "")
    environment = secure.client | change
    classified = CliRunner().invoke(main, ["classify", str(secure.image)], env=environment)

    assert (classified.exit_code, classified.stdout) == (code, "")
    assert advice in classified.stderr
    if "DIGITSERVE_CA" in change:
        measured = CliRunner().invoke(main, ["bench", "--processes", "1", "--duration-s", "0.1"], env=environment)
        assert measured.exit_code == code
        assert advice in measured.stderr
