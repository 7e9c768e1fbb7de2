"""The chaos run: traffic of many kinds, faults, and a checker of every outcome (``make chaos``).

    PYTHONPATH=tests python tests/fuzz/chaos.py --seconds 240 --seed 1

The same seed gives the same plan of faults and requests; the schedule of the system differs. ``docs/reliability.md``, which
``--write`` generates, lists the faults and the results.
"""

import argparse
import sys
from pathlib import Path

from support.chaos import report
from support.chaos.run import run_chaos

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Run as a command; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=200.0, help="of episodes; each fault is injected at least once (default 200)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the plan (default 1)")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    findings = run_chaos(options.seconds, options.seed)
    print(f"{findings.num_requests:,} requests, {len(findings.violations)} violations")
    if options.write:
        PAGE.write_text(report.write(findings))
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
