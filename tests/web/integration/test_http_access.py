"""Who may use the HTTP API: the rules of the gRPC port."""

from pathlib import Path

import pytest

from digitserve.access import UNAUTHENTICATED
from digitserve.settings import Settings
from digitserve.supervision.http_access import HttpAccess
from support.certificates import Certificate, make_certificate

TOKEN = "secret-of-16-characters"  # noqa: S105 - of the test
BEARER = f"Bearer {TOKEN}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.parametrize("needs_certificate", [False, True])
@pytest.mark.parametrize("needs_token", [False, True])
def test_both_are_needed_if_both_are_set(
    certificate: Certificate,
    tmp_path: Path,
    needs_certificate: bool,
    needs_token: bool,
) -> None:
    """A certificate does not replace a token, unlike for /metrics, and a token no certificate. Rejections are counted."""
    (tmp_path / "tokens").write_text(TOKEN)
    settings = Settings(
        tls_certificate=certificate.certificate,
        tls_key=certificate.key,
        tls_client_ca=certificate.certificate if needs_certificate else None,
        token_file=tmp_path / "tokens" if needs_token else None,
    )
    access = HttpAccess(settings)
    num_rejected = 0
    for authorization in ("", "Bearer another-of-16-characters", BEARER):
        for is_verified in (False, True):
            refusal = access.refusal(authorization, is_verified=is_verified)
            admitted = (is_verified or not needs_certificate) and (authorization == BEARER or not needs_token)
            assert (refusal is None) == admitted
            if refusal is not None:
                num_rejected += 1
                expected = "client certificate" if needs_certificate and not is_verified else UNAUTHENTICATED.message
                assert expected in refusal.message
                assert refusal.code is UNAUTHENTICATED.code
    (rejected,) = (one for one in access.metrics() if one.name == "digitserve_http_unauthorized")
    assert rejected.samples[0].value == num_rejected
