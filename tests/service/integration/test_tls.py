"""Certificates of a worker on each transport: of the server, and of clients."""

import shutil
from pathlib import Path

import grpc
import pytest

from digitserve import file_watch
from digitserve.protocol.names import GET_MODEL
from support.certificates import Certificate, make_certificate, sign_client
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until


def code(worker: RunningWorker, authority: Path, client: Certificate | None = None) -> grpc.StatusCode:
    """Call a worker on a connection of its own; return the status."""
    chain = () if client is None else (client.key.read_bytes(), client.certificate.read_bytes())
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), *chain)
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.secure_channel(worker.address, credentials, options) as channel:
        call = channel.unary_unary(GET_MODEL.path).future(b"", timeout=PATIENCE_S)
        return call.code()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check files all the time."""
    monkeypatch.setattr(file_watch, "INTERVAL_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_certificates(models: Path, tmp_path: Path, transport: str) -> None:
    """A worker serves clients that trust its certificate and have one of its authority, and no others. New files of both take
    effect for new connections without a restart; invalid ones do not.
    """
    made, authority, other = (make_certificate(tmp_path / name) for name in ("server", "authority", "other"))
    client, stranger = (sign_client(tmp_path / f"{each.key.parent.name}-client", each) for each in (authority, other))
    used, client_ca = make_certificate(tmp_path / "used"), tmp_path / "client-ca.pem"
    shutil.copy(made.certificate, used.certificate)
    shutil.copy(made.key, used.key)
    shutil.copy(authority.certificate, client_ca)
    with run_worker(models, transport=transport, **used.settings(), tls_client_ca=client_ca) as worker:
        ok, unavailable = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
        assert code(worker, made.certificate, client) is ok
        for trusted, own in ((other, client), (made, stranger), (made, None)):
            assert code(worker, trusted.certificate, own) is unavailable
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            worker.channel.unary_unary(GET_MODEL.path)(b"", timeout=PATIENCE_S)

        used.key.write_bytes(b"")
        shutil.copy(other.certificate, client_ca)
        assert code(worker, made.certificate, client) is ok
        shutil.copy(other.certificate, used.certificate)
        shutil.copy(other.key, used.key)
        wait_until(lambda: code(worker, other.certificate, stranger) is ok, "the new certificates are in use")
        assert code(worker, made.certificate, stranger) is unavailable
        assert code(worker, other.certificate, client) is unavailable
