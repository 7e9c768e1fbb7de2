"""``Client``: calls that block, for programs with any number of threads.

A call of ``classify`` that needs several requests takes threads of the client's own beside the caller's; a single
request is sent by the caller's thread alone. Blocking calls cost less than grpcio's futures, which wake two threads.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from digitserve.client.calls import Refused, Unreachable, health_name
from digitserve.client.parts import Assembly, Group, Prediction, check, options, same_limits, split
from digitserve.client.pool import (
    CHANNEL_OPTIONS,
    HEALTH_REQUEST,
    MAX_IN_FLIGHT,
    NUM_CONNECTIONS,
    Closed,
    Connection,
    Deadline,
    Pool,
    at_least_one,
    connection,
    pause_s,
)
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb


class Client:
    """Classifies images over a pool of connections.

    Any thread may call it. It does not survive ``fork``: make it in the process that uses it. Its connections are
    opened when they are first needed, opened anew when the service asks for it or was away, and closed by ``close``.
    """

    def __init__(
        self, address: str, *, num_connections: int = NUM_CONNECTIONS, timeout_s: float = 10.0,
        images_per_request: int = 64, max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:  # fmt: skip
        """Prepare; nothing is sent yet.

        Args:
            address: ``host:port``.
            num_connections: each lands on one worker of the service, as chance will have it.
            timeout_s: for each call as a whole, in however many requests.
            images_per_request: most images in one request.
            max_in_flight: most requests under way at a time; each further calling thread may have one more.
        """
        at_least_one(
            num_connections=num_connections, images_per_request=images_per_request, max_in_flight=max_in_flight
        )
        self._pool = Pool(
            [connection(grpc.insecure_channel(address, options=CHANNEL_OPTIONS)) for _ in range(num_connections)]
        )
        self._timeout_s = timeout_s
        self._images_per_request = images_per_request
        self._max_in_flight = max_in_flight
        self._threads = ThreadPoolExecutor(max(1, max_in_flight - 1), thread_name_prefix="digitserve-client")
        self._limits: pb.Model | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls under way in other threads end with Closed."""
        for one in self._pool.close():
            one.channel.close()
        self._threads.shutdown()

    def classify(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], *, top_k: int = 0, ink: Ink | None = None,
        framing: Framing | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """Classify images.

        Args:
            images: uint8[H,W], uint8[N,H,W], uint8[N,H,W,C] with C of 1, 3 (RGB) or 4 (RGBA), or a list of uint8[H,W]
                and uint8[H,W,C] of any sizes. Three axes with a last one of 1, 3 or 4 are refused as ambiguous: one
                image in colour is ``image[None]``.
            top_k: list so many classes for each image.
            ink: which side the strokes are on; found out, or as in MNIST for 28x28, unless given.
            framing: how images come to the network's size.

        Returns:
            One prediction for each image, in order.

        Raises:
            InvalidRequest: the images have another shape or type.
            Refused: the service refused; says which images, where there were several requests.
            Unreachable: no answer in time, or nobody at the address when first asked.
            Closed: the client was closed, before or meanwhile.
        """
        self._pool.check_open()
        deadline = Deadline(self._timeout_s)
        groups, request_options = check(images), options(top_k, ink, framing)
        limits = self._limits or self._ask_model(deadline)
        try:
            return self._classify(groups, request_options, limits, deadline)
        except Refused as error:
            # The service may have been started anew with other limits.
            if not error.may_be_of_limits or same_limits(now := self._ask_model(deadline), limits):
                raise
        return self._classify(groups, request_options, now, deadline)

    def model(self) -> pb.Model:
        """Return the facts of the model being served: name, version, labels, limits, measured quality.

        Raises:
            Unreachable: nobody answers.
            Refused: the service refused.
        """
        return self._ask_model(Deadline(self._timeout_s))

    def healthy(self) -> bool:
        """Return whether the service says SERVING; false too when nobody answers."""
        try:
            response = self._call(lambda one: one.health.Check, HEALTH_REQUEST, Deadline(self._timeout_s))
        except (Unreachable, Refused):
            return False
        return health_name(response) == "SERVING"

    def _ask_model(self, deadline: Deadline) -> pb.Model:
        model: pb.Model = self._call(lambda one: one.service.GetModel, pb.GetModelRequest(), deadline).model
        self._limits = model
        return model

    def _classify(
        self, groups: list[Group], request_options: pb.ClassifyRequest, limits: pb.Model, deadline: Deadline
    ) -> list[Prediction]:
        assembly = Assembly(split(groups, self._images_per_request, limits), request_options)
        others: list[Future[None]] = []
        try:
            # This thread takes parts too: when other calls hold all of the client's threads, this one still moves.
            others.extend(
                self._submit(assembly, deadline) for _ in range(min(self._max_in_flight, assembly.num_parts) - 1)
            )
            self._work(assembly, deadline)
        finally:
            started = [other for other in others if not other.cancel()]
            wait(started)
        for other in started:
            other.result()
        return assembly.predictions()

    def _submit(self, assembly: Assembly, deadline: Deadline) -> Future[None]:
        try:
            return self._threads.submit(self._work, assembly, deadline)
        except RuntimeError:
            # The threads end with the pool.
            assembly.stop()
            self._pool.check_open()
            raise

    def _work(self, assembly: Assembly, deadline: Deadline) -> None:
        """Send parts until none waits; after a failure nobody takes another."""
        try:
            for part, request in assembly:
                # The service has answered before: if it is away now, it is starting anew, and is waited for.
                response = self._call(
                    lambda one: one.service.Classify, request, deadline, assembly.what(part), wait_for_ready=True
                )
                assembly.put(part, response)
        except BaseException:
            assembly.stop()
            raise

    def _call(
        self, method: Callable[[Connection], Any], request: Any, deadline: Deadline, what: str = "", *,
        wait_for_ready: bool = False,
    ) -> Any:  # fmt: skip
        """Call a method on any connection; again, on another, while the service says that it has no room just now."""
        while True:
            try:
                with self._pool.borrow() as one:
                    return method(one)(request, timeout=deadline.remaining_s(), wait_for_ready=wait_for_ready)
            except (grpc.RpcError, ValueError) as error:
                # A channel that was closed meanwhile says so in one way or the other.
                if self._pool.closed:
                    raise Closed from None
                if isinstance(error, ValueError):
                    raise
                seconds = pause_s(error, deadline, what)
            time.sleep(seconds)
