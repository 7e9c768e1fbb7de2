"""``docs/reliability.md``, written from the findings of a run."""

import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

from support.chaos import checker
from support.chaos.faults import FAULTS, NUM_WORKERS, STALL_S
from support.chaos.oracle import TOLERANCE
from support.chaos.run import Findings

INTRODUCTION = f"""\
`make chaos` runs `digitserve serve` with {NUM_WORKERS} workers and the native transport, sends it requests of all kinds
with all clients, injects faults, and compares every outcome with an oracle. This page is generated from such a run. A seed
determines the plan of faults and requests, but not the schedule of the system.

    make chaos                                      # about four minutes
    make chaos ARGS="--seconds 3600 --seed 7"       # an hour of random combinations, another plan
    make chaos ARGS="--seconds 3600 --write"        # also writes this page

A run consists of episodes. First each fault is injected alone, then combinations are drawn. In an episode all clients send
requests, faults are injected, the service recovers, the clients finish, and the checker reads the history: every request with
its time and every outcome. CI injects each fault once.
"""

ORACLE = f"""\
The oracle computes the answer to each image alone, with the modules of the service in the process of the test. The label and
the verdict must be the same. Probabilities and scores may differ by {TOLERANCE:g}, because a batch rounds sums differently:
by at most 4.8e-7 for 2,304 images and batches of 2 to 64. A verdict may differ only if the score is that close to the
threshold. The checker is itself tested with corrupted histories, such as a wrong label, exchanged answers, a second outcome, a
lost call or a code without a fault (`tests/fuzz/test_chaos.py`).
"""


FAULT_COLUMNS = """\
Failures are requests that failed because of the fault, by client; all others ended as without it. Recovery is the time until
all workers were ready again: median, and the longest.
"""


def write(findings: Findings) -> str:
    """Return the page."""
    return "\n".join(
        [
            "# Reliability",
            "",
            *_wrapped(INTRODUCTION),
            "",
            "## Figures",
            "",
            *_figures(findings),
            "",
            "## Faults",
            "",
            *_wrapped(FAULT_COLUMNS),
            "",
            *_faults(findings),
            "",
            "## What is checked",
            "",
            *_promises(findings),
            "",
            *_wrapped(ORACLE),
            "",
            "## Requests",
            "",
            *_kinds(findings),
            "",
            "## Clients",
            "",
            *_clients(findings),
            "",
        ]
    )


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Return the lines of a Markdown table."""
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def describe_codes(counts: Counter[str]) -> str:
    """Return counts by code, the most frequent first."""
    return ", ".join(f"{code} {count:,}" for code, count in counts.most_common())


def _wrapped(text: str) -> list[str]:
    """Wrap paragraphs at 100 columns; keep indented blocks."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        lines += [
            *(
                paragraph.split("\n")
                if paragraph.startswith("    ")
                else textwrap.wrap(" ".join(paragraph.split()), 100)
            ),
            "",
        ]
    return lines[:-1]


def _figures(findings: Findings) -> Iterator[str]:
    num_lost = sum(violation.promise == "one outcome" for violation in findings.violations)
    num_wrong = sum(violation.promise in {"answer", "version"} for violation in findings.violations)
    failed = sum(sum(one.explained.values()) for one in findings.faults.values())
    rates = findings.rates or [0.0]
    yield from table(
        ["figure", "value"],
        [
            ["seed, time with traffic", f"{findings.seed}, {findings.seconds:,.0f} s in {findings.num_episodes} episodes"],
            ["throughput", f"{statistics.median(rates):,.0f} requests/s without a fault, clients and service on {findings.num_cpus} cores"],
            ["requests in the history", f"{findings.num_requests:,}"],
            ["requests sent, including floods", f"{findings.num_inputs:,}"],
            ["frames sent by floods", f"{findings.num_frames:,}"],
            ["images compared with the oracle", f"{findings.num_images:,}"],
            ["faults injected", f"{sum(one.count for one in findings.faults.values()):,}"],
            ["workers replaced", f"{findings.num_restarts:,}"],
            ["requests lost (without an outcome)", f"{num_lost:,}"],
            ["wrong answers", f"{num_wrong:,}"],
            ["requests that failed because of a fault", f"{failed:,}"],
            ["failures without an explanation", f"{sum(one.promise == 'code' for one in findings.violations):,}"],
            ["largest memory of a worker", f"{findings.peak_bytes / 1e6:.0f} MB"],
        ],
    )  # fmt: skip


def _faults(findings: Findings) -> Iterator[str]:
    rows = []
    for name, fault in FAULTS.items():
        figures = findings.faults.get(name)
        if figures is None:
            rows.append([name, fault.text, fault.injection, fault.promise, "0", "", "", ""])
            continue
        failed = describe_codes(Counter({f"{client}: {code}": n for (client, code), n in figures.explained.items()}))
        recovery = figures.recovery_s
        shown = f"{statistics.median(recovery):.1f} s, {max(recovery):.1f} s" if recovery else ""
        rows.append(
            [
                name, fault.text, fault.injection, fault.promise, f"{figures.count:,}", f"{figures.num_requests:,}",
                failed or "none", shown,
            ]
        )  # fmt: skip
    header = [
        "fault",
        "what happens",
        "how it is injected",
        "what must hold",
        "times",
        "requests",
        "failures",
        "recovery",
    ]
    yield from table(header, rows)
    yield ""
    yield f"The service runs with `--stall-s {STALL_S:g}`, so a stalled worker is replaced after that time."


def _promises(findings: Findings) -> Iterator[str]:
    broken = Counter(violation.promise for violation in findings.violations)
    yield from table(
        ["check", "what must hold", "violations"],
        [[name, text, f"{broken[name]:,}"] for name, text in checker.PROMISES.items()],
    )


def _kinds(findings: Findings) -> Iterator[str]:
    yield from table(
        ["kind", "what is sent", "allowed without a fault", "outcomes"],
        [
            [name, kind.text, ", ".join(sorted(kind.codes)), describe_codes(findings.outcomes.get(name, Counter()))]
            for name, kind in checker.KINDS.items()
        ],
    )
    yield ""
    yield from _wrapped(
        "grpcio and `grpc.aio` send three in ten of their calls with images to `ModelInfer`, the others to `Classify`. CLOSED "
        "is a connection that the service closed, GONE one that the client closed, RESET 1 an RST_STREAM with "
        "PROTOCOL_ERROR, NOT_SERVING the health of a worker that drains."
    )


def _clients(findings: Findings) -> Iterator[str]:
    yield from table(
        ["client", "what it is", "requests", "failures that a fault explains"],
        [
            [
                name, text, f"{findings.by_client.get(name, Counter()).total():,}",
                describe_codes(
                    Counter(
                        {
                            f"{fault} {code}": count
                            for fault, figures in findings.faults.items()
                            for (client, code), count in figures.explained.items()
                            if client == name
                        }
                    )
                )
                or "none",
            ]
            for name, text in checker.CLIENTS.items()
        ],
    )  # fmt: skip
