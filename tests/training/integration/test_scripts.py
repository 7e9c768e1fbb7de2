"""The scripts that produce figures of the documentation."""

import csv
import subprocess
import sys
from pathlib import Path

from support.digits import needs_mnist

ROOT = Path(__file__).parents[3]


def draw(output: Path) -> subprocess.CompletedProcess[str]:
    """Run the script for five scans."""
    command = [sys.executable, "-m", "scripts.draw_page_edges", str(output), "--count", "5"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_mnist
def test_page_edges_are_drawn_as_a_folder_for_evaluate(tmp_path: Path) -> None:
    """Each scan has a label and one kind of artefact; an existing folder is not written into."""
    ended = draw(tmp_path / "scans")

    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "scans" / "labels.csv").open() as table:
        rows = [*csv.DictReader(table)]
    assert {row["set"] for row in rows} == {"dark_outside", "gutter", "bar", "soft_fold", "pages_below"}
    assert {row["label"] for row in rows} <= set("0123456789")
    assert sorted(path.name for path in (tmp_path / "scans").glob("*.png")) == [f"{number}.png" for number in range(5)]
    again = draw(tmp_path / "scans")
    assert again.returncode == 2
    assert "exists; expected a folder that does not" in again.stderr
    assert "Traceback" not in again.stderr
