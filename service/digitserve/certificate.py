"""The certificate of the gRPC port, and the TLS versions and cipher suites that clients may use.

The supervisor checks the certificate before it starts workers, so the service does not start with an invalid one. Each worker
reads it again when it builds its server, with either transport.
"""

import ssl
from pathlib import Path
from typing import NoReturn

from digitserve.errors import SettingsError
from digitserve.settings import Settings, flag, setting_named

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites of TLS 1.2: ephemeral keys and AEAD only, as RFC 9113 requires (section 9.2.2, appendix A). All suites of
TLS 1.3 are allowed."""

_CERTIFICATE, _KEY = (flag(setting_named(name)) for name in ("tls_certificate", "tls_key"))


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS configuration of the server, or None if the settings name no certificate.

    Raises:
        SettingsError: a file is missing, cannot be read or used, or does not belong to the other.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = (_CERTIFICATE, _KEY) if key is None else (_KEY, _CERTIFICATE)
        raise SettingsError(f"got {given} without {missing}; TLS needs both, clear text needs neither")
    _check_kind(_CERTIFICATE, certificate, "CERTIFICATE")
    _check_kind(_KEY, key, "PRIVATE KEY")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    # gRPC clients do not resume sessions by default, and a worker cannot decrypt the tickets of another one.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"{_KEY} {key}: is not the key of the certificate in {certificate}") from None
        reason = (error.reason or "unknown format").lower().replace("_", " ")
        raise SettingsError(f"{_CERTIFICATE} {certificate} and {_KEY} {key}: cannot be used: {reason}") from None
    return context


def _check_kind(option: str, path: Path, kind: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{option} {path}: cannot be read: {error.strerror}") from None
    if f"{kind}-----".encode() not in content:
        raise SettingsError(f"{option} {path}: expected {kind} in PEM format")


def _refuse_password() -> NoReturn:
    raise SettingsError(f"{_KEY}: is protected by a password, expected a key without one")
