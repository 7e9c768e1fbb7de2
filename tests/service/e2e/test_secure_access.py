"""The whole service with certificates of server and clients, tokens, and HTTPS."""

import os
import signal
import ssl
import time
import urllib.error
from pathlib import Path

import grpc
import pytest

from support.bundles import write_echo_bundle
from support.certificates import make_certificate, sign_client
from support.load import classify
from support.serving import Service, run_service, wait_until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


def test_secure_access(models: Path, tmp_path: Path) -> None:
    """With a certificate, an authority of clients and tokens, only clients that have all of them are served. The HTTP port shows
    its state to everyone, and its metrics to clients with a token or a certificate. The banner names the files that the command
    needs. New files are used without a restart. Invalid ones are reported once, and the old ones stay in use, also by a worker that
    starts then. No log line has a token.
    """
    made, authority = make_certificate(tmp_path / "tls"), make_certificate(tmp_path / "clients")
    client, token, tokens = sign_client(tmp_path / "client", authority), "a-secret-0123456789", tmp_path / "tokens"
    tokens.write_text(f"{token}\n")
    arguments = ("--tls-client-ca", str(authority.certificate), "--token-file", str(tokens), "--workers", "1")
    with run_service(models, tmp_path / "log", *made.flags(), *arguments) as service:
        files = "--ca CA.pem --client-certificate CERTIFICATE.pem --client-key KEY.pem --token-file TOKEN FILE.png"
        assert f"--address {service.grpc_address} {files}" in service.banner
        credentials = grpc.ssl_channel_credentials(
            made.certificate.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
        )
        with grpc.secure_channel(service.grpc_address, credentials) as channel:
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                classify(channel, 5)
            assert classify(channel, 5, token=token) == 5
        with service.channel() as channel, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            classify(channel, 5, wait_for_ready=False)

        service.context = ssl.create_default_context(cafile=made.certificate)
        assert service.http_url.startswith("https://")
        assert [service.get(path)[0] for path in ("/", "/livez", "/readyz", "/metrics")] == [200, 200, 200, 401]
        assert service.get("/metrics", Authorization=f"Bearer {token}")[0] == 200
        service.context.load_cert_chain(client.certificate, client.key)
        expires = service.total("digitserve_certificate_expiry_timestamp_seconds")
        assert time.time() < expires < time.time() + 3 * 86400
        assert service.total("digitserve_http_unauthorized_total") == 1

        made.key.write_text("no key")
        tokens.write_text("# none\n")
        wait_until(lambda: service.total("digitserve_reload_failures_total") == 2, "invalid files are reported")
        assert service.get("/metrics", Authorization=f"Bearer {token}")[0] == 200
        log = service.log.read_text()
        assert log.count("new files are invalid") == 2 and token not in log

        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: service.workers() not in ([], [worker]), "the worker is replaced")
        with grpc.secure_channel(service.grpc_address, credentials) as channel:
            assert classify(channel, 6, token=token) == 6

        newer = make_certificate(tmp_path / "newer")
        newer.certificate.replace(made.certificate)
        newer.key.replace(made.key)
        service.context = ssl.create_default_context(cafile=made.certificate)
        wait_until(lambda: is_served(service), "the new certificate is in use")
        assert service.stop() == 0


def is_served(service: Service) -> bool:
    """Return whether the HTTP port has a certificate that its client trusts."""
    try:
        return service.get("/readyz")[0] == 200
    except urllib.error.URLError:
        return False
