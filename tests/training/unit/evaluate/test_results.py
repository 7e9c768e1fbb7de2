"""The table of all runs: atomic writes, one row per command, one line per group of seeds."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from digitserve_training.errors import RunError
from digitserve_training.evaluate import results
from support.result_rows import ROW, SECOND, SMALL


def test_round_trip(tmp_path: Path) -> None:
    """Rows are read as they were added, sorted by preset and seed, whatever the order of adding."""
    path = tmp_path / "results.json"

    results.add(path, [SMALL, SECOND])
    results.add(path, [ROW])

    assert results.read(path) == (ROW, SECOND, SMALL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_missing_file_has_no_rows(tmp_path: Path) -> None:
    """A file that does not exist has no rows; this is not an error."""
    assert results.read(tmp_path / "results.json") == ()


def test_row_with_the_same_command_is_replaced(tmp_path: Path) -> None:
    """A run that is evaluated twice has one row, the later one."""
    path = tmp_path / "results.json"
    again = replace(ROW, test_accuracy=0.999)

    results.add(path, [ROW, SECOND])
    results.add(path, [again])

    assert results.read(path) == (again, SECOND)


@pytest.mark.parametrize("content", ["", "[", "{}x", '[{"preset": "compact"}]', "[3]", "7"])
def test_damaged_file_is_rejected_and_unchanged(tmp_path: Path, content: str) -> None:
    """A file in another format is rejected with its name, and adding rows does not overwrite it."""
    path = tmp_path / "results.json"
    path.write_text(content)

    with pytest.raises(RunError, match=r"results\.json is not a table of results: .*--results"):
        results.read(path)
    with pytest.raises(RunError, match="is not a table of results"):
        results.add(path, [ROW])
    assert path.read_text() == content


def test_failed_write_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, the existing rows are kept and no temporary file remains."""
    path = tmp_path / "results.json"
    results.add(path, [ROW])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.add(path, [SECOND])

    assert results.read(path) == (ROW,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_table_has_one_line_per_group() -> None:
    """Lines are sorted by multiply-adds; accuracy is the mean over seeds with its deviation; thousands are separated;
    the command can be copied.
    """
    header, rule, first, second = results.table([SECOND, ROW, SMALL]).splitlines()

    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith(
        "| `tiny` | 335,658 | 900,000 | 40 | 55,000 / 5,000 | 1 | 99.500 % | 0.0165 | 96.000 % | 812"
    )
    assert second.startswith("| `compact` | 335,658 | 3,586,432 | 40 | 55,000 / 5,000 | ")
    assert "99.600 ± 0.141 %" in second
    assert "| 806 |" in second
    assert first.endswith("| `digitserve-train train --preset tiny` |")


def test_empty_table_is_its_header() -> None:
    """Without rows the table consists of its header."""
    assert len(results.table([]).splitlines()) == 2


def test_only_runs_that_differ_in_seed_are_grouped() -> None:
    """Runs of one preset that differ in more than the seed have separate lines."""
    shorter = replace(ROW, command=f"{ROW.command} --limit 600")

    assert [len(group) for group in results.group_by_seed([ROW, SECOND])] == [2]
    assert [len(group) for group in results.group_by_seed([ROW, shorter])] == [1, 1]
