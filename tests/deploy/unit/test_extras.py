"""The extras of pyproject.toml declare what the code that they are for imports."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]

IMPORTED = """
import json, sys
before = {*sys.modules}
import digitserve.bench.command, digitserve.cli, digitserve.top.command
print(json.dumps(sorted({name.partition(".")[0] for name in {*sys.modules} - before})))
"""


def needed(names: set[str]) -> set[str]:
    """Return distributions with all that they need."""
    found, left = set(), {canonicalize_name(name) for name in names}
    while left:
        name = left.pop()
        found.add(name)
        required = [Requirement(line) for line in requires(name) or ()]
        active = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
        left |= {canonicalize_name(one.name) for one in active} - found
    return found


def test_bench_and_top_need_only_the_extra_bench() -> None:
    """``digitserve[bench]`` alone, without the service, has all packages that ``bench`` and ``top`` import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line).name for line in project["dependencies"] + project["optional-dependencies"]["bench"]]
    done = subprocess.run([sys.executable, "-c", IMPORTED], stdout=subprocess.PIPE, text=True, check=True)
    distributions = packages_distributions()
    used = {canonicalize_name(one) for module in json.loads(done.stdout) for one in distributions.get(module, ())}
    assert {"hpack", "prometheus-client", "numpy"} <= used
    assert used - {"digitserve"} <= needed({*declared})
