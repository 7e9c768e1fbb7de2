"""Self-signed certificates for localhost, and clients of TLS in memory; made by the command ``openssl``."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from digitserve.certificate import new_context, read_key_files
from digitserve.settings import Settings

KEYS = {"ec": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"), "rsa": ("-newkey", "rsa:2048")}


class Certificate(NamedTuple):
    """Files of a certificate, which is also its own authority."""

    certificate: Path
    key: Path

    def settings(self) -> dict[str, Path]:
        """Return the settings of a service that uses it."""
        return {"tls_certificate": self.certificate, "tls_key": self.key}

    def flags(self) -> tuple[str, ...]:
        """Return the flags of a service that uses it."""
        return "--tls-certificate", str(self.certificate), "--tls-key", str(self.key)


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS configuration of the gRPC port; None for clear text."""
    files = read_key_files(settings)
    return None if files is None else new_context(files, settings)


def make_certificate(
    folder: Path, *arguments: str, kind: str = "ec", names: str = "DNS:localhost,IP:127.0.0.1"
) -> Certificate:
    """Make a certificate for these names; further arguments are for ``openssl req``."""
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "server.pem", folder / "server.key")
    subprocess.run(
        [
            openssl, "req", "-x509", *KEYS[kind], "-days", "2", "-subj", "/CN=localhost",
            "-addext", f"subjectAltName={names}", "-keyout", made.key, "-out", made.certificate,
            *(arguments or ("-nodes",)),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def make_expired_certificate(folder: Path) -> Certificate:
    """Make a certificate for localhost and 127.0.0.1 that has expired."""
    made = make_certificate(folder)
    again = ["openssl", "x509", "-in", made.certificate, "-signkey", made.key, "-days", "-1", "-out", made.certificate]
    subprocess.run(again, check=True, capture_output=True)
    return made


def sign_client(folder: Path, authority: Certificate) -> Certificate:
    """Make a certificate of a client that ``authority`` has signed."""
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "client.pem", folder / "client.key")
    subprocess.run(
        [
            openssl, "req", "-x509", *KEYS["ec"], "-days", "2", "-subj", "/CN=client", "-nodes",
            "-CA", authority.certificate, "-CAkey", authority.key, "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "extendedKeyUsage=clientAuth", "-keyout", made.key, "-out", made.certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


class TlsClient:
    """A client without a socket."""

    def __init__(self, alpn: tuple[str, ...] = ("h2",), **options: Any) -> None:
        """Prepare a handshake; ``options`` are attributes of its context, or ``ciphers``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(alpn)
        if "ciphers" in options:
            context.set_ciphers(options.pop("ciphers"))
        for name, value in options.items():
            setattr(context, name, value)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def take(self, content: bytes = b"") -> bytes:
        """Continue the handshake, or send content; return the ciphertext to send."""
        try:
            if self.session.version() is None or not content:
                self.session.do_handshake()
            for start in range(0, len(content), 1 << 14):
                self.session.write(content[start : start + (1 << 14)])
        except ssl.SSLWantReadError:
            assert not content, "the handshake is not complete"
        return self._outgoing.read()

    def close(self) -> bytes:
        """Return close_notify."""
        try:
            self.session.unwrap()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        return b""

    def give(self, ciphertext: bytes) -> bytes:
        """Take ciphertext of the server; return the content of its complete records."""
        self._incoming.write(ciphertext)
        content = b""
        try:
            self.session.do_handshake()
            while part := self.session.read(1 << 14):
                content += part
        except ssl.SSLWantReadError:
            pass
        return content
