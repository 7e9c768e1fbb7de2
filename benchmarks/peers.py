"""Servers that digitserve is compared with: lower bounds, other frameworks with the same networks, and the first release."""

import contextlib
import sys
import urllib.request
from http import HTTPStatus
from pathlib import Path

from benchmarks import bundles
from benchmarks.installation import CACHE
from benchmarks.servers import Digitserve, Native, NativeInt8, Server, make_certificate

FIRST_RELEASE = "51ad4ada961768bdc78346d1e37dd8c41332c748"
"""The commit of the first release: version 0.1.0 with the networks ``digits/3`` and ``digits-int8/1``, on gRPC core."""

MOSEC_PYTHON = CACHE / "mosec" / "bin" / "python"
"""Interpreter of the environment that ``python -m benchmarks.mosec`` creates."""


class Empty(Server):
    """The floor E: an empty RPC, or an empty message on a stream, under the scheduling policy of a worker."""

    transport = ""

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "benchmarks.floors", "empty", "--transport", self.transport,
            "--port", str(self.grpc_port), "--stats", str(self.stats_path),
        ]  # fmt: skip


class EmptyNative(Empty):
    """The floor of the native transport."""

    name = "empty native"
    transport = "native"


class EmptyNativeTls(EmptyNative):
    """The same with TLS."""

    name = "empty native tls"
    scheme = "https"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [*super().command(), *make_certificate(Path(self._folder.name))]


class EmptyGrpcio(Empty):
    """The floor of grpcio."""

    name = "empty grpcio"
    transport = "grpcio"


class Aio(Server):
    """The ``grpc.aio`` service: a batch is what is in the queue when the batching thread is free."""

    name = "grpc.aio"
    flags: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            sys.executable, "-m", "benchmarks.aio_service", *self.model_flags,
            "--port", str(self.grpc_port), "--stats", str(self.stats_path), *self.flags,
        ]  # fmt: skip


class AioInt8(Aio):
    """The int8 network behind ``grpc.aio``."""

    name = "grpc.aio int8"
    int8 = True


class AioWindow(Aio):
    """The same with a batching window: slower when idle, faster under this load."""

    name = "grpc.aio, window"
    flags = ("--window-ms", "6")


class AioWindowInt8(AioWindow):
    """The int8 network, with a batching window."""

    name = "grpc.aio int8, window"
    int8 = True


class Mosec(Server):
    """The same network, checks and answers behind mosec's HTTP/1 front end; see ``mosec``."""

    name = "mosec"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [
            str(MOSEC_PYTHON), "-m", "benchmarks.mosec_service", *self.model_flags,
            "--address", "127.0.0.1", "--port", str(self.grpc_port), "--stats", str(self.stats_path),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Return whether its metrics page, which is on the same port, shows that it is available."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.grpc_port}/") as response:
            return response.status == HTTPStatus.OK and self.stats_path.exists()
        return False


class MosecInt8(Mosec):
    """The int8 network behind mosec."""

    name = "mosec int8"
    int8 = True


class NativeFirst(Native):
    """This code with the float32 network of the first release."""

    name = "native, first network"
    own_models = bundles.FIRST_RELEASE


class NativeFirstInt8(NativeInt8):
    """This code with the int8 network of the first release."""

    name = "native int8, first network"
    own_models = bundles.FIRST_RELEASE


class FirstRelease(Digitserve):
    """The first release: its code and its network. Runs in an installation of ``FIRST_RELEASE``."""

    name = "first release"
    own_models = bundles.FIRST_RELEASE


class FirstReleaseInt8(FirstRelease):
    """The first release with its int8 network."""

    name = "first release int8"
    int8 = True
