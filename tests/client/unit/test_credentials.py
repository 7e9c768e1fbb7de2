"""Credentials of clients: which files and tokens are accepted, and when a token may be sent."""

import os
from pathlib import Path

import pytest

from digitserve.client import AsyncClient, Client, ClientError, InvalidCredentials
from digitserve.credentials import Credentials, explain_handshake
from digitserve.errors import CredentialsError
from support.certificates import make_certificate

TOKEN = "0123456789abcdef"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files that can be used, and others that cannot."""
    path = tmp_path_factory.mktemp("credentials")
    make_certificate(path / "one")
    make_certificate(path / "other")
    make_certificate(path / "locked", "-passout", "pass:secret")
    (path / "empty").touch()
    (path / "garbage").write_text("-----BEGIN CERTIFICATE-----\nno base64\n-----END CERTIFICATE-----\n")
    (path / "large").write_bytes(bytes((4 << 20) + 1))
    (path / "token").write_text(f"# of this client\n\n {TOKEN} \n")
    (path / "two tokens").write_text(f"{TOKEN}\n{TOKEN}\n")
    (path / "spaces").write_text("two words\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "argument", "reason"),
    [
        ({"ca": "missing"}, "ca", "missing cannot be read: No such file or directory"),
        ({"ca": "one"}, "ca", "one cannot be read: Is a directory"),
        ({"ca": "empty"}, "ca", "empty: expected CERTIFICATE in PEM format"),
        ({"ca": "one/server.key"}, "ca", "one/server.key: expected CERTIFICATE in PEM format"),
        ({"ca": "large"}, "ca", "large has more than 4194304 bytes"),
        ({"ca": "garbage"}, "ca", "garbage cannot be used: "),
        ({"certificate": "one/server.pem"}, "certificate", "got no key; a client certificate needs both"),
        ({"key": "one/server.key"}, "key", "got no certificate; a client certificate needs both"),
        (
            {"certificate": "one/server.key", "key": "one/server.pem"},
            "certificate",
            "expected CERTIFICATE in PEM format",
        ),
        ({"certificate": "one/server.pem", "key": "one/server.pem"}, "key", "expected PRIVATE KEY in PEM format"),
        ({"certificate": "one/server.pem", "key": "other/server.key"}, "key", "is not the key of the certificate in"),
        ({"certificate": "locked/server.pem", "key": "locked/server.key"}, "key", "is protected by a password"),
        ({"certificate": "garbage", "key": "one/server.key"}, "certificate", "cannot be used: "),
        ({"token_file": "missing"}, "token_file", "missing cannot be read: No such file or directory"),
        ({"token_file": "one"}, "token_file", "one cannot be read: Is a directory"),
        ({"token_file": "empty"}, "token_file", "empty has no tokens; expected one"),
        ({"token_file": "two tokens"}, "token_file", "two tokens has 2 tokens; expected one"),
        ({"token_file": "spaces"}, "token_file", "spaces: expected visible ASCII characters without spaces"),
        ({"token": ""}, "token", "expected visible ASCII characters without spaces"),
        ({"token": "a\r\nhost: b"}, "token", "expected visible ASCII characters without spaces"),
        ({"token": TOKEN, "token_file": "token"}, "token_file", "got also a token; expected one of them"),
    ],
)
def test_an_argument_that_cannot_be_used_is_explained(
    folder: Path, arguments: dict[str, str], argument: str, reason: str
) -> None:
    """The error names the argument, the file, and what is expected, when the client is created."""
    given = {name: text if name == "token" else str(folder / text) for name, text in arguments.items()}
    with pytest.raises(InvalidCredentials) as caught:
        Client("localhost", **given)  # type: ignore[arg-type]

    assert caught.value.argument == argument
    assert reason in str(caught.value)
    assert isinstance(caught.value, ClientError) and isinstance(caught.value, ValueError)


def test_both_clients_check_the_credentials() -> None:
    """The asynchronous client raises the same error."""
    with pytest.raises(InvalidCredentials, match="key: got no certificate"):
        AsyncClient("localhost", key="x")


@pytest.mark.parametrize(
    ("tls", "files", "expected"),
    [(None, False, False), (None, True, True), (True, False, True), (True, True, True), (False, False, False)],
)
def test_tls_is_used_for_https_and_with_files(folder: Path, tls: bool | None, files: bool, expected: bool) -> None:
    """A file for TLS turns it on, also if the address has no ``https://``."""
    credentials = Credentials(ca=folder / "one" / "server.pem" if files else None)

    assert credentials.check(tls=tls, local=True) is expected


def test_files_for_tls_contradict_http(folder: Path) -> None:
    """``http://`` with a file for TLS is an error instead of clear text."""
    with pytest.raises(InvalidCredentials, match="ca: the address begins with http://"):
        Client("http://localhost", ca=folder / "one" / "server.pem")


@pytest.mark.parametrize("address", ["http://digits.example", "10.0.0.1", "dns:digits.example"])
@pytest.mark.parametrize("name", ["token", "token_file"])
def test_a_token_is_not_sent_in_clear_text_to_another_machine(folder: Path, address: str, name: str) -> None:
    """The error states how to use TLS and how to send it nevertheless. Loopback, Unix sockets and TLS need no permission."""
    arguments = {name: TOKEN if name == "token" else str(folder / "token")}
    with pytest.raises(InvalidCredentials, match=f"{name}: without TLS.*https://.*clear_text_token"):
        Client(address, **arguments)  # type: ignore[arg-type]

    Client(address, **arguments, clear_text_token=True).close()  # type: ignore[arg-type]
    for other in ("127.0.0.2", "localhost", "[::1]:1", "unix:/run/digits", "https://digits.example"):
        Client(other, **arguments).close()  # type: ignore[arg-type]


def test_a_token_does_not_show() -> None:
    """Tracebacks and logs that show the credentials do not show the token."""
    assert TOKEN not in repr(Credentials(token=TOKEN))


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """A token that is written to the file or replaces it is used from the next call on. While the file is missing, empty or
    invalid, the previous token is used.
    """
    path = tmp_path / "token"
    path.write_text("first")
    authorization = Credentials(token_file=path).authorization()
    assert authorization is not None
    assert authorization() == "Bearer first"

    path.write_text("")
    assert authorization() == "Bearer first"
    path.write_text("the second\n")
    assert authorization() == "Bearer first"
    path.write_text("the-second\n")
    assert authorization() == "Bearer the-second"
    path.unlink()
    assert authorization() == "Bearer the-second"
    (tmp_path / "new").write_text("the-third\n")
    os.utime(tmp_path / "new", ns=(0, 0))
    (tmp_path / "new").rename(path)
    assert authorization() == "Bearer the-third"


def test_a_token_may_come_through_a_pipe() -> None:
    """``--token-file <(command)`` of a shell: the file can be read once only."""
    reader, writer = os.pipe()
    os.write(writer, TOKEN.encode())
    os.close(writer)
    authorization = Credentials(token_file=f"/dev/fd/{reader}").authorization()
    assert authorization is not None
    os.close(reader)
    assert [authorization() for _ in range(2)] == [f"Bearer {TOKEN}"] * 2


def test_there_is_no_authorization_without_a_token() -> None:
    """Without a token, calls have no header field ``authorization``."""
    assert Credentials().authorization() is None


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired"),
        ("certificate verify failed: certificate is not yet valid (_ssl.c:1006)", "clocks"),
        (
            "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            "other names",
        ),
        ("certificate verify failed: Hostname mismatch, certificate is not valid for 'x'.", "other names"),
        ("certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.9'.", "other names"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "pass ca"),
        ("SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", "does not use TLS"),
        ("Cannot check peer: missing selected ALPN property.", "no HTTP/2"),
        ("tlsv13 alert certificate required", "requires a certificate of the client"),
        ("tlsv1 alert unknown ca", "does not accept the certificate of the client"),
        ("Failed to connect to remote host: Connection refused", ""),
        ("recvmsg:Connection reset by peer", ""),
    ],
)
def test_reasons_of_failed_handshakes_are_explained(reason: str, meaning: str) -> None:
    """Texts of OpenSSL and gRPC core lead to what to do; other texts have no explanation."""
    explained = explain_handshake(reason)

    assert (meaning in explained) if meaning else explained == ""


def test_an_error_names_its_argument() -> None:
    """Commands replace the argument by their flag."""
    error = CredentialsError("ca", "x cannot be read")

    assert (str(error), error.argument, error.reason) == ("ca: x cannot be read", "ca", "x cannot be read")
