"""Detection of fast int8 multiplication, from the registers of CPUID or the text of /proc/cpuinfo."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitserve.inference.selection import Int8Speed
from digitserve.settings import Settings
from digitserve.supervision import vnni

REGISTERS = st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4)
OTHER_FLAGS = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True).filter(lambda flag: "vnni" not in flag))


@given(leaf7=REGISTERS, leaf7_1=REGISTERS, other=REGISTERS)
def test_each_bit_is_found_and_no_other(leaf7: list[int], leaf7_1: list[int], other: list[int]) -> None:
    """AVX512_VNNI is bit 11 of ECX of leaf 7, AVX_VNNI bit 4 of EAX of its subleaf 1, whatever all other bits are."""
    leaves = {1: leaf7, 6: leaf7_1}
    expected = "AVX512_VNNI" if leaf7[2] & 1 << 11 else "AVX_VNNI" if leaf7_1[0] & 1 << 4 else None
    assert vnni.vnni(lambda index: leaves.get(index, other)) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=OTHER_FLAGS, after=OTHER_FLAGS, name=st.sampled_from(["avx512_vnni", "avx_vnni", None]))
def test_flags_of_cpuinfo_without_glibc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: list[str], after: list[str], name: str | None
) -> None:
    """If glibc has no function for it, the flag is found among any others, and only there."""
    monkeypatch.setattr(vnni, "_glibc", lambda: None)
    cpuinfo = tmp_path / "cpuinfo"
    flags = " ".join([*before, *([name] if name else []), *after])
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: with avx512_vnni\nflags\t\t: {flags}\nvmx flags\t: avx_vnni\n\nprocessor\t: 1\n"
    )
    assert vnni.vnni(cpuinfo=cpuinfo) == (name and name.upper())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Features\t: fp asimd asimddp i8mm\n",
        "flags\t\t: fpu avx512_vnni2 xavx_vnni avx512vnni\n",
        "flags\nflags:\n",
        None,
    ],
    ids=["empty", "ARM", "similar flags", "no flags", "missing"],
)
def test_a_processor_that_is_not_known_to_be_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """Without glibc's function and the flags, nothing is found, and no exception is raised."""
    monkeypatch.setattr(vnni, "_glibc", lambda: None)
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert vnni.vnni(cpuinfo=cpuinfo) is None


def test_glibc_and_cpuinfo_agree_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function of glibc, if there is one, finds what the kernel lists."""
    found = vnni.vnni()
    monkeypatch.setattr(vnni, "_glibc", lambda: None)
    assert vnni.vnni() == found


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [
        ("cpu", "AVX_VNNI", Int8Speed(is_fast=True, reason="the processor has AVX_VNNI")),
        ("cpu", None, Int8Speed(is_fast=False, reason="the processor has neither AVX512_VNNI nor AVX_VNNI")),
        ("cuda", "AVX_VNNI", Int8Speed(is_fast=False, reason="the device is cuda")),
    ],
)
def test_the_reason_for_the_choice(
    monkeypatch: pytest.MonkeyPatch, device: str, found: str | None, expected: Int8Speed
) -> None:
    """Banner and log show which instructions the processor has, or that the network runs elsewhere."""
    monkeypatch.setattr(vnni, "vnni", lambda: found)
    assert vnni.int8_speed(Settings(device=device)) == expected
