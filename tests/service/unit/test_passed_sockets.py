"""Connections that the supervisor passes to its workers."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from digitserve.passed_sockets import Passing, Secret, abstract_name


def test_a_passed_connection_connects_both_ends() -> None:
    """What one end sends arrives at the other, also if the connection was made before the worker started."""
    passing = Passing()
    ours = passing.connect(0)
    worker = passing.listener.dup()
    theirs, _ = worker.accept()
    with contextlib.closing(passing), worker, ours, theirs:
        ours.sendall(b"question")
        assert theirs.recv(100) == b"question"
        theirs.sendall(b"answer")
        assert ours.recv(100) == b"answer"


def test_the_sockets_have_no_name() -> None:
    """No process can find a name to connect to, in a file system or in the abstract namespace."""
    passing = Passing()
    with contextlib.closing(passing), passing.connect(0) as ours:
        assert not passing.listener.getsockname() and not ours.getpeername()
        inodes = {str(Path(f"/proc/self/fd/{one.fileno()}").readlink())[8:-1] for one in (passing.listener, ours)}
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        assert sorted(len(line) for line in lines if line[6] in inodes) == [7, 7]  # the eighth column is the name


def test_a_worker_whose_supervisor_died_waits_for_nothing() -> None:
    """Without the supervisor there is nothing to accept, and no end of file that an event loop would report again and again."""
    passing = Passing()
    with passing.listener.dup() as worker:
        passing.close()
        worker.setblocking(False)
        with pytest.raises(BlockingIOError):
            worker.accept()


def test_connections_that_nobody_accepts_are_bounded() -> None:
    """A worker that accepts nothing causes an error, not a wait or connections without number."""
    passing = Passing()
    with contextlib.ExitStack() as stack:
        stack.callback(passing.close)
        with pytest.raises(BlockingIOError):  # noqa: PT012 - the limit is that of the system
            while True:
                stack.enter_context(passing.connect(0))


def test_names_for_grpcio_differ_and_reveal_no_token() -> None:
    """Each worker has a name of its own, which does not contain the token of its slot."""
    first, second = Secret(), Secret()
    names = {abstract_name(token, pid) for token in (first.token, second.token) for pid in (1, 2)}
    assert len(names) == 4
    assert not any(first.token in name for name in names)


def test_only_the_worker_itself_gets_calls_by_name() -> None:
    """A process that takes the name of a worker that has ended gets no connection, and so no token."""
    secret = Secret()
    with socket.socket(socket.AF_UNIX) as worker, socket.socket(socket.AF_UNIX) as other:
        for one, pid in ((worker, os.getpid()), (other, os.getppid())):
            one.bind("\0" + abstract_name(secret.token, pid))
            one.listen()
        secret.connect(os.getpid()).close()
        with pytest.raises(ConnectionRefusedError, match="in place of worker"):
            secret.connect(os.getppid())


def test_a_drained_worker_refuses_connections() -> None:
    """Once the worker has closed the last copy, connections fail, and those that it has not accepted end."""
    passing = Passing()
    worker = passing.listener.dup()
    with contextlib.closing(passing), passing.connect(0) as waiting:
        passing.drain()
        with passing.connect(0):
            """The worker still accepts."""
        worker.close()
        assert waiting.recv(1) == b""
        with pytest.raises(OSError, match="refused|reset"):
            passing.connect(0)
