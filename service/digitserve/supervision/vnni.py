"""Whether this processor multiplies 8-bit integers fast: with VNNI instructions, AVX512_VNNI or AVX_VNNI.

``serve`` and ``serve --tune`` call ``int8_speed`` once, for ``--precision auto``. int8 has been measured with VNNI only. So ``auto``
selects float32 on all other processors, including ARM, although ARM has other instructions for int8. Intel's AMX needs no rule,
because processors with it have AVX512_VNNI.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from digitserve.inference.selection import Int8Speed
from digitserve.settings import Settings

CPUINFO = Path("/proc/cpuinfo")


class Feature(NamedTuple):
    """An instruction set.

    Attributes:
        name: as Linux and glibc spell it, in capital letters.
        leaf: index of its leaf of the instruction CPUID in glibc.
        register: 0 to 3 for EAX, EBX, ECX, EDX.
        bit: in this register.

    Source: bits/platform/x86.h of glibc; Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID.
    """

    name: str
    leaf: int
    register: int
    bit: int


FEATURES = (
    Feature("AVX512_VNNI", leaf=1, register=2, bit=11),  # CPUID leaf 7
    Feature("AVX_VNNI", leaf=6, register=0, bit=4),  # CPUID leaf 7, subleaf 1
)


class _Leaf(ctypes.Structure):
    """``struct cpuid_feature``: what the processor has, and what the kernel has enabled; EAX to EDX each."""

    _fields_ = (("cpuid", ctypes.c_uint32 * 4), ("active", ctypes.c_uint32 * 4))


def int8_speed(settings: Settings) -> Int8Speed:
    """Return whether ``--precision auto`` prefers int8 on the device of the settings, which is resolved."""
    if settings.device != "cpu":
        return Int8Speed(is_fast=False, reason=f"the device is {settings.device}")
    found = vnni()
    if found is None:
        return Int8Speed(is_fast=False, reason="the processor has neither AVX512_VNNI nor AVX_VNNI")
    return Int8Speed(is_fast=True, reason=f"the processor has {found}")


def vnni(active: Callable[[int], Any] | None = None, cpuinfo: Path = CPUINFO) -> str | None:
    """Return the name of the first instruction set of ``FEATURES`` that can be used; None without any.

    Args:
        active: returns the four registers of a leaf with what is enabled; by default glibc's. If glibc has no such function (before
            2.33, musl, other processors), ``cpuinfo`` is read.
        cpuinfo: normally ``/proc/cpuinfo``. In emulators and sandboxes it may have the flags of the real processor, so glibc's answer
            takes precedence.
    """
    active = active or _glibc()
    if active is not None:
        return next((one.name for one in FEATURES if active(one.leaf)[one.register] >> one.bit & 1), None)
    flags = _flags(cpuinfo)
    return next((one.name for one in FEATURES if one.name.lower() in flags), None)


def _glibc() -> Callable[[int], Any] | None:
    """Return a function like ``x86_cpu_active`` of glibc: ``sys/platform/x86.h`` calls the same one."""
    try:
        leaf = ctypes.CDLL(None)["__x86_get_cpuid_feature_leaf"]
    except (OSError, AttributeError):
        return None
    leaf.argtypes, leaf.restype = (ctypes.c_uint,), ctypes.POINTER(_Leaf)
    return lambda index: leaf(index).contents.active


def _flags(cpuinfo: Path) -> set[str]:
    """Return the flags of the first processor in ``/proc/cpuinfo``; none if it cannot be read."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return next(
        (set(line.partition(":")[2].split()) for line in lines if line.partition(":")[0].strip() == "flags"), set()
    )
