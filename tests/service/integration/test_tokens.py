"""Tokens of a worker on each transport."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from digitserve import file_watch
from digitserve.access import UNAUTHENTICATED
from digitserve.protocol.names import (
    CLASSIFY,
    GET_MODEL,
    HEALTH_CHECK,
    HEALTH_SERVICE,
    HEALTH_WATCH,
    REFLECTION,
    REFLECTION_V1,
    Method,
)  # fmt: skip
from digitserve.telemetry.block import METHOD_OF_PATH
from digitserve.v1 import digits_pb2 as pb
from support.bundles import write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"
PROTECTED = (
    *(method for method in METHOD_OF_PATH.values() if method.service != HEALTH_SERVICE), Method("unary", "x.Y", "Z"),
)  # fmt: skip

Metadata = tuple[tuple[str, str], ...]


def bearer(token: str, scheme: str = "Bearer") -> Metadata:
    return (("authorization", f"{scheme} {token}"),)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# now\n{FIRST}\n\n# next\n{SECOND}\n")
    write_echo_bundle(path.parent)
    return path


@pytest.fixture(scope="module", params=["native", "grpcio"])
def worker(request: pytest.FixtureRequest, tokens: Path) -> Iterator[RunningWorker]:
    with run_worker(tokens.parent, transport=request.param, token_file=tokens) as running:
        yield running


def status(worker: RunningWorker, method: Method, metadata: Metadata = ()) -> tuple[grpc.StatusCode, str]:
    """Call a method with an empty request; return code and message."""
    call = worker.channel.stream_stream(method.path)(iter([b""]), timeout=PATIENCE_S, metadata=metadata)
    try:
        next(call)
    except (StopIteration, grpc.RpcError):
        return call.code(), call.details()
    call.cancel()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("method", PROTECTED, ids=lambda method: method.path)
def test_calls_need_a_token(worker: RunningWorker, method: Method) -> None:
    """Every method except health, also one that does not exist, is refused without a valid token, and served with any of the
    valid ones; the status states what to send.
    """
    refused = grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED.message
    twice = bearer(FIRST) + bearer(SECOND)
    for metadata in (
        (),
        (("authorization", "Bearer"),),
        bearer(FIRST[:-1]),
        bearer(FIRST + "x"),
        bearer(FIRST, "Basic"),
        twice,
    ):
        assert status(worker, method, metadata) == refused
        assert status(worker, method, metadata) == refused  # its header block is remembered
    for metadata in (bearer(FIRST), bearer(SECOND), bearer(FIRST, "bearer"), bearer(FIRST)):
        assert status(worker, method, metadata)[0] is not grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", [HEALTH_CHECK, HEALTH_WATCH], ids=lambda method: method.path)
def test_health_needs_no_token(worker: RunningWorker, method: Method) -> None:
    """Anyone may check and watch health, also with a wrong token."""
    for metadata in ((), bearer("wrong")):
        assert status(worker, method, metadata)[0] is grpc.StatusCode.OK


def test_refused_calls_are_counted(worker: RunningWorker) -> None:
    """Each refused call is counted once as started and handled, under its method."""
    before = worker.handled("GetModel").get("Unauthenticated", 0), worker.started("GetModel")
    for _ in range(3):
        status(worker, GET_MODEL)
    assert worker.handled("GetModel")["Unauthenticated"] == before[0] + 3
    assert worker.started("GetModel") == before[1] + 3


def test_a_refused_call_leaves_the_connection_usable(worker: RunningWorker) -> None:
    """The message of a refused call, of any size, is ignored; the next call of its connection is served."""
    call = worker.channel.unary_unary(CLASSIFY.path)
    for _ in range(3):
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            call(bytes(1 << 20), timeout=PATIENCE_S)
        assert status(worker, GET_MODEL, bearer(FIRST))[0] is grpc.StatusCode.OK


def test_reflection_off(models: Path, transport: str) -> None:
    """Without reflection its methods are unknown, like any other; the rest is served."""
    with run_worker(models, transport=transport, reflection="off") as worker:
        for method in (REFLECTION, REFLECTION_V1, Method("unary", "x.Y", "Z")):
            assert status(worker, method)[0] is grpc.StatusCode.UNIMPLEMENTED
        assert status(worker, HEALTH_CHECK)[0] is grpc.StatusCode.OK
        assert worker.handled("other") == {"Unimplemented": 3}


def test_rotation(models: Path, tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file takes effect for the next calls of open connections; one without a valid token does not."""
    monkeypatch.setattr(file_watch, "INTERVAL_S", 0.01)
    path = tmp_path / "tokens"
    path.write_text(FIRST)
    with run_worker(models, transport=transport, token_file=path) as worker:
        call = worker.channel.unary_unary(GET_MODEL.path, response_deserializer=pb.GetModelResponse.FromString)

        def served(token: str) -> bool:
            future = call.future(b"", timeout=PATIENCE_S, metadata=bearer(token))
            return future.code() is grpc.StatusCode.OK

        assert served(FIRST) and not served(SECOND)
        path.write_text(f"{FIRST}\n{SECOND}\n")
        wait_until(lambda: served(SECOND), "the second token is valid")
        assert served(FIRST)
        path.write_text("short\n")
        assert served(FIRST) and served(SECOND)
        path.write_text(f"{SECOND}\n")
        wait_until(lambda: not served(FIRST), "the first token is not valid any more")
        assert served(SECOND)
