"""Which servers ``compare`` measures, and at which loads."""

from benchmarks import peers
from benchmarks.load import LOADS
from benchmarks.peers import EmptyGrpcio, EmptyNative, EmptyNativeTls
from benchmarks.servers import Grpcio, GrpcioInt8, Native, NativeInt8, NativeTls, Server

_SINGLE = ("single", "single, grpcio", "single, grpc-go")
_H2LOAD = ("h2load", "h2load, one")
_COMPARED = ("single", "stream", "large")

SERVERS: dict[type[Server], tuple[str, ...]] = {
    Native: tuple(LOADS),
    NativeTls: _H2LOAD,
    NativeInt8: (*_SINGLE, "stream", "large"),
    Grpcio: (*_COMPARED, "framed", "idle"),
    GrpcioInt8: _COMPARED,
    EmptyNative: tuple(LOADS),
    EmptyNativeTls: _H2LOAD,
    EmptyGrpcio: ("single", "stream"),
    peers.Aio: ("single", "large"),
    peers.AioInt8: ("single", "large"),
    peers.AioWindow: ("single",),
    peers.AioWindowInt8: ("single",),
    peers.Mosec: ("single", "large"),
    peers.MosecInt8: ("single", "large"),
    peers.NativeFirst: _COMPARED,
    peers.NativeFirstInt8: _COMPARED,
    peers.FirstRelease: _COMPARED,
    peers.FirstReleaseInt8: _COMPARED,
}
"""The loads of each server; other frameworks have one unary method."""

FLOOR_OF: dict[type[Server], type[Server]] = {EmptyNative: Native, EmptyNativeTls: NativeTls, EmptyGrpcio: Grpcio}
"""Servers that must be scheduled as another one is."""

TRANSPORTS = (
    (Native.name, Grpcio.name),
    (NativeInt8.name, GrpcioInt8.name),
    (NativeTls.name, Native.name),
    (EmptyNative.name, EmptyGrpcio.name),
    (EmptyNativeTls.name, EmptyNative.name),
)
"""Pairs of servers whose ratios are reported."""
