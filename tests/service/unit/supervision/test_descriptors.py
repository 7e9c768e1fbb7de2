"""File descriptors: the limit is raised where possible, and some are kept for workers."""

import os
import resource
from pathlib import Path

import pytest

from digitserve.supervision import descriptors
from support.log_lines import capture_logs

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "limit"),
    [
        (1024, 524_288, 524_288),
        (1024, 1_000_000_000, descriptors.MAX_DESCRIPTORS),
        (1024, INFINITY, descriptors.MAX_DESCRIPTORS),
        (8192, 8192, 8192),
        (INFINITY, INFINITY, descriptors.MAX_DESCRIPTORS),
        (2_000_000, 2_000_000, 2_000_000),
    ],
)
def test_the_soft_limit_is_raised(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, limit: int) -> None:
    """To the hard limit, but not beyond a million; a higher one is not lowered. There is no warning."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    with capture_logs() as lines:
        assert descriptors.raise_limit(4096) == limit
    assert limits[1:] == ([] if soft in {hard, INFINITY} else [(limit, hard)])
    assert lines == []


def test_too_few_descriptors_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning has the limit and what is needed for all connections."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    with capture_logs() as lines:
        assert descriptors.raise_limit(4096) == 1024
    (line,) = lines
    assert (line["log_level"], line["limit"], line["needed"]) == ("warning", 1024, 4160)


def test_descriptors_are_kept_for_workers() -> None:
    """Open descriptors and those that workers need are subtracted; the result is at least 0."""
    with Path(os.devnull).open():
        left = descriptors.num_left(1000, 4)
        with Path(os.devnull).open():
            assert descriptors.num_left(1000, 4) == left - 1
        assert descriptors.num_left(1000, 5) == left - descriptors.SLOT_RESERVE
    assert descriptors.num_left(10, 4) == 0
