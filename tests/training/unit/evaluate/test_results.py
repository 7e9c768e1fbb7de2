"""What is promised about the table of all runs: kept whole, one row a command, summed up by preset."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from digitserve_training.errors import RunError
from digitserve_training.evaluate import results
from support.result_rows import ROW, SECOND, SMALL


def test_round_trip(tmp_path: Path) -> None:
    """Rows come back as they were kept, by preset and seed, whatever the order in which they were added."""
    path = tmp_path / "results.json"

    results.add(path, [SMALL, SECOND])
    results.add(path, [ROW])

    assert results.read(path) == (ROW, SECOND, SMALL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    """Before the first run there are no rows, and that is no error."""
    assert results.read(tmp_path / "results.json") == ()


def test_same_command_takes_the_place(tmp_path: Path) -> None:
    """A run that was evaluated again has one row, the later one."""
    path = tmp_path / "results.json"
    again = replace(ROW, test_accuracy=0.999)

    results.add(path, [ROW, SECOND])
    results.add(path, [again])

    assert results.read(path) == (again, SECOND)


@pytest.mark.parametrize("content", ["", "[", "{}x", '[{"preset": "compact"}]', "[3]", "7"])
def test_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    """A file that holds something else is refused by name, and adding to it does not overwrite it."""
    path = tmp_path / "results.json"
    path.write_text(content)

    with pytest.raises(RunError, match=r"results\.json is no table of results: .*--results"):
        results.read(path)
    with pytest.raises(RunError, match="is no table of results"):
        results.add(path, [ROW])
    assert path.read_text() == content


def test_failed_write_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while rows are written costs none of those that were there, and leaves no litter."""
    path = tmp_path / "results.json"
    results.add(path, [ROW])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.add(path, [SECOND])

    assert results.read(path) == (ROW,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_table_has_a_line_a_preset() -> None:
    """The table goes from cheap to dear networks; accuracy is the mean over seeds, with its spread; a number's
    thousands are apart; the command is one that can be copied.
    """
    header, rule, first, second = results.table([SECOND, ROW, SMALL]).splitlines()

    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith(
        "| `tiny` | 335 658 | 900 000 | 40 | 55 000 / 5 000 | 1 | 99.500 % | 0.0165 | 96.000 % | 812"
    )
    assert second.startswith("| `compact` | 335 658 | 3 586 432 | 40 | 55 000 / 5 000 | ")
    assert "99.600 ± 0.141 %" in second
    assert "| 806 |" in second
    assert first.endswith("| `digitserve-train train --preset tiny` |")


def test_table_of_nothing_is_its_head() -> None:
    """Without rows there is a table all the same, of no lines."""
    assert len(results.table([]).splitlines()) == 2


def test_only_seeds_share_a_line() -> None:
    """Runs of one preset that differ in more than the seed stand on lines of their own."""
    shorter = replace(ROW, command=f"{ROW.command} --limit 600")

    assert [len(group) for group in results.by_recipe([ROW, SECOND])] == [2]
    assert [len(group) for group in results.by_recipe([ROW, shorter])] == [1, 1]
