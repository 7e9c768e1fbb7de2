"""``Client``: blocking calls, for programs with any number of threads.

A call of ``classify`` that needs several requests uses threads of the client beside the caller's; a single request is sent by
the caller's thread alone. Blocking calls cost less than grpcio's futures, which wake two threads.
"""

import time
import weakref
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal, Self, Unpack, overload

import grpc

from digitserve.client.blocking_stream import BlockingStream
from digitserve.client.channel import (
    Connection,
    find_cause,
    health_name,
    health_request,
    open_connections,
)
from digitserve.client.errors import ClientError, Closed, RequestRejected
from digitserve.client.pool import (
    MAX_IN_FLIGHT,
    NUM_CONNECTIONS,
    Deadline,
    Pool,
    require_positive,
    retry_delay_s,
)
from digitserve.client.predictions import ModelInfo, Prediction
from digitserve.client.read_requests import LayoutName, Reader, ReadOptions
from digitserve.client.readings import Reading
from digitserve.client.requests import Classifier, ClassifyCall, Group, Image, Images, group, request_options, split
from digitserve.client.stream_window import READ_STREAM_IN_FLIGHT, STREAM_IN_FLIGHT, Result, StreamKind, StreamWindow
from digitserve.credentials import Credentials, FilePath
from digitserve.protocol.names import SERVICE, Layout
from digitserve.protocol.readings import DEFAULT_PLACEHOLDER
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import MAX_SIDE, READ_SIDE


class Client:
    """Classifies images, and reads numbers, over a pool of connections.

    Any thread may call it. It cannot be used after ``fork``: create it in the process that uses it. Connections are opened at
    first use, opened again when the service closes them or restarts, and closed by ``close``.

    All methods raise subclasses of ClientError only (``digitserve.client.errors``), and take ``timeout_s``, the longest time
    for the call as a whole; the default is that of the client.
    """

    def __init__(  # noqa: PLR0913 - all but the address are keywords with defaults
        self, address: str, *, ca: FilePath | None = None, certificate: FilePath | None = None, key: FilePath | None = None,
        token: str | None = None, token_file: FilePath | None = None, clear_text_token: bool = False,
        num_connections: int = NUM_CONNECTIONS, timeout_s: float = 10.0, images_per_request: int = 64,
        max_in_flight: int = MAX_IN_FLIGHT, max_side: int | None = MAX_SIDE,
        use_proxy: bool = True,
    ) -> None:  # fmt: skip
        """Create the connections; nothing is sent yet.

        Args:
            address: ``host:port``; without a port, 50051. ``https://host:port`` means TLS.
            ca: PEM file with the certificates of the authorities that sign the service's; by default those of the system. This
                file and ``certificate`` also mean TLS.
            certificate: PEM file with the client's certificate, for services that require one.
            key: PEM file with the private key of ``certificate``, without a password.
            token: bearer token, sent with every call.
            token_file: file with the token instead; it is read again when it has changed.
            clear_text_token: whether to send the token without TLS to another machine; others in the network can read it.
            num_connections: each is served by one worker of the service, which the kernel chooses at random. If the name of the
                host has several addresses, this number is opened to each of them.
            timeout_s: default for each call as a whole, however many requests it needs.
            images_per_request: most images in one request.
            max_in_flight: most requests in flight; each further calling thread may have one more.
            max_side: of ``classify``: larger images are reduced by block means until no side is longer, in pixels; None sends
                all as they are.
            use_proxy: whether calls to other machines use the proxy in the environment (``http_proxy``), as gRPC does. Calls to
                this machine never do.

        Raises:
            InvalidAddress: the address cannot be that of a gRPC service.
            InvalidCredentials: a certificate, key or token cannot be used, or the token would be sent in clear text.
            InvalidRequest: a number is not above 0.
        """
        require_positive(
            num_connections=num_connections, timeout_s=timeout_s, images_per_request=images_per_request,
            max_in_flight=max_in_flight, max_side=max_side,
        )  # fmt: skip
        credentials = Credentials(ca, certificate, key, token, token_file, clear_text_token)
        self._pool = Pool(open_connections(grpc, address, credentials, num_connections, use_proxy=use_proxy))
        self._timeout_s = timeout_s
        self._images_per_request = images_per_request
        self._max_in_flight = max_in_flight
        self._max_side = max_side
        self._threads = ThreadPoolExecutor(max(1, max_in_flight - 1), thread_name_prefix="digitserve-client")
        self._streams: weakref.WeakSet[BlockingStream[Any]] = weakref.WeakSet()
        self._model: ModelInfo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls in progress on other threads raise Closed."""
        connections = self._pool.close()
        for stream in list(self._streams):
            stream.close()
        for connection in connections:
            for channel in connection.channels:
                channel.close()
        self._threads.shutdown()

    def classify(
        self, images: Images, *, top_k: int = 0, ink: Ink | None = None, framing: Framing | None = None,
        explain: bool = False, timeout_s: float | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """Classify images.

        Args:
            images: uint8[H,W], uint8[N,H,W], uint8[N,H,W,C] with C of 1, 3 (RGB) or 4 (RGBA), a Pillow image, or a list of
                uint8[H,W], uint8[H,W,C] and Pillow images of any sizes. Three axes whose last has length 1, 3 or 4 are rejected
                as ambiguous: one image in colour is ``image[None]``. Pillow images are rotated as their EXIF orientation states.
            top_k: number of classes to list for each image.
            ink: whether the strokes are lighter or darker than the background; if not given, it is detected, or
                ``LIGHT_ON_DARK`` for 28x28 images.
            framing: how images are brought to the network's size.
            explain: whether predictions say how the images were prepared, and what the network saw.
            timeout_s: for the call as a whole.

        Returns:
            One prediction per image, in order.

        Raises:
            InvalidRequest: an image has another shape or type, or ``top_k`` is negative.
            RequestRejected: the service rejected a request; the message names the images if there were several requests.
            DeadlineExceeded: not all images were answered in time.
            Unreachable: no service answers at the address; HandshakeFailed: because of TLS.
            Unauthenticated: the service did not accept the token, or requires one.
            Closed: the client was closed, before or during the call.
        """
        self._pool.check_open()
        deadline = self._deadline(timeout_s)
        groups, options = group(images, self._max_side), request_options(top_k, ink, framing, explain=explain)
        limits = self._model or self._get_model(deadline)
        try:
            return self._classify(groups, options, limits, deadline)
        except RequestRejected as error:
            # The service may have restarted with other limits.
            if not error.may_exceed_limits or limits.has_limits_of(new_limits := self._get_model(deadline)):
                raise
        return self._classify(groups, options, new_limits, deadline)

    @overload
    def classify_stream(
        self, images: Iterable[Image], *, top_k: int = 0, ink: Ink | None = None, framing: Framing | None = None,
        explain: bool = False, timeout_s: float | None = None, max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: Literal[False] = False,
    ) -> Generator[Prediction, None, None]: ...  # fmt: skip

    @overload
    def classify_stream(
        self, images: Iterable[Image], *, top_k: int = 0, ink: Ink | None = None, framing: Framing | None = None,
        explain: bool = False, timeout_s: float | None = None, max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: bool,
    ) -> Generator[Prediction | ClientError, None, None]: ...  # fmt: skip

    def classify_stream(
        self, images: Iterable[Image], *, top_k: int = 0, ink: Ink | None = None, framing: Framing | None = None,
        explain: bool = False, timeout_s: float | None = None, max_in_flight: int = STREAM_IN_FLIGHT,
        return_exceptions: bool = False,
    ) -> Generator[Prediction | ClientError, None, None]:  # fmt: skip
        """Classify an unbounded sequence of images on one stream; iterate over the predictions, in order.

        Predictions are available before the input ends. One worker serves a stream: several streams use several workers. When
        the worker is replaced, the stream is opened again, and images without an answer are sent again.

        Args:
            images: uint8[H,W], uint8[H,W,C] or Pillow images of any sizes. Another thread iterates over them, at most
                ``max_in_flight`` images ahead of the predictions.
            top_k: as for ``classify``.
            ink: as for ``classify``.
            framing: as for ``classify``.
            explain: as for ``classify``.
            timeout_s: longest wait for the next prediction while an image is in flight; the stream as a whole has no limit.
            max_in_flight: most images in flight.
            return_exceptions: as for ``asyncio.gather``. If False, an image that is invalid or rejected ends the iteration:
                its error is raised in its place. If True, the error is returned in its place, and the iteration continues.

        Returns:
            One prediction per image, in order. Its ``close`` ends the stream early.

        Raises:
            InvalidRequest: an image has another shape or type; ``index`` is its position.
            RequestRejected: the service rejected an image; ``index`` is its position.
            DeadlineExceeded, Unreachable, Closed: as for ``classify``.
        """
        self._pool.check_open()
        kind = Classifier(request_options(top_k, ink, framing, explain=explain), self._max_side)
        return self._stream(images, kind, timeout_s, max_in_flight, return_exceptions=return_exceptions)

    def read(  # noqa: PLR0913 - all but the image are keywords with defaults
        self, image: Image, *, layout: Layout | LayoutName = "page", num_digits: int | None = None, pattern: str = "",
        min_confidence: float = 0.0, placeholder: str = DEFAULT_PLACEHOLDER, top_k: int = 0, ink: Ink | None = None,
        max_side: int | None = READ_SIDE, timeout_s: float | None = None,
    ) -> Reading:  # fmt: skip
        r"""Read the numbers in an image.

        Args:
            image: uint8[H,W], uint8[H,W,C] with C of 1, 3 (RGB) or 4 (RGBA), or a Pillow image.
            layout: ``page`` for any number of lines, ``line`` for one, ``cells`` for rows of boxes with at most one digit each.
            num_digits: digits that each line has, for ``cells`` cells; None for any number.
            pattern: what each line must look like, such as ``\d{5}`` or ``[0-3]\d/[01]\d``: ``docs/how-to/read-numbers.md``.
            min_confidence: digits with a lower confidence are not read, from 0 to 1.
            placeholder: the character in the text for what was not read.
            top_k: number of labels to list for each digit.
            ink: whether the strokes are lighter or darker than the background; if not given, it is detected.
            max_side: larger images are reduced by block means until no side is longer, in pixels, and until they fit into the
                service's default limit of bytes; None sends all as they are. That of the client is for ``classify``.
            timeout_s: for the call as a whole.

        Returns:
            Lines, digits and separators, with boxes in pixels of the image as it was given.

        Raises:
            InvalidRequest: the image has another shape or type, or an option has an invalid value.
            RequestRejected: the service rejected the request, for example because of the pattern.
            DeadlineExceeded, Unreachable, HandshakeFailed, Unauthenticated, Closed: as for ``classify``.
        """
        self._pool.check_open()
        deadline = self._deadline(timeout_s)
        reader = Reader(layout, num_digits, pattern, min_confidence, placeholder, top_k, ink, max_side)
        sent = reader.prepare(image, 0)
        if self._model is None:
            # A service that never answered is detected here; one that does not listen now is restarting, so wait for it.
            self._get_model(deadline)
        request = reader.to_message(sent).request
        response = self._call(lambda one: one.service.Read, request, deadline, wait_for_ready=True)
        return reader.to_result(response, sent.reduction)

    @overload
    def read_stream(
        self, images: Iterable[Image], *, timeout_s: float | None = None, max_in_flight: int = READ_STREAM_IN_FLIGHT,
        return_exceptions: Literal[False] = False, **options: Unpack[ReadOptions],
    ) -> Generator[Reading, None, None]: ...  # fmt: skip

    @overload
    def read_stream(
        self, images: Iterable[Image], *, timeout_s: float | None = None, max_in_flight: int = READ_STREAM_IN_FLIGHT,
        return_exceptions: bool, **options: Unpack[ReadOptions],
    ) -> Generator[Reading | ClientError, None, None]: ...  # fmt: skip

    def read_stream(
        self, images: Iterable[Image], *, timeout_s: float | None = None, max_in_flight: int = READ_STREAM_IN_FLIGHT,
        return_exceptions: bool = False, **options: Unpack[ReadOptions],
    ) -> Generator[Reading | ClientError, None, None]:  # fmt: skip
        """Read an unbounded sequence of images on one stream, as ``classify_stream`` classifies them.

        Args:
            images: as for ``classify_stream``.
            timeout_s: as for ``classify_stream``.
            max_in_flight: most images in flight.
            return_exceptions: as for ``classify_stream``.
            options: the other keywords of ``read``.

        Returns:
            One reading per image, in order. Its ``close`` ends the stream early.

        Raises:
            ClientError: as for ``classify_stream``.
        """
        self._pool.check_open()
        return self._stream(images, Reader(**options), timeout_s, max_in_flight, return_exceptions=return_exceptions)

    def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return the model that the service uses and the service's limits.

        Raises:
            RequestRejected, DeadlineExceeded, Unreachable, Closed: as for ``classify``.
        """
        return self._get_model(self._deadline(timeout_s))

    def health(self, service: str = SERVICE, *, timeout_s: float | None = None) -> str:
        """Return the health of a service as its name in grpc.health.v1, such as ``SERVING`` or ``NOT_SERVING``.

        Args:
            service: full name of the service; "" means the whole server.
            timeout_s: for the call as a whole.

        Raises:
            RequestRejected: the server has no such service.
            DeadlineExceeded, Unreachable, Closed: as for ``classify``.
        """
        return health_name(self._call(lambda one: one.health.Check, health_request(service), self._deadline(timeout_s)))

    def healthy(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the service reports SERVING; False also if it does not answer."""
        try:
            return self.health(timeout_s=timeout_s) == "SERVING"
        except Closed:
            raise
        except ClientError:
            return False

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _get_model(self, deadline: Deadline) -> ModelInfo:
        response = self._call(lambda one: one.service.GetModel, pb.GetModelRequest(), deadline)
        self._model = model = ModelInfo.from_message(response.model)
        return model

    def _stream(
        self, images: Iterable[Image], kind: StreamKind[Result], timeout_s: float | None, max_in_flight: int, *,
        return_exceptions: bool,
    ) -> Generator[Result | ClientError, None, None]:  # fmt: skip
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        require_positive(max_in_flight=max_in_flight, timeout_s=timeout_s)
        stream = BlockingStream(images, kind, StreamWindow(max_in_flight), self._pool, timeout_s)
        self._streams.add(stream)
        return self._outcomes(stream, timeout_s, return_exceptions=return_exceptions)

    def _outcomes(
        self, stream: BlockingStream[Result], timeout_s: float, *, return_exceptions: bool
    ) -> Generator[Result | ClientError, None, None]:
        if self._model is None:
            # Streams wait for a connection: a service that never answered is detected here.
            self._get_model(Deadline(timeout_s))
        yield from stream.outcomes(return_exceptions=return_exceptions)

    def _classify(
        self, groups: list[Group], options: pb.ClassifyRequest, limits: ModelInfo, deadline: Deadline
    ) -> list[Prediction]:
        call = ClassifyCall(split(groups, self._images_per_request, limits), options)
        others: list[Future[None]] = []
        try:
            # This thread sends chunks too, so the call progresses even if other calls occupy all threads of the client.
            others.extend(self._submit(call, deadline) for _ in range(min(self._max_in_flight, call.num_chunks) - 1))
            self._send_chunks(call, deadline)
        finally:
            started = [other for other in others if not other.cancel()]
            wait(started)
        for other in started:
            other.result()
        return call.predictions()

    def _submit(self, call: ClassifyCall, deadline: Deadline) -> Future[None]:
        try:
            return self._threads.submit(self._send_chunks, call, deadline)
        except RuntimeError:
            # The threads end when the client is closed.
            call.abort()
            self._pool.check_open()
            raise

    def _send_chunks(self, call: ClassifyCall, deadline: Deadline) -> None:
        """Send chunks until none is left; after a failure no thread takes another."""
        try:
            for chunk, request in call:
                # The service has answered before. If it does not listen now, it is restarting, so wait for it.
                response = self._call(
                    lambda one: one.service.Classify, request, deadline, call.error_prefix(chunk), wait_for_ready=True
                )
                call.add_response(chunk, response)
        except BaseException:
            call.abort()
            raise

    def _call(
        self, method: Callable[[Connection], Any], request: Any, deadline: Deadline, prefix: str = "", *,
        wait_for_ready: bool = False,
    ) -> Any:  # fmt: skip
        """Call a method on any connection; retry on another one while the service's queue is full."""
        while True:
            with self._pool.borrow() as one:
                try:
                    return method(one)(
                        request, timeout=deadline.remaining_s(), metadata=one.metadata(), wait_for_ready=wait_for_ready
                    )
                except (grpc.RpcError, ValueError) as error:
                    # A call on a channel that was closed meanwhile raises one or the other.
                    if self._pool.closed:
                        raise Closed from None
                    if isinstance(error, ValueError):
                        raise
                    delay_s = retry_delay_s(error, deadline, prefix, find_cause(one, error))
            time.sleep(delay_s)
