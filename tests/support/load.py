"""Callers of a running service that record how each call ended."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import Counter
from typing import Self

import grpc

from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image
from support.serving import PATIENCE_S, Service

CLASSIFY = "/digitserve.v1.DigitService/Classify"

PAUSE_S = 0.01
"""Pause of a caller after a call that failed."""


def classify(channel: grpc.Channel, number: int, *, wait_for_ready: bool = True, token: str = "") -> int:
    """Classify one image and return the number that the answer encodes."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    call = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
    request = pb.ClassifyRequest(pixels=echo_image(number).tobytes())
    answer = call(request, timeout=PATIENCE_S, wait_for_ready=wait_for_ready, metadata=metadata)
    (prediction,) = answer.predictions
    return int(prediction.ood_score)


class Callers(ABC):
    """Threads that call a service repeatedly, from the start to the end of a ``with`` block; ``call`` is what each of them does."""

    def __init__(self, num_callers: int) -> None:
        self.stopping = threading.Event()
        self._threads = [threading.Thread(target=self.call, args=(number,)) for number in range(num_callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @abstractmethod
    def call(self, caller: int) -> None:
        """Call the service until ``stopping`` is set; the callers are numbered."""


class Load(Callers):
    """Calls the service, each caller on its own connection, and records how each call ended.

    Attributes:
        outcomes: number of calls by status code; ``WRONG`` for an answer that belongs to another call.
        failures: details of the calls that failed.
    """

    def __init__(
        self,
        service: Service,
        num_callers: int,
        *,
        wait_for_ready: bool = True,
        retries: bool = False,
        reconnect: bool = False,
    ) -> None:
        """Prepare.

        Args:
            service: to call.
            num_callers: number of threads.
            wait_for_ready: whether a call waits for a connection.
            retries: whether to use the client library's service config, which retries.
            reconnect: whether each call opens a connection.
        """
        super().__init__(num_callers)
        self._service = service
        self._wait_for_ready = wait_for_ready
        self._retries = retries
        self._reconnect = reconnect
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def call(self, caller: int) -> None:
        """Call until the end; see ``Callers``."""
        service = self._service
        number = caller * 100_000
        channel = service.channel(retries=self._retries)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: channel.close())  # noqa: PLW0108 - the last channel, not the first
            while not self.stopping.is_set():
                number += 1
                if self._reconnect:
                    channel.close()
                    channel = service.channel(retries=self._retries)
                try:
                    outcome = (
                        "OK" if classify(channel, number, wait_for_ready=self._wait_for_ready) == number else "WRONG"
                    )
                except grpc.RpcError as error:
                    outcome = error.code().name
                    self.failures.append(error.debug_error_string())
                    # Refused calls fail at once. In one run without this pause, the process of the tests grew to 21 GB.
                    self.stopping.wait(PAUSE_S)
                with self._lock:
                    self.outcomes[outcome] += 1
