"""The watcher of the active file reports each change once."""

from pathlib import Path
from typing import Any

import pytest

from digitserve.inference.active_file import active_path, write_active
from digitserve.inference.selection import Int8Speed, Selection
from digitserve.settings import Settings
from digitserve.supervision.reload import ActiveFileWatcher
from support.bundles import write_echo_bundle


class Reports:
    """A watcher of an active file, and what it has reported."""

    def __init__(self, models: Path, **changes: Any) -> None:
        self.models = models
        self.path = active_path(models, "digits")
        self.reports: list[str] = []
        self.watcher = ActiveFileWatcher(
            Selection(Settings(models=models, **changes), Int8Speed(is_fast=True, reason="VNNI")),
            on_activated=lambda bundle: self.reports.append(str(bundle)),
            on_refused=self.reports.append,
            on_removed=lambda: self.reports.append("removed"),
        )  # fmt: skip

    def look(self) -> list[str]:
        """Look several times, and return the new reports."""
        self.reports.clear()
        for _ in range(3):
            self.watcher.check()
        return self.reports


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    """Return a watcher of a model with two versions, the first of which is active."""
    for version in (1, 2):
        write_echo_bundle(tmp_path, version)
    write_active(tmp_path / "digits" / "active", 1)
    return Reports(tmp_path)


def test_each_activation_is_reported_once(reports: Reports) -> None:
    """Each write is reported, also of the same version and of the previous one. The file at the start is not reported."""
    assert reports.look() == []
    for version in (2, 2, 1):
        write_active(reports.path, version)
        assert reports.look() == [f"digits/{version}"]


def test_a_file_that_appears_or_is_removed_is_reported_once(reports: Reports) -> None:
    """A removed file has no version, and the next one is reported."""
    reports.path.unlink()
    assert reports.look() == ["removed"]
    reports.path.write_text("2")
    assert reports.look() == ["digits/2"]


def test_what_cannot_be_served_is_reported_once_per_change(reports: Reports) -> None:
    """A missing version, a bundle that fails a check and nonsense are refused with the reason; touching the file tries again."""
    write_active(reports.path, 3)
    assert reports.look() == ["check 'files' failed: model 'digits' has no version 3; available: 1, 2"]
    write_echo_bundle(reports.models, 3)
    assert reports.look() == []
    write_active(reports.path, 3)
    assert reports.look() == ["digits/3"]

    (reports.models / "digits" / "2" / "model.onnx").write_bytes(b"damaged")
    write_active(reports.path, 2)
    (refused,) = reports.look()
    assert "check 'sha256' failed" in refused

    reports.path.write_text("../1")
    (refused,) = reports.look()
    assert "expected a version" in refused


def test_an_activated_version_is_reported_in_the_precision_to_serve(tmp_path: Path) -> None:
    """With --precision auto it is the int8 bundle if the version has one, with int8 it is refused without one. An int8 bundle that is
    added later is reported when its version is activated again.
    """
    for version in (1, 2):
        write_echo_bundle(tmp_path, version)
    write_echo_bundle(tmp_path, 2, name="digits-int8", training={"preset": "echo", "precision": "int8"})
    auto, int8 = Reports(tmp_path, precision="auto"), Reports(tmp_path, precision="int8")
    write_active(auto.path, 2)
    assert auto.look() == int8.look() == ["digits-int8/2"]
    write_active(auto.path, 1)
    assert auto.look() == ["digits/1"]
    (refused,) = int8.look()
    assert "--precision int8: " in refused and "has no digits-int8/1" in refused
    write_echo_bundle(tmp_path, 1, name="digits-int8", training={"preset": "echo", "precision": "int8"})
    write_active(auto.path, 1)
    assert auto.look() == int8.look() == ["digits-int8/1"]
