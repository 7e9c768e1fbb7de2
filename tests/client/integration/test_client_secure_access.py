"""Both clients with TLS, client certificates and tokens, and with servers and services that do not accept them."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from digitserve import file_watch
from digitserve.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    HandshakeFailed,
    RequestRejected,
    Unauthenticated,
    Unreachable,
)
from digitserve.errors import AccessDenied
from support.bundles import write_echo_bundle
from support.certificates import Certificate, make_certificate, make_expired_certificate, sign_client
from support.clients import KINDS, awaited, classify, images_of, scores
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"


class Files(NamedTuple):
    """Files of a service, and of its clients.

    Attributes:
        models: bundles.
        server: certificate of the service.
        client: certificate that the service accepts.
        other: certificate that nobody accepts.
        tokens: that the service accepts.
    """

    models: Path
    server: Certificate
    client: Certificate
    other: Certificate
    tokens: Path

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a client that the service accepts, without the token."""
        return {"ca": self.server.certificate, "certificate": self.client.certificate, "key": self.client.key}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("secure")
    write_echo_bundle(folder)
    authority = make_certificate(folder / "authority")
    (folder / "tokens").write_text(f"{FIRST}\n")
    return Files(
        folder, make_certificate(folder / "server"), sign_client(folder / "client", authority),
        make_certificate(folder / "other"), folder / "tokens",
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(files: Files) -> Iterator[RunningWorker]:
    """Run a worker that requires a client certificate and a token."""
    authority = files.models / "authority" / "server.pem"
    with run_worker(
        files.models, **files.server.settings(), tls_client_ca=authority, token_file=files.tokens
    ) as running:
        yield running


@pytest.fixture(scope="module")
def plain(files: Files) -> Iterator[RunningWorker]:
    """Run a worker in clear text that requires a token."""
    with run_worker(files.models, token_file=files.tokens) as running:
        yield running


@KINDS
def test_every_method_works_with_tls_and_a_token(worker: RunningWorker, files: Files, kind: str) -> None:
    """Calls and streams have the token; ``https://`` in the address changes nothing."""
    arguments = {**files.arguments(), "token": FIRST, "timeout_s": PATIENCE_S}
    images = images_of(1, 200)
    assert scores(classify(kind, f"https://{worker.address}/", images, **arguments)) == list(range(1, 201))

    async def use(client: AsyncClient) -> tuple[Any, ...]:
        streamed = [one async for one in client.classify_stream(images)]
        return streamed, (await client.model()).name, await client.health(), await client.healthy()

    if kind == "async":
        streamed, *others = awaited(worker.address, use, **arguments)
    else:
        with Client(worker.address, **arguments) as client:
            streamed = list(client.classify_stream(images))
            others = [client.model().name, client.health(), client.healthy()]
    assert scores(streamed) == list(range(1, 201))
    assert others == ["digits", "SERVING", True]


@KINDS
@pytest.mark.parametrize("token", [None, SECOND])
def test_a_missing_or_wrong_token_is_one_error(plain: RunningWorker, kind: str, token: str | None) -> None:
    """``Unauthenticated`` says what to pass, and is a ``RequestRejected``; health needs no token."""
    with pytest.raises(Unauthenticated, match="pass token_file or token") as caught:
        classify(kind, plain.address, images_of(1, 2), token=token)
    assert isinstance(caught.value, RequestRejected)
    assert isinstance(caught.value, AccessDenied)
    assert SECOND not in str(caught.value)
    with Client(plain.address, token=token) as client:
        assert client.health() == "SERVING"
        with pytest.raises(Unauthenticated):
            next(client.classify_stream(images_of(1, 2)))


@KINDS
def test_tokens_are_rotated_without_a_restart(
    files: Files, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the service has dropped the old token, clients whose file has the new one continue, open clients and new streams
    alike; with the old one they get ``Unauthenticated``.
    """
    monkeypatch.setattr(file_watch, "INTERVAL_S", 0.02)
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text(FIRST)
    token.write_text(FIRST)
    with run_worker(files.models, token_file=tokens) as worker, Client(worker.address, token=FIRST) as probe:

        def refused() -> bool:
            try:
                probe.model()
            except Unauthenticated:
                return True
            return False

        async def use() -> None:
            async with AsyncClient(worker.address, token_file=token, timeout_s=PATIENCE_S) as client:
                assert scores(await client.classify(images_of(1, 2))) == [1, 2]
                tokens.write_text(SECOND)
                wait_until(refused, "the old token is refused")
                with pytest.raises(Unauthenticated):
                    await client.classify(images_of(1, 2))
                with pytest.raises(Unauthenticated):
                    await anext(client.classify_stream(images_of(1, 2)))
                token.write_text(SECOND)
                assert scores(await client.classify(images_of(1, 2))) == [1, 2]
                assert scores([one async for one in client.classify_stream(images_of(1, 2))]) == [1, 2]

        if kind == "async":
            asyncio.run(use())
            return
        with Client(worker.address, token_file=token, timeout_s=PATIENCE_S) as client:
            assert scores(client.classify(images_of(1, 2))) == [1, 2]
            tokens.write_text(SECOND)
            wait_until(refused, "the old token is refused")
            with pytest.raises(Unauthenticated):
                client.classify(images_of(1, 2))
            with pytest.raises(Unauthenticated):
                next(client.classify_stream(images_of(1, 2)))
            token.write_text(SECOND)
            assert scores(client.classify(images_of(1, 2))) == [1, 2]
            assert scores(list(client.classify_stream(images_of(1, 2)))) == [1, 2]


@KINDS
def test_a_failed_handshake_is_explained_at_once(worker: RunningWorker, files: Files, kind: str) -> None:
    """Wrong authority, and a missing or wrong client certificate: the first call fails long before its timeout, and
    the message says what to pass.
    """
    # Nothing listens on ::1, the other address of this name.
    local = worker.address.replace("127.0.0.1", "localhost")
    foreign = {"certificate": files.other.certificate, "key": files.other.key}
    for address, changes, advice in (
        (worker.address, {"ca": files.other.certificate}, "not signed by a trusted authority; pass ca"),
        (f"https://{worker.address}", {"ca": None}, "not signed by a trusted authority; pass ca"),
        (local, {"ca": files.other.certificate}, "not signed by a trusted authority; pass ca"),
        (
            worker.address,
            {"certificate": None, "key": None},
            "requires a certificate of the client; pass certificate and key",
        ),
        (worker.address, foreign, "does not accept the certificate of the client; pass certificate and key"),
    ):
        with pytest.raises(HandshakeFailed, match=f"no connection: .*{advice}") as caught:
            classify(kind, address, images_of(1, 2), **{**files.arguments(), **changes}, timeout_s=PATIENCE_S)
        assert isinstance(caught.value, Unreachable)
        assert isinstance(caught.value, AccessDenied)


@KINDS
def test_a_certificate_that_cannot_be_used_is_named(files: Files, tmp_path: Path, kind: str) -> None:
    """The message says that the server's certificate has expired or is for other names, and what to do."""
    expired = make_expired_certificate(tmp_path / "expired")
    foreign = make_certificate(tmp_path / "foreign", names="DNS:digits.example")
    for made, advice in (
        (expired, "has expired; renew it"),
        (foreign, "is for other names; connect to a host name or IP address that it contains"),
    ):
        with run_worker(files.models, **made.settings()) as worker, pytest.raises(HandshakeFailed, match=advice):
            classify(kind, worker.address, images_of(1, 2), ca=made.certificate, timeout_s=PATIENCE_S)


@KINDS
def test_tls_on_one_side_only_is_explained(
    worker: RunningWorker, plain: RunningWorker, files: Files, kind: str
) -> None:
    """Clear text to a port with TLS, and TLS to a port in clear text: the message says which side to change."""
    with pytest.raises(HandshakeFailed, match="the server uses TLS; use https:// in the address, or pass ca"):
        classify(kind, worker.address, images_of(1, 2), timeout_s=PATIENCE_S)
    with pytest.raises(HandshakeFailed, match="the server does not use TLS"):
        classify(kind, plain.address, images_of(1, 2), ca=files.server.certificate, timeout_s=PATIENCE_S)


@KINDS
def test_a_server_that_is_silent_ends_with_the_timeout(files: Files, kind: str) -> None:
    """A port that accepts connections and sends nothing costs the timeout of the call, not that of a handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DeadlineExceeded):
            classify(kind, address, images_of(1, 2), ca=files.server.certificate, timeout_s=0.2)


def test_a_service_that_changes_its_authority_is_reported(files: Files, tmp_path: Path) -> None:
    """Calls and streams of a client that was connected wait for the service until their deadline; then the error is that of the
    handshake.
    """
    errors: list[HandshakeFailed] = []

    def classify_once(client: Client) -> None:
        with pytest.raises(HandshakeFailed) as caught:
            client.classify(images_of(1, 1), timeout_s=1)
        errors.append(caught.value)

    def stream_once(client: Client) -> None:
        with pytest.raises(HandshakeFailed) as caught:
            next(client.classify_stream(images_of(1, 1), timeout_s=1))
        errors.append(caught.value)

    with ExitStack() as clients:
        with run_worker(files.models, **files.server.settings()) as worker:
            port = int(worker.address.rpartition(":")[2])
            opened = [clients.enter_context(Client(worker.address, ca=files.server.certificate)) for _ in range(2)]
            for client in opened:
                client.classify(images_of(1, 1), timeout_s=PATIENCE_S)
        with run_worker(files.models, grpc_port=port, **make_certificate(tmp_path / "new").settings()):
            calls = [
                threading.Thread(target=use, args=(client,))
                for use, client in zip((classify_once, stream_once), opened, strict=True)
            ]
            for call in calls:
                call.start()
            for call in calls:
                call.join(PATIENCE_S)
    assert len(errors) == 2
    assert all("no answer within 1 s, and no connection: " in str(error) for error in errors)
