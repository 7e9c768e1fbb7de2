"""File descriptors: raises the limit, and reserves some for starting workers. ``supervisor.serve`` calls it first.

The limit applies to each process. Workers inherit it. Each worker needs one descriptor per connection. The supervisor needs
some for each worker that it starts, even while the HTTP port has its maximum number of connections.
"""

import resource
from pathlib import Path

from digitserve.log import get_logger

MAX_DESCRIPTORS = 1 << 20
"""The limit is raised to at most this: some systems allow 1e9, and some programs allocate memory per possible descriptor."""

WORKER_RESERVE = 64
"""Descriptors of a worker in addition to its connections: fewer than 20, and some for libraries."""

SUPERVISOR_RESERVE = 16
"""Descriptors that the supervisor needs besides those of workers and of connections: sockets, the event loop, the log."""

SLOT_RESERVE = 8
"""Descriptors that a slot needs while it starts a worker: shared memory, channel, pidfd, listening socket, and Popen's."""

_log = get_logger("digitserve.supervision.descriptors")


def raise_limit(num_connections: int) -> int:
    """Raise this process's soft limit of file descriptors to the hard one; return the limit.

    Logs a warning if a worker cannot have all its connections.

    Args:
        num_connections: maximum number of connections of a worker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    else:
        limit = MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    needed = num_connections + WORKER_RESERVE
    if limit < needed:
        _log.warning(
            "too few file descriptors for all connections of a worker",
            limit=limit, needed=needed, advice="raise the hard limit: ulimit -Hn, LimitNOFILE=, --ulimit nofile=",
        )  # fmt: skip
    return limit


def num_left(limit: int, num_slots: int) -> int:
    """Return how many descriptors the supervisor can use for connections of the HTTP port; at least 0.

    Args:
        limit: of this process.
        num_slots: number of workers.
    """
    return max(0, limit - num_open() - SUPERVISOR_RESERVE - num_slots * SLOT_RESERVE)


def num_open() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
