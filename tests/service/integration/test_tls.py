"""TLS of a worker on each transport."""

from pathlib import Path

import grpc
import pytest

from digitserve.protocol.names import GET_MODEL
from support.certificates import make_certificate
from support.serving import PATIENCE_S, run_worker


def test_tls(models: Path, tmp_path: Path, transport: str) -> None:
    """A worker with a certificate serves clients that trust it, and no others."""
    made = make_certificate(tmp_path / "tls")
    with run_worker(models, transport=transport, **made.settings()) as worker:
        for authority, served in ((made.certificate, True), (make_certificate(tmp_path / "other").certificate, False)):
            credentials = grpc.ssl_channel_credentials(authority.read_bytes())
            with grpc.secure_channel(worker.address, credentials) as channel:
                call = channel.unary_unary(GET_MODEL.path).with_call
                if served:
                    assert call(b"", timeout=PATIENCE_S)[1].code() is grpc.StatusCode.OK
                else:
                    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                        call(b"", timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            worker.channel.unary_unary(GET_MODEL.path)(b"", timeout=PATIENCE_S)
