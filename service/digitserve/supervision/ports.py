"""The sockets of the service: the gRPC port, which workers share, and the HTTP port.

``supervisor.serve`` calls this once, before any process or event loop is started.

    reserve ──▶ bound, never listening, held by the supervisor ──SO_REUSEPORT──▶ workers listen on the same port
    listen  ──▶ listening, used by the supervisor's HTTP server
"""

import errno
import socket

from digitserve.errors import SettingsError

_BACKLOG = 128


def reserve(host: str, port: int, flag: str) -> socket.socket:
    """Bind a port on which the workers then listen with SO_REUSEPORT.

    The socket keeps the port for this service even while no worker runs.

    Args:
        host: name or address of an interface of this machine.
        port: 0 takes a free one.
        flag: the command-line flag of the port, for the error message.

    Returns:
        A bound socket that does not listen.

    Raises:
        SettingsError: the address cannot be bound, most often because the port is in use.
    """
    # First without SO_REUSEPORT: with it, a second service on the same port would start without an error.
    with _bind(host, port, flag, reuse_port=False) as probe:
        port = probe.getsockname()[1]
    return _bind(host, port, flag, reuse_port=True)


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Bind a port and listen on it.

    Args:
        host: name or address of an interface of this machine.
        port: 0 takes a free one.
        flag: the command-line flag of the port, for the error message.

    Raises:
        SettingsError: the address cannot be bound.
    """
    listener = _bind(host, port, flag, reuse_port=False)
    listener.listen(_BACKLOG)
    return listener


def _bind(host: str, port: int, flag: str, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise _unknown_host(host, error) from None
    bound = socket.socket(family, kind, protocol)
    # With SO_REUSEADDR, closed connections of a service that has just ended do not block the port. A reserved socket must
    # not have it: two sockets that both have it and do not listen can share the port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if reuse_port else socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _unknown_host(host, error) from None
        raise SettingsError(f"cannot use port {port} on {host}: {error.strerror}; "
                            f"stop the process that uses it, or choose another port with {flag}") from None  # fmt: skip
    return bound


def _unknown_host(host: str, error: OSError) -> SettingsError:
    return SettingsError(
        f"--host: got '{host}', which is not an address of this machine ({error.strerror}); "
        "expected one such as 127.0.0.1, ::1, or 0.0.0.0"
    )
