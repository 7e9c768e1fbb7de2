"""Both clients when the network loses connections without a reset, and when the service has ended."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from digitserve.client import AsyncClient, Client, DeadlineExceeded, channel
from support.bundles import echo_image, write_echo_bundle
from support.clients import KINDS, images_of, scores
from support.relay import Relay, relay_to
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """Run a worker on the native transport, which allows frequent PINGs."""
    models = tmp_path_factory.mktemp("models")
    write_echo_bundle(models)
    with run_worker(models, transport="native") as running:
        yield running


@pytest.fixture
def relay(worker: RunningWorker) -> Iterator[Relay]:
    """Run a relay to the worker."""
    with relay_to(worker.address) as running:
        yield running


@pytest.fixture
def short_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make clients detect a lost connection within a fraction of a second."""
    short = channel.keepalive_options(time_s=0.1, timeout_s=0.1)
    # gRPC takes the first of two options with one name.
    monkeypatch.setattr(channel, "_POOL_OPTIONS", (*short, *channel._POOL_OPTIONS))


class Blocking:
    """Either client behind the interface of the blocking one."""

    def __init__(self, kind: str, address: str) -> None:
        self._client: Any = None
        self._loop = asyncio.new_event_loop()
        if kind == "sync":
            self._client = Client(address, num_connections=2, timeout_s=PATIENCE_S)
        else:
            self._client = self._loop.run_until_complete(self._open(address))

    @staticmethod
    async def _open(address: str) -> AsyncClient:
        return AsyncClient(address, num_connections=2, timeout_s=PATIENCE_S)

    def classify(self, number: int, **options: Any) -> int:
        """Classify an image and return its number."""
        found = self._client.classify(images_of(number, 1), **options)
        return scores(found if isinstance(self._client, Client) else self._loop.run_until_complete(found))[0]

    def stream(self, images: Any) -> Iterator[int]:
        """Return the numbers of a stream."""
        found = self._client.classify_stream(images)
        if isinstance(self._client, Client):
            yield from (int(one.ood_score) for one in found)
            return
        while True:
            try:
                yield int(self._loop.run_until_complete(anext(found)).ood_score)
            except StopAsyncIteration:
                return

    def close(self) -> None:
        """Close the client."""
        closed = self._client.close()
        if closed is not None:
            self._loop.run_until_complete(closed)
        self._loop.close()


@pytest.fixture
def open_client() -> Iterator[Any]:
    """Return a function that opens a client; close them at the end of the test."""
    opened: list[Blocking] = []

    def open_one(kind: str, address: str) -> Blocking:
        opened.append(Blocking(kind, address))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@KINDS
@pytest.mark.usefixtures("short_keepalive")
def test_calls_go_on_after_the_network_has_lost_idle_connections(kind: str, relay: Relay, open_client: Any) -> None:
    """The next call is answered over another connection: it does not wait for an answer until its deadline."""
    client = open_client(kind, relay.address)
    assert [client.classify(number) for number in range(4)] == [0, 1, 2, 3]
    relay.lose_connections()
    assert [client.classify(number) for number in range(4)] == [0, 1, 2, 3]


@KINDS
@pytest.mark.usefixtures("short_keepalive")
def test_idle_connections_are_replaced_before_a_call_needs_them(kind: str, relay: Relay, open_client: Any) -> None:
    """PINGs are also sent without calls in flight, and the service allows them."""
    client = open_client(kind, relay.address)
    client.classify(1)
    relay.lose_connections()
    # The client closes its end of a connection that does not answer.
    wait_until(lambda: relay.num_closed_by_client > 0, "a lost connection is closed")
    assert client.classify(2) == 2


@KINDS
@pytest.mark.usefixtures("short_keepalive")
def test_a_quiet_stream_goes_on_after_its_connection_was_lost(kind: str, relay: Relay, open_client: Any) -> None:
    """The stream is opened again over another connection, and images without an answer are sent again."""
    lost = threading.Event()

    def images() -> Iterator[Any]:
        yield echo_image(1)
        lost.wait(PATIENCE_S)
        yield echo_image(2)

    async def async_images() -> Any:
        yield echo_image(1)
        await asyncio.to_thread(lost.wait, PATIENCE_S)
        yield echo_image(2)

    answers = open_client(kind, relay.address).stream(images() if kind == "sync" else async_images())
    assert next(answers) == 1
    relay.lose_connections()
    lost.set()
    assert list(answers) == [2]


@KINDS
def test_the_error_for_a_service_that_has_gone_names_the_reason(kind: str, relay: Relay, open_client: Any) -> None:
    """A call that waits for the service until its deadline reports why there was no connection."""
    client = open_client(kind, relay.address)
    client.classify(1)
    relay.close()
    with pytest.raises(
        DeadlineExceeded, match=r"no answer within 0\.5 s, and no connection \(.*refused.*still running"
    ):
        client.classify(2, timeout_s=0.5)
