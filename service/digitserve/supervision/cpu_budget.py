"""The CPU budget: how many cores this process may really use.

onnxruntime and ``os.cpu_count`` see the host's cores. What counts is the least of the affinity mask and of the cgroup
quotas on the way from this process's group up to the root; a container commonly has the quota on an outer group.
"""

import os
from pathlib import Path

_ROOT = Path("/")


def cpu_budget(root: Path = _ROOT, affinity: int | None = None) -> float:
    """Return the cores that this process may use, as a float of at least 0.01.

    Args:
        root: where ``proc`` and ``sys`` are found; tests give a recorded tree.
        affinity: number of CPUs in the affinity mask; asked of the system unless given.
    """
    cores = float(affinity if affinity is not None else len(os.sched_getaffinity(0)))
    return max(0.01, min([cores, *_quotas(root)]))


def _quotas(root: Path) -> list[float]:
    """List the quotas that apply, in cores, of cgroup v1 and v2 alike: hybrid systems have both."""
    quotas = []
    for mount, group in _cpu_groups(root):
        directory = mount / group.lstrip("/")
        # In a container the group's path is the host's, while the mount shows the container's own group as its top.
        if not directory.is_dir():
            directory = mount
        while True:
            quotas += _quota(directory)
            if directory == mount or mount not in directory.parents:
                break
            directory = directory.parent
    return quotas


def _cpu_groups(root: Path) -> list[tuple[Path, str]]:
    """List where the ``cpu`` controller is mounted, with this process's group there."""
    groups = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            groups += [(mount, group) for mount in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified")]
        elif "cpu" in controllers.split(","):
            groups += [(root / "sys/fs/cgroup" / name, group) for name in ("cpu", controllers, "cpu,cpuacct")]
    return [(mount, group) for mount, group in dict.fromkeys(groups) if mount.is_dir()]


def _quota(directory: Path) -> list[float]:
    v2 = _lines(directory / "cpu.max")
    if v2:
        quota, _, period = v2[0].partition(" ")
        return [] if quota == "max" else [int(quota) / int(period or 100_000)]
    quota_us, period_us = _lines(directory / "cpu.cfs_quota_us"), _lines(directory / "cpu.cfs_period_us")
    if quota_us and period_us and int(quota_us[0]) > 0:
        return [int(quota_us[0]) / int(period_us[0])]
    return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
