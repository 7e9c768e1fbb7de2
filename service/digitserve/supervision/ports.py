"""The sockets of the service: the gRPC port, which workers share, and the HTTP port.

``supervisor.serve`` makes them before any process or event loop is started.

    reserve       ──▶ bound, never listening, held by the supervisor ──SO_REUSEPORT──▶ workers of grpcio listen on the port
    SlotListeners ──▶ one listening socket per slot on that port, inherited by each native worker of the slot
    listen        ──▶ listening, used by the supervisor's HTTP server
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Self

from digitserve.errors import SettingsError
from digitserve.log import get_logger

_BACKLOG = 128

_SLOT_BACKLOG = 1_024
"""Connections that the kernel keeps for a slot until a worker accepts them: they wait while a worker is replaced."""

# Of linux/filter.h and asm-generic/socket.h: classic BPF, because the extended one needs privileges.
_SO_ATTACH_REUSEPORT_CBPF = 51
_LOAD_WORD, _MODULO, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x94, 0x15, 0x06
_RANDOM = 0xFFFF_F000 + 56
"""Ancillary word SKF_AD_RANDOM: a random number instead of a part of the packet."""

_log = get_logger("digitserve.supervision.ports")


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


class SlotListeners:
    """The listening sockets of the gRPC port, one per slot: all are open from the start of the service until it drains.

    A worker accepts on an inherited copy of its slot's socket. When it ends, connections wait for the slot's next worker:
    the kernel resets them only when the last copy is closed. ``direct`` keeps new ones away from slots without a worker.

    Owned by the supervisor.
    """

    def __init__(self, reserved: socket.socket, num_slots: int) -> None:
        """Listen.

        Args:
            reserved: of ``reserve``.
            num_slots: number of sockets.

        Raises:
            OSError: the system allows no more sockets.
        """
        self._sockets: list[socket.socket] = []
        self._directs = True
        try:
            for _ in range(num_slots):
                listener = socket.socket(reserved.family, socket.SOCK_STREAM)
                self._sockets.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.bind(reserved.getsockname())
                listener.listen(_SLOT_BACKLOG)
                # Accepted connections inherit it: connections that the last service left, open or closed, must not prevent the
                # next one from binding the port. Set after ``listen``; ``_bind`` has the reason.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the sockets."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sockets."""
        self.close()

    def __getitem__(self, slot: int) -> socket.socket:
        """Return the socket of a slot."""
        return self._sockets[slot]

    def direct(self, accepting: Sequence[int]) -> None:
        """Assign new connections to some slots only, at random; the others keep those that they have.

        Args:
            accepting: numbers of the slots whose workers accept connections. If there are none, all get connections, which
                then wait.
        """
        if not (self._sockets and self._directs):
            return
        program = _choose_randomly(accepting or range(len(self._sockets)))
        instructions = ctypes.create_string_buffer(program, len(program))
        filter_program = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
        try:
            # A program belongs to all sockets of the port.
            self._sockets[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, filter_program)
        except OSError as error:  # a sandbox that emulates the kernel
            self._directs = False
            _log.warning("new connections may wait for a worker that is being replaced", error=error.strerror)

    def close(self) -> None:
        """Close the supervisor's copies. Each port is refused once its worker has closed the last one."""
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()


def _choose_randomly(indices: Sequence[int]) -> bytes:
    """Return a BPF program that chooses one of the sockets with these indices, which count the calls of ``listen``.

    If a socket is closed and the index does not exist any more, the kernel chooses.
    """
    program = [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(indices))]
    for number, index in enumerate(indices):
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, index)]
    program.append((_RETURN, 0, 0, indices[0]))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


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
