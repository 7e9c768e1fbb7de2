"""Addresses as people write them, brought into gRPC's form. Used by both clients and the commands."""

import ipaddress
import re
from typing import NamedTuple

from digitserve.client.errors import InvalidAddress
from digitserve.credentials import is_local_host

DEFAULT_PORT = 50051

_GRPC_SCHEME = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):", re.IGNORECASE)
"""Schemes of gRPC's name resolvers. Source: github.com/grpc/grpc, doc/naming.md."""

_URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE)
_TLS = {"https": True, "grpcs": True, "http": False, "grpc": False}
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([^:]*))?")
_HOST = re.compile(r"[a-z0-9_.-]+", re.IGNORECASE)


class Address(NamedTuple):
    """An address in gRPC's form.

    Attributes:
        target: ``host:port``, or an address in a scheme of gRPC.
        tls: what its scheme demands: True for ``https`` and ``grpcs``, False for ``http`` and ``grpc``, None without one.
    """

    target: str
    tls: bool | None = None


def parse_address(text: str) -> Address:
    """Parse an address as a user wrote it.

    ``https://``, ``http://``, ``grpcs://``, ``grpc://`` and a slash at the end are removed. A missing port is 50051. Addresses
    with a scheme of gRPC, such as ``dns:`` and ``unix:``, are returned unchanged.

    Raises:
        InvalidAddress: the address has a path, a user name, an unknown scheme, no host, or a wrong port.
    """
    address = text.strip()
    if _GRPC_SCHEME.match(address) and not re.fullmatch(r"[^:]*:\d+", address):
        return Address(address)
    tls = None
    if url := _URL_SCHEME.fullmatch(address):
        scheme, address = url[1].lower(), url[2]
        if scheme not in _TLS:
            raise _invalid(text, f"unknown scheme '{scheme}'")
        tls = _TLS[scheme]
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
    return Address(f"{host}:{int(port)}", tls)


def is_local(target: str) -> bool:
    """Return whether a target is on this machine: an address of the loopback interface, or a Unix socket."""
    if target.lower().startswith(("unix:", "unix-abstract:")):
        return True
    return all(is_local_host(host) for host in _hosts(target))


def is_localhost(target: str) -> bool:
    """Return whether a target is the name ``localhost`` or one below it."""
    return all(host.lower() == "localhost" or host.lower().endswith(".localhost") for host in _hosts(target))


def _hosts(target: str) -> list[str]:
    """Return the hosts of a target: several for a list of addresses, ``ipv4:10.0.0.1:50051,10.0.0.2:50051``."""
    addresses = _GRPC_SCHEME.sub("", target).rpartition("/")[2].split(",")
    return [(_HOST_PORT.fullmatch(address) or [address, address])[1].strip("[]") for address in addresses]


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _invalid(text: str, reason: str) -> InvalidAddress:
    return InvalidAddress(f"address: got '{text}': {reason}; expected host:port, such as 127.0.0.1:{DEFAULT_PORT}")
