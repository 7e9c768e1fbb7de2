"""One load generator process: ``python -P -m digitserve.bench.process``, started by ``coordinator``.

    from the parent: the process's index and the plan; the start time; then anything, or the channel's end, means "stop"
    to the parent:   ``connected``, or ``unreachable``, ``denied`` (TLS) or ``unusable`` (credentials); ``running``;
                     ``counts`` repeatedly; ``done``

The parent sends "stop" only after ``running``. Otherwise the channel could read both messages into its buffer, and a
message in the buffer does not make the file descriptor readable.
"""

import gc
from contextlib import suppress
from pathlib import Path

from digitserve.bench.counts import Counts
from digitserve.bench.load import HandshakeFailed, Load, Unreachable
from digitserve.bench.plan import Plan
from digitserve.child_process import Channel, ChannelClosed
from digitserve.errors import CredentialsError

_TIMER_SLACK = Path("/proc/self/timerslack_ns")
"""How late Linux may wake this process from a timed wait; 50 us by default."""


def main() -> None:
    """Run this process's share of the plan; end early, without an error, if the parent process has ended."""
    with suppress(OSError):
        _TIMER_SLACK.write_text("1000")
    with suppress(ChannelClosed):
        _run(Channel.to_parent())


def _run(channel: Channel) -> None:
    def report(counts: Counts) -> None:
        channel.send({"event": "counts", "counts": counts.to_json()})

    first = channel.receive()
    try:
        load = Load(Plan.from_json(first["plan"]), first["index"], report)
        load.connect()
    except CredentialsError as error:
        channel.send({"event": "unusable", "argument": error.argument, "reason": error.reason})
        return
    except Unreachable as error:
        event = "denied" if isinstance(error, HandshakeFailed) else "unreachable"
        channel.send({"event": event, "message": str(error)})
        return
    channel.send({"event": "connected"})
    start_s = channel.receive()
    channel.send({"event": "running"})
    load.stop_when_readable(channel.fileno())
    gc.collect()
    gc.freeze()
    measured_s, cpu_s = load.run(start_s)
    load.close()
    channel.send({"event": "done", "measured_s": measured_s, "cpu_s": cpu_s})


if __name__ == "__main__":
    main()
