"""The certificate of the service: its expiry, and the authorities of clients. ``transport/native/test_tls.py`` has its errors."""

import re
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from digitserve.certificate import expiry
from digitserve.errors import SettingsError
from digitserve.settings import Settings
from support.certificates import Certificate, make_certificate, server_context


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("kind", ["ec", "rsa"])
@pytest.mark.parametrize("num_days", [2, 20_000])
def test_expiry(tmp_path: Path, kind: str, num_days: int) -> None:
    """The time is that which ``openssl`` shows, before 2050 and after it, when another format of the date is used."""
    certificate = make_certificate(tmp_path, "-nodes", "-days", str(num_days), kind=kind).certificate
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    shown = subprocess.run(
        [openssl, "x509", "-noout", "-enddate", "-in", certificate], check=True, capture_output=True, text=True
    )
    assert expiry(certificate.read_bytes()) == ssl.cert_time_to_seconds(shown.stdout.strip().partition("=")[2])


def test_expiry_ignores_comments(made: Certificate) -> None:
    """Text before a certificate, which OpenSSL ignores, is ignored too, even if it contains the words of PEM."""
    content = made.certificate.read_bytes()
    assert expiry(b"# -----BEGIN CERTIFICATE----- follows\n" + content) == expiry(content)


def test_expiry_is_that_of_the_first_certificate(tmp_path: Path, made: Certificate) -> None:
    """Text before the certificate, and the chain after it, do not matter."""
    other = make_certificate(tmp_path, "-nodes", "-days", "9").certificate
    chain = b"subject = localhost\n" + made.certificate.read_bytes() + other.read_bytes()
    assert expiry(chain) == expiry(made.certificate.read_bytes()) != expiry(other.read_bytes())


def test_authorities_of_clients(made: Certificate, tmp_path: Path) -> None:
    """With the setting, clients must have a certificate; the file may have several, with text between them."""
    plain = server_context(Settings(**made.settings()))  # type: ignore[arg-type]
    assert plain is not None and plain.verify_mode is ssl.CERT_NONE
    bundle = tmp_path / "bundle.pem"
    other = make_certificate(tmp_path / "other").certificate.read_bytes()
    bundle.write_bytes("Autorité\n".encode() + made.certificate.read_bytes() + b"other\n" + other)
    context = server_context(Settings(**made.settings(), tls_client_ca=bundle))  # type: ignore[arg-type]
    assert context is not None and context.verify_mode is ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 2


def test_errors_of_the_authorities(made: Certificate, tmp_path: Path) -> None:
    """A file that is missing, of another kind or broken, or without a certificate of the server, is refused with the flag."""
    broken, missing = tmp_path / "broken.pem", tmp_path / "missing"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    for path, expected in [
        (missing, f"--tls-client-ca {missing}: cannot be read: No such file"),
        (made.key, f"--tls-client-ca {made.key}: expected CERTIFICATE in PEM format"),
        (broken, f"--tls-client-ca {broken}: cannot be used"),
    ]:
        with pytest.raises(SettingsError, match=re.escape(expected)):
            server_context(Settings(**made.settings(), tls_client_ca=path))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="--tls-client-ca without --tls-certificate"):
        server_context(Settings(tls_client_ca=made.certificate))
