"""The CPU budget on recorded trees of /proc and /sys: whatever the container engine, what may really be used."""

import os
from pathlib import Path

import pytest

from digitserve.supervision.cpu_budget import cpu_budget

HOST = 64
"""CPUs of the affinity mask where the quota should decide."""

V1_GROUPS = """\
12:pids:{group}
11:cpuset:{group}
10:memory:{group}
9:cpu,cpuacct:{group}
8:freezer:{group}
1:name=systemd:{group}
"""


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(quota_us: int, directory: str, period_us: int = 100_000) -> dict[str, str]:
    """Return the files of one group of cgroup v1."""
    return {f"{directory}/cpu.cfs_quota_us": f"{quota_us}\n", f"{directory}/cpu.cfs_period_us": f"{period_us}\n"}


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    """On a system that shows no cgroups at all, the affinity mask is the budget."""
    assert cpu_budget(tmp_path, affinity=6) == 6.0


def test_this_very_system_gives_a_budget_within_its_affinity() -> None:
    """On the real files the parser ends, with a number of cores that can be."""
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
def test_the_quota_of_cgroup_v2_counts(tmp_path: Path, cpu_max: str, cores: float) -> None:
    """Quota over period, whole or fractional; max means no quota."""
    root = plant(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max})
    assert cpu_budget(root, affinity=HOST) == pytest.approx(cores)


def test_the_affinity_counts_where_it_is_smaller(tmp_path: Path) -> None:
    """A process bound to two CPUs has two, however large its quota."""
    root = plant(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    assert cpu_budget(root, affinity=2) == 2.0


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    """A pod's quota stands on an outer group: what is nested in it can have no more."""
    top = "sys/fs/cgroup/kubepods.slice"
    root = plant(
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


def test_a_group_without_the_controller_is_passed_on_the_way_up(tmp_path: Path) -> None:
    """A user session's own group has no cpu.max; the groups around it may."""
    root = plant(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/session-3.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user.slice/session-3.scope/cgroup.procs": "1\n",
        },
    )
    assert cpu_budget(root, affinity=HOST) == 4.0


def test_in_a_container_the_mount_is_the_groups_own(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's, and does not exist under the container's mount."""
    root = plant(
        tmp_path,
        {"proc/self/cgroup": "0::/system.slice/docker-3f9a.scope\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"},
    )
    assert cpu_budget(root, affinity=HOST) == 2.5


@pytest.mark.parametrize(("quota_us", "cores"), [(-1, HOST), (300_000, 3.0), (50_000, 0.5), (0, HOST)])
def test_the_quota_of_cgroup_v1_counts(tmp_path: Path, quota_us: int, cores: float) -> None:
    """-1 means no quota."""
    root = plant(
        tmp_path, {"proc/self/cgroup": V1_GROUPS.format(group="/")} | v1(quota_us, "sys/fs/cgroup/cpu,cpuacct")
    )
    assert cpu_budget(root, affinity=HOST) == pytest.approx(cores)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_cgroup_v1_is_found_under_each_name_of_its_mount(tmp_path: Path, mount: str) -> None:
    """Distributions mount the controller under its name, or together with cpuacct in either order."""
    controllers = mount if "," in mount else "cpu"
    files = {"proc/self/cgroup": f"4:{controllers}:/docker/3f9a\n0::/docker/3f9a\n"}
    root = plant(tmp_path, files | v1(200_000, f"sys/fs/cgroup/{mount}/docker/3f9a"))
    assert cpu_budget(root, affinity=HOST) == 2.0


def test_in_a_container_of_cgroup_v1_the_mount_is_the_groups_own(tmp_path: Path) -> None:
    """As for v2: /docker/<id> is the host's path, the container sees its group at the mount."""
    files = {"proc/self/cgroup": V1_GROUPS.format(group="/docker/3f9a")}
    root = plant(tmp_path, files | v1(150_000, "sys/fs/cgroup/cpu,cpuacct"))
    assert cpu_budget(root, affinity=HOST) == 1.5


def test_outer_groups_of_cgroup_v1_count(tmp_path: Path) -> None:
    """A quota of -1 inside one of 200 % is 200 %."""
    files = {"proc/self/cgroup": V1_GROUPS.format(group="/pod/container")}
    files |= v1(-1, "sys/fs/cgroup/cpu,cpuacct/pod/container") | v1(200_000, "sys/fs/cgroup/cpu,cpuacct/pod")
    files |= v1(-1, "sys/fs/cgroup/cpu,cpuacct")
    assert cpu_budget(plant(tmp_path, files), affinity=HOST) == 2.0


def test_a_hybrid_system_counts_what_either_says(tmp_path: Path) -> None:
    """The cpu controller may be in v1 while v2 stands beside it, mounted as unified, without controllers."""
    files = {"proc/self/cgroup": "5:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n"}
    files |= v1(350_000, "sys/fs/cgroup/cpu,cpuacct/job") | {"sys/fs/cgroup/unified/job/cgroup.procs": "1\n"}
    assert cpu_budget(plant(tmp_path, files), affinity=HOST) == 3.5


def test_another_controller_of_a_similar_name_is_not_taken_for_it(tmp_path: Path) -> None:
    """Neither cpuset nor cpuacct alone holds a quota."""
    files = {"proc/self/cgroup": "3:cpuset:/\n2:cpuacct:/\n"}
    files |= v1(100_000, "sys/fs/cgroup/cpuset") | v1(100_000, "sys/fs/cgroup/cpuacct")
    assert cpu_budget(plant(tmp_path, files), affinity=HOST) == HOST


def test_a_group_path_with_colons_is_read_whole(tmp_path: Path) -> None:
    """Systemd and containerd put colons into group names."""
    group = "system.slice:docker:3f9a"
    files = {"proc/self/cgroup": f"0::/{group}\n", f"sys/fs/cgroup/{group}/cpu.max": "500000 100000\n"}
    assert cpu_budget(plant(tmp_path, files), affinity=HOST) == 5.0


def test_a_budget_is_never_zero(tmp_path: Path) -> None:
    """However small the quota, there is something to divide by."""
    root = plant(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 1000000\n"})
    assert cpu_budget(root, affinity=HOST) == 0.01
