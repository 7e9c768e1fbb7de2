"""What a client needs for secure access: TLS files and a bearer token, checked before use.

    arguments, flags ──▶ Credentials.check ──▶ client: gRPC channels
                                          ──▶ bench, health check: ssl_context
    authorization() ◀── every call; reads the file of the token again when it has changed

Used by ``client``, ``bench`` and the commands, on any thread.
"""

import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias

from digitserve.errors import CredentialsError

FilePath: TypeAlias = str | os.PathLike[str]

MAX_FILE_BYTES = 4 << 20
"""Largest file that is read: 20 times the list of all public authorities."""

_TOKEN = re.compile(r"[!-~]+")
"""Visible ASCII characters: what gRPC accepts in metadata, without spaces."""


@dataclass(frozen=True)
class Credentials:
    """The arguments of a client for secure access.

    Attributes:
        ca: PEM file with the certificates of authorities that may have signed the server's; None for those of the system.
        certificate: PEM file with the certificate of the client, followed by its chain; for servers that require one.
        key: PEM file with the private key of ``certificate``, without a password.
        token: bearer token.
        token_file: file with the token instead, on a line of its own; lines that start with # are ignored.
        clear_text_token: whether the token may be sent without TLS to another machine.
    """

    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None
    token: str | None = field(default=None, repr=False)
    token_file: FilePath | None = None
    clear_text_token: bool = False

    def check(self, *, tls: bool | None, local: bool) -> bool:
        """Check all arguments but the token itself, and return whether to use TLS.

        Args:
            tls: what the scheme of the address demands: True for ``https``, False for ``http``, None without a scheme. Then TLS
                is used if there is a file for it.
            local: whether the server is on this machine.

        Raises:
            CredentialsError: the arguments contradict each other, or a file cannot be used.
        """
        files = [name for name in ("ca", "certificate", "key") if getattr(self, name) is not None]
        if files and tls is False:
            raise CredentialsError(
                files[0], "the address begins with http://, which means clear text; expected https:// or no scheme"
            )
        tls = bool(tls or files)
        if tls:
            self.ssl_context(defaults=False)
        if self.token is not None or self.token_file is not None:
            self._check_token(tls=tls, local=local)
        return tls

    def may_send_token(self, *, tls: bool, local: bool) -> bool:
        """Return whether nobody else can read the token, or the user accepts that; arguments as for ``check``."""
        return tls or local or self.clear_text_token

    def _check_token(self, *, tls: bool, local: bool) -> None:
        argument = "token" if self.token is not None else "token_file"
        if self.token is not None and self.token_file is not None:
            raise CredentialsError("token_file", "got also a token; expected one of them")
        if not self.may_send_token(tls=tls, local=local):
            raise CredentialsError(
                argument,
                "without TLS, others in the network can read the token; use https:// in the address or pass ca, or pass "
                "clear_text_token to send it nevertheless",
            )

    def ssl_context(self, *protocols: str, defaults: bool = True) -> ssl.SSLContext:
        """Return the TLS configuration of a client: TLS 1.2 or 1.3, certificate and host name of the server are verified.

        Args:
            protocols: to offer by ALPN.
            defaults: whether to load the authorities of the system if there is no ``ca``; takes 40 ms.

        Raises:
            CredentialsError: a file cannot be used.
        """
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise CredentialsError(given, f"got no {missing}; a client certificate needs both")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if protocols:
            context.set_alpn_protocols(protocols)
        if self.ca is not None:
            _read("ca", self.ca, "CERTIFICATE")
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError as error:
                raise CredentialsError("ca", f"{self.ca} cannot be used: {_reason(error)}") from None
        elif defaults:
            context.load_default_certs()
        if self.certificate is not None and self.key is not None:
            _load_certificate(context, self.certificate, self.key)
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the content of ``ca``, ``key`` and ``certificate``, in the order of ``grpc.ssl_channel_credentials``.

        Without ``ca``, the first is the file of the system's authorities. gRPC has a list of its own, which lacks those that an
        administrator has added; it is used if the system has none, or if the environment variable of gRPC names a file.

        Raises:
            CredentialsError: a file cannot be read.
        """
        ca = self.ca
        if ca is None and not os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            ca = ssl.get_default_verify_paths().cafile
        files = {"ca": ca, "key": self.key, "certificate": self.certificate}
        ca_pem, key, certificate = (None if path is None else _read(name, path) for name, path in files.items())
        return ca_pem, key, certificate

    def authorization(self) -> Callable[[], str] | None:
        """Return a function that returns the current value of the field ``authorization``; None without a token.

        Raises:
            CredentialsError: there is no valid token.
        """
        if self.token_file is not None:
            return _TokenFile(Path(self.token_file)).authorization
        if self.token is None:
            return None
        if not _TOKEN.fullmatch(self.token):
            raise CredentialsError("token", "expected visible ASCII characters without spaces")
        value = f"Bearer {self.token}"
        return lambda: value


def is_local_host(host: str) -> bool:
    """Return whether a host name or IP address is one of the loopback interface, so that nothing leaves this machine."""
    host = host.lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    # ::ffff:127.0.0.1 is an address of IPv4 in a socket of IPv6.
    address = getattr(address, "ipv4_mapped", None) or address
    # A client that connects to the unspecified address, 0.0.0.0 or ::, reaches this machine.
    return address.is_loopback or address.is_unspecified


def unverified_context() -> ssl.SSLContext:
    """Return a TLS configuration that accepts every certificate, for the HTTP port of a service on this machine.

    Its certificate is seldom for the name of a local address, and what is sent does not leave the machine.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _TokenFile:
    """A token in a file. Owned by a client; any thread may call it."""

    def __init__(self, path: Path) -> None:
        """Read the token.

        Raises:
            CredentialsError: the file has no valid token.
        """
        self._path = path
        self._version = self._stat()
        self._value = self._read()

    def authorization(self) -> str:
        """Return the value of the field ``authorization``, from the file if it has changed: ``stat`` takes 2 us.

        While the file is missing or invalid, because it is being replaced, the previous token is returned.
        """
        version = self._stat()
        if version != self._version:
            try:
                self._value = self._read()
            except CredentialsError:
                return self._value
            self._version = version
        return self._value

    def _stat(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> str:
        lines = [line.strip() for line in _read("token_file", self._path).decode("latin-1").splitlines()]
        tokens = [line for line in lines if line and not line.startswith("#")]
        if len(tokens) != 1:
            raise CredentialsError("token_file", f"{self._path} has {len(tokens) or 'no'} tokens; expected one")
        if not _TOKEN.fullmatch(tokens[0]):
            raise CredentialsError("token_file", f"{self._path}: expected visible ASCII characters without spaces")
        return f"Bearer {tokens[0]}"


def _read(argument: str, path: FilePath, kind: str = "") -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CredentialsError(argument, f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise CredentialsError(argument, f"{path} has more than {MAX_FILE_BYTES} bytes")
    if kind and f"{kind}-----".encode() not in content:
        raise CredentialsError(argument, f"{path}: expected {kind} in PEM format")
    return content


def _load_certificate(context: ssl.SSLContext, certificate: FilePath, key: FilePath) -> None:
    _read("certificate", certificate, "CERTIFICATE")
    _read("key", key, "PRIVATE KEY")

    def refuse_password() -> NoReturn:
        raise CredentialsError("key", f"{key} is protected by a password; expected a key without one")

    try:
        context.load_cert_chain(certificate, key, refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError("key", f"{key} is not the key of the certificate in {certificate}") from None
        raise CredentialsError("certificate", f"{certificate} and {key} cannot be used: {_reason(error)}") from None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown format").lower().replace("_", " ")


_FAILURES = (
    ("has expired", "the certificate of the server has expired; renew it"),
    ("not yet valid", "the certificate of the server is not valid yet; check the clocks of both machines"),
    (
        r"Hostname Verification Check|mismatch, certificate is not valid",
        "the certificate of the server is for other names; connect to a host name or IP address that it contains",
    ),
    (
        "certificate verify failed",
        "the certificate of the server is not signed by a trusted authority; pass ca, the certificate of the authority",
    ),
    (
        "wrong version number|record layer failure|http request",
        "the server does not use TLS; use http:// in the address and do not pass ca, or use its TLS port",
    ),
    (
        "selected ALPN|no application protocol",
        "the server has TLS but no HTTP/2; use the gRPC port of the service, 50051 by default",
    ),
    (
        "certificate required|handshake failure",
        "the server requires a certificate of the client; pass certificate and key",
    ),
    (
        "unknown ca|decrypt error|bad certificate|certificate expired|certificate unknown|revoked",
        "the server does not accept the certificate of the client; pass certificate and key that its authority signed",
    ),
)
"""Reasons of OpenSSL and gRPC core why a handshake failed, in the order in which to look for them, and what they mean.
Underscores count as spaces."""


def explain_handshake(reason: str) -> str:
    """Return what a reason of OpenSSL or gRPC core means and what to do; "" if it is not about a failed handshake."""
    reason = reason.replace("_", " ")
    return next((meaning for pattern, meaning in _FAILURES if re.search(pattern, reason, re.IGNORECASE)), "")
