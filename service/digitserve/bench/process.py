"""One process of the load generator: ``python -m digitserve.bench.process INDEX``, started by ``fleet`` with exec.

Standard input: the plan, then the time to start; any line after that, or its closing, means "stop". Standard output:
JSON lines, ``connected`` or ``unreachable``, ``measured`` again and again, ``done``.
"""

import gc
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

from digitserve.bench.counts import Counts
from digitserve.bench.load import Load, Unreachable
from digitserve.bench.plan import Plan

_TIMER_SLACK = Path("/proc/self/timerslack_ns")
"""By how much Linux may be late when it wakes this process; 50 us unless told."""


def main() -> None:
    """Run one process's share."""
    # Ctrl-C reaches the whole terminal's group; the command decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        _TIMER_SLACK.write_text("1000")
    plan = Plan.from_json(sys.stdin.readline())
    try:
        load = Load(plan, int(sys.argv[1]), _report)
        load.connect()
    except Unreachable as error:
        _say(event="unreachable", message=str(error))
        return
    _say(event="connected")
    starts = sys.stdin.readline()
    if not starts:
        return
    load.watch(sys.stdin.fileno())
    gc.collect()
    gc.freeze()
    measured_s, cpu_s = load.run(float(starts))
    load.close()
    _say(event="done", measured_s=measured_s, cpu_s=cpu_s)


def _report(counts: Counts) -> None:
    _say(event="measured", counts=counts.to_json())


def _say(**message: object) -> None:
    # A parent that is gone has closed standard input as well, which ends the load.
    with suppress(BrokenPipeError):
        print(json.dumps(message), flush=True)  # noqa: T201 - standard output is the line to the command


if __name__ == "__main__":
    main()
