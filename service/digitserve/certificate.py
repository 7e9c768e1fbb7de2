"""The certificate of the service, and the TLS versions, cipher suites and client certificates that it accepts.

    files ──▶ read_key_files ──KeyFiles──▶ new_context ──▶ native transport, HTTP server
                                      ──▶ grpcio

The supervisor checks the files before it starts workers, so the service does not start with invalid ones. Each worker reads
them again when it builds its server, and both read them again when they change (``file_watch``).
"""

import base64
import contextlib
import functools
import os
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from digitserve.errors import SettingsError
from digitserve.file_watch import WatchedValue, read_file
from digitserve.settings import Settings, flag, setting_named

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites of TLS 1.2: ephemeral keys and AEAD only, as RFC 9113 requires (section 9.2.2, appendix A). All suites of
TLS 1.3 are allowed."""

_CERTIFICATE, _KEY, _CLIENT_CA = (flag(setting_named(name)) for name in ("tls_certificate", "tls_key", "tls_client_ca"))

Value = TypeVar("Value")

# OpenSSL ignores the same words within a line.
_PEM_CERTIFICATE = re.compile(rb"^-----BEGIN [A-Z0-9 ]*CERTIFICATE-----([^-]+)", re.MULTILINE)

# Tags of ASN.1: ITU-T X.690.
_VERSION, _UTC_TIME, _LONG_FORM = 0xA0, 0x17, 0x80


class KeyFiles(NamedTuple):
    """The content of the files in PEM format; ``client_ca`` is None if clients need no certificate."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def read_key_files(settings: Settings) -> KeyFiles | None:
    """Return the content of the files that the settings name, or None if they name none.

    Raises:
        SettingsError: one is missing, cannot be read, or has another kind of content.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None:
        if client_ca is not None:
            raise SettingsError(f"got {_CLIENT_CA} without {_CERTIFICATE}; only clients that use TLS have certificates")
        return None
    if certificate is None or key is None:
        given, missing = (_CERTIFICATE, _KEY) if key is None else (_KEY, _CERTIFICATE)
        raise SettingsError(f"got {given} without {missing}; TLS needs both, clear text needs neither")
    return KeyFiles(
        _read(_CERTIFICATE, certificate, "CERTIFICATE"),
        _read(_KEY, key, "PRIVATE KEY"),
        None if client_ca is None else _read(_CLIENT_CA, client_ca, "CERTIFICATE"),
    )


def new_context(
    files: KeyFiles, settings: Settings, protocol: str = "h2", verify_mode: ssl.VerifyMode = ssl.CERT_REQUIRED
) -> ssl.SSLContext:
    """Return the TLS configuration of a server.

    Args:
        files: content of the files.
        settings: with their paths, for errors.
        protocol: that clients must offer by ALPN.
        verify_mode: whether clients must have a certificate, if there are authorities for it.

    Raises:
        SettingsError: a file cannot be used, or does not belong to the other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([protocol])
    context.options |= ssl.OP_NO_RENEGOTIATION
    # gRPC clients do not resume sessions by default, and a worker cannot decrypt the tickets of another one.
    context.num_tickets = 0
    try:
        with _in_memory(files.certificate) as certificate, _in_memory(files.key) as key:
            context.load_cert_chain(certificate, key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(
                f"{_KEY} {settings.tls_key}: is not the key of the certificate in {settings.tls_certificate}"
            ) from None
        raise SettingsError(
            f"{_CERTIFICATE} {settings.tls_certificate} and {_KEY} {settings.tls_key}: cannot be used: {_reason(error)}"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(cadata=files.client_ca.decode("ascii", "ignore"))
        except ssl.SSLError as error:
            raise SettingsError(f"{_CLIENT_CA} {settings.tls_client_ca}: cannot be used: {_reason(error)}") from None
        context.verify_mode = verify_mode
    return context


def watched_certificate(
    settings: Settings, convert: Callable[[KeyFiles], Value], last_valid: KeyFiles | None = None, *, logs: bool = False
) -> WatchedValue[Value] | None:
    """Return the value that a server builds from the files, read again when they change; None if the settings name none.

    Args:
        settings: of the service.
        convert: makes the value; raises ``SettingsError`` if it cannot.
        last_valid: used if the files are not valid now.
        logs: see ``WatchedValue``.

    Raises:
        SettingsError: the files cannot be used.
    """
    paths = [path for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca) if path is not None]
    if not paths:
        return None

    def read() -> Value:
        files = read_key_files(settings)
        assert files is not None
        return convert(files)

    last = None if last_valid is None else functools.partial(convert, last_valid)
    return WatchedValue("certificate", paths, read, last, logs=logs)


def expiry(certificate: bytes) -> float:
    """Return when the first certificate of a PEM file expires, in seconds since 1970.

    ``ssl`` shows the dates of a certificate only after a handshake that has verified it, so its ASN.1 is read here.

    Args:
        certificate: content of a file that ``new_context`` has accepted.

    Source: RFC 5280, section 4.1.
    """
    found = _PEM_CERTIFICATE.search(certificate)
    assert found is not None
    der = base64.b64decode(found[1])
    _, position, _ = _element(der, 0)  # Certificate
    _, position, _ = _element(der, position)  # TBSCertificate
    tag, _, end = _element(der, position)
    num_before = 4 if tag == _VERSION else 3  # version, serialNumber, signature, issuer
    for _ in range(num_before):
        _, _, end = _element(der, position)
        position = end
    _, position, _ = _element(der, position)  # Validity
    _, _, position = _element(der, position)  # notBefore
    tag, position, end = _element(der, position)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(der[position:end].decode(), form).replace(tzinfo=UTC).timestamp()


def _element(der: bytes, position: int) -> tuple[int, int, int]:
    """Return the tag of an element of DER, and where its content starts and ends."""
    tag, length = der[position], der[position + 1]
    start = position + 2
    if length & _LONG_FORM:
        start += length - _LONG_FORM
        length = int.from_bytes(der[position + 2 : start], "big")
    return tag, start, start + length


def _read(option: str, path: Path, kind: str) -> bytes:
    try:
        content = read_file(path)
    except OSError as error:
        raise SettingsError(f"{option} {path}: cannot be read: {error.strerror}") from None
    if f"{kind}-----".encode() not in content:
        raise SettingsError(f"{option} {path}: expected {kind} in PEM format")
    return content


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give content a path: ``ssl`` loads a key from a path only, and a file may change between two reads."""
    fd = os.memfd_create("digitserve-tls")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown format").lower().replace("_", " ")


def _refuse_password() -> NoReturn:
    raise SettingsError(f"{_KEY}: is protected by a password, expected a key without one")
