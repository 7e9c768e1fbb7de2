"""Addresses as people write them, brought into gRPC's form. Used by both clients and the commands."""

import ipaddress
import re

from digitserve.client.errors import InvalidAddress

DEFAULT_PORT = 50051

_GRPC_SCHEME = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):", re.IGNORECASE)
"""Schemes of gRPC's name resolvers. Source: github.com/grpc/grpc, doc/naming.md."""

_URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([^:]*))?")
_HOST = re.compile(r"[a-z0-9_.-]+", re.IGNORECASE)


def normalize_address(text: str) -> str:
    """Return ``host:port`` for an address as a user wrote it.

    ``http://``, ``grpc://`` and a slash at the end are removed. A missing port is 50051. Addresses with a scheme of gRPC,
    such as ``dns:`` and ``unix:``, are returned unchanged.

    Raises:
        InvalidAddress: the address has a path, a user name, another scheme such as ``https``, no host, or a wrong port.
    """
    address = text.strip()
    if _GRPC_SCHEME.match(address) and not re.fullmatch(r"[^:]*:\d+", address):
        return address
    if url := _URL_SCHEME.fullmatch(address):
        scheme, address = url[1].lower(), url[2]
        if scheme not in {"http", "grpc"}:
            raise _invalid(text, "TLS is not supported" if scheme == "https" else f"unknown scheme '{scheme}'")
    address = address.removesuffix("/")
    if "/" in address or "?" in address:
        raise _invalid(text, "a gRPC address has no path")
    match = _HOST_PORT.fullmatch(address)
    if not match:
        raise _invalid(text, "an IPv6 address needs brackets, such as [::1]:50051")
    host, port = match[1], match[2] or str(DEFAULT_PORT)
    if not port.isdecimal() or not port.isascii() or not 0 < int(port) < 1 << 16:
        raise _invalid(text, f"the port '{port}' is not a number from 1 to 65535")
    if not (_is_ipv6(host[1:-1]) if host.startswith("[") else _HOST.fullmatch(host)):
        raise _invalid(text, f"'{host}' is not a host name or IP address" if host else "it has no host")
    return f"{host}:{int(port)}"


def is_loopback(address: str) -> bool:
    """Return whether a normalized address is one of this machine's own loopback interface."""
    host = _GRPC_SCHEME.sub("", address).rpartition(":")[0].rpartition("/")[2].strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    # A client that connects to the unspecified address, 0.0.0.0 or ::, reaches this machine.
    return ip.is_loopback or ip.is_unspecified


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _invalid(text: str, reason: str) -> InvalidAddress:
    return InvalidAddress(f"address: got '{text}': {reason}; expected host:port, such as 127.0.0.1:{DEFAULT_PORT}")
