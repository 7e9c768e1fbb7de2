"""Generate the Grafana dashboard and the PrometheusRule of Kubernetes. Exits with 1 if a checked-in file is stale.

With ``--write``, writes the files. ``check_generated.py`` calls it too.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from monitoring.dashboard import dashboard_json
from monitoring.prometheus_rule import prometheus_rule

ROOT = Path(__file__).parent.parent
FILES: dict[str, Callable[[], str]] = {
    "deploy/grafana/dashboards/digitserve.json": dashboard_json,
    "deploy/kubernetes/components/monitoring/prometheus-rule.yaml": lambda: prometheus_rule(
        ROOT / "deploy/prometheus/rules"
    ),
}


def stale_files(*, write: bool) -> list[str]:
    """Generate all files, write them if ``write`` is set, and return the names of those that differ."""
    stale = []
    for name, generate in FILES.items():
        path, text = ROOT / name, generate()
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            stale.append(name)
    return stale


def main() -> int:
    """Check the files; with ``--write``, write them."""
    stale = stale_files(write="--write" in sys.argv)
    if stale:
        print(f"stale: {', '.join(stale)}; run 'make docs' and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
