"""The CPU budget: the number of cores that this process may use.

``supervisor`` and ``cli`` call it once. onnxruntime and ``os.cpu_count`` count the cores of the host. The budget is the
minimum of the affinity mask and of the cgroup quotas from this process's group up to the root: in a container the quota
often applies to an outer group.
"""

import os
from pathlib import Path

_ROOT = Path("/")


def cpu_budget(root: Path = _ROOT, affinity: int | None = None) -> float:
    """Return the number of cores that this process may use, at least 0.01.

    Args:
        root: directory that contains ``proc`` and ``sys``; tests pass a recorded tree.
        affinity: number of CPUs in the affinity mask; read from the system by default.
    """
    cores = float(affinity if affinity is not None else len(os.sched_getaffinity(0)))
    return max(0.01, min([cores, *_quotas(root)]))


def _quotas(root: Path) -> list[float]:
    """List the quotas of cgroup v1 and v2 that apply, in cores. Hybrid systems have both."""
    quotas = []
    for mount, group in _cpu_groups(root):
        directory = mount / group.lstrip("/")
        # Without a cgroup namespace, a container sees the group's path on the host, but its own group at the mount point.
        if not directory.is_dir():
            directory = mount
        while True:
            quotas += _quota(directory)
            if directory == mount or mount not in directory.parents:
                break
            directory = directory.parent
    return quotas


def _cpu_groups(root: Path) -> list[tuple[Path, str]]:
    """List the mount points of the ``cpu`` controller, each with this process's group."""
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
