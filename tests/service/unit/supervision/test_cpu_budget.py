"""CPU budget on recorded trees of /proc and /sys, as different container engines set them up."""

import os
from pathlib import Path

import pytest

from digitserve.supervision.cpu_budget import cpu_budget

HOST = 64
"""CPUs in the affinity mask of tests in which the quota is the smaller limit."""

V1_GROUPS = """\
12:pids:{group}
11:cpuset:{group}
10:memory:{group}
9:cpu,cpuacct:{group}
8:freezer:{group}
1:name=systemd:{group}
"""


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a directory, and return the directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(quota_us: int, directory: str, period_us: int = 100_000) -> dict[str, str]:
    """Return the files of one group of cgroup v1."""
    return {f"{directory}/cpu.cfs_quota_us": f"{quota_us}\n", f"{directory}/cpu.cfs_period_us": f"{period_us}\n"}


def test_affinity_is_the_budget_without_cgroups(tmp_path: Path) -> None:
    """On a system without cgroups the affinity mask is the budget."""
    assert cpu_budget(tmp_path, affinity=6) == 6.0


def test_budget_of_this_system_is_within_its_affinity() -> None:
    """The real files of this system give a plausible number of cores."""
    assert 0.01 <= cpu_budget() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000\n", HOST),
        ("max\n", HOST),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("25000 50000\n", 0.5),
        ("200000\n", 2.0),
        ("100 1000000\n", 0.01),
        ("", HOST),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, cpu_max: str, cores: float) -> None:
    """The budget is quota divided by period, also if fractional; max means no quota."""
    root = write_tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max})
    assert cpu_budget(root, affinity=HOST) == pytest.approx(cores)


def test_affinity_is_the_budget_if_it_is_smaller(tmp_path: Path) -> None:
    """A process bound to two CPUs has a budget of two, however large its quota."""
    root = write_tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    assert cpu_budget(root, affinity=2) == 2.0


def test_smallest_quota_of_the_outer_groups(tmp_path: Path) -> None:
    """The quota of a pod is set on an outer group and limits the groups in it."""
    top = "sys/fs/cgroup/kubepods.slice"
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1/container\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            f"{top}/cpu.max": "3200000 100000\n",
            f"{top}/pod1/cpu.max": "300000 100000\n",
            f"{top}/pod1/container/cpu.max": "max 100000\n",
            f"{top}/pod2/cpu.max": "1000 100000\n",
        },
    )
    assert cpu_budget(root, affinity=HOST) == 3.0


def test_groups_without_the_controller_are_skipped(tmp_path: Path) -> None:
    """The group of a user session has no cpu.max, but an outer group may have one."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/session-3.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user.slice/session-3.scope/cgroup.procs": "1\n",
        },
    )
    assert cpu_budget(root, affinity=HOST) == 4.0


def test_container_without_cgroup_namespace(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the one on the host, which does not exist below the container's mount."""
    root = write_tree(
        tmp_path,
        {"proc/self/cgroup": "0::/system.slice/docker-3f9a.scope\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"},
    )
    assert cpu_budget(root, affinity=HOST) == 2.5


@pytest.mark.parametrize(("quota_us", "cores"), [(-1, HOST), (300_000, 3.0), (50_000, 0.5), (0, HOST)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota_us: int, cores: float) -> None:
    """The budget is quota divided by period; -1 means no quota."""
    root = write_tree(
        tmp_path, {"proc/self/cgroup": V1_GROUPS.format(group="/")} | v1(quota_us, "sys/fs/cgroup/cpu,cpuacct")
    )
    assert cpu_budget(root, affinity=HOST) == pytest.approx(cores)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_names_of_the_mount_of_cgroup_v1(tmp_path: Path, mount: str) -> None:
    """Distributions mount the controller as cpu, or together with cpuacct in either order."""
    controllers = mount if "," in mount else "cpu"
    files = {"proc/self/cgroup": f"4:{controllers}:/docker/3f9a\n0::/docker/3f9a\n"}
    root = write_tree(tmp_path, files | v1(200_000, f"sys/fs/cgroup/{mount}/docker/3f9a"))
    assert cpu_budget(root, affinity=HOST) == 2.0


def test_container_without_cgroup_namespace_on_cgroup_v1(tmp_path: Path) -> None:
    """As for v2: /docker/<id> is the path on the host, and in the container its group is at the mount point."""
    files = {"proc/self/cgroup": V1_GROUPS.format(group="/docker/3f9a")}
    root = write_tree(tmp_path, files | v1(150_000, "sys/fs/cgroup/cpu,cpuacct"))
    assert cpu_budget(root, affinity=HOST) == 1.5


def test_quota_of_an_outer_group_of_cgroup_v1(tmp_path: Path) -> None:
    """A group without a quota in a group with 200 % has 200 %."""
    files = {"proc/self/cgroup": V1_GROUPS.format(group="/pod/container")}
    files |= v1(-1, "sys/fs/cgroup/cpu,cpuacct/pod/container") | v1(200_000, "sys/fs/cgroup/cpu,cpuacct/pod")
    files |= v1(-1, "sys/fs/cgroup/cpu,cpuacct")
    assert cpu_budget(write_tree(tmp_path, files), affinity=HOST) == 2.0


def test_hybrid_system(tmp_path: Path) -> None:
    """The cpu controller may be in v1 while v2 is also mounted, as ``unified`` and without controllers."""
    files = {"proc/self/cgroup": "5:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n"}
    files |= v1(350_000, "sys/fs/cgroup/cpu,cpuacct/job") | {"sys/fs/cgroup/unified/job/cgroup.procs": "1\n"}
    assert cpu_budget(write_tree(tmp_path, files), affinity=HOST) == 3.5


def test_controllers_with_similar_names_are_ignored(tmp_path: Path) -> None:
    """Neither cpuset nor cpuacct alone has a quota."""
    files = {"proc/self/cgroup": "3:cpuset:/\n2:cpuacct:/\n"}
    files |= v1(100_000, "sys/fs/cgroup/cpuset") | v1(100_000, "sys/fs/cgroup/cpuacct")
    assert cpu_budget(write_tree(tmp_path, files), affinity=HOST) == HOST


def test_group_path_with_colons(tmp_path: Path) -> None:
    """Systemd and containerd use colons in the names of groups."""
    group = "system.slice:docker:3f9a"
    files = {"proc/self/cgroup": f"0::/{group}\n", f"sys/fs/cgroup/{group}/cpu.max": "500000 100000\n"}
    assert cpu_budget(write_tree(tmp_path, files), affinity=HOST) == 5.0


def test_budget_is_never_zero(tmp_path: Path) -> None:
    """The smallest quota still gives a budget above zero, which callers can divide by."""
    root = write_tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 1000000\n"})
    assert cpu_budget(root, affinity=HOST) == 0.01
