"""``scripts/check_generated.py``, a step of ``make lint``: incompatible protos and incomplete clones."""

import subprocess
from pathlib import Path

import check_generated
import pytest

ROOT = Path(__file__).parents[3]
PROTO = Path("digitserve/v1/digits.proto")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bytes pixels = 1;", "bytes pixels = 14;"),
        ("uint32 height = 2;", "uint64 height = 2;"),
        ("rpc GetModel(", "rpc DescribeModel("),
        ("VERDICT_UNFAMILIAR = 2;", "VERDICT_UNFAMILIAR = 22;"),
        ("package digitserve.v1;", "package digitserve.v2;"),
    ],
)
def test_an_incompatible_change_of_the_protocol_is_found(
    capfd: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    """A changed number, type, name or package of a released proto fails the check, and is named with file and line."""
    content = (ROOT / "proto" / PROTO).read_text()
    assert before in content
    released = {PROTO: content.encode()}
    assert check_generated.is_compatible(released, released)
    capfd.readouterr()
    assert not check_generated.is_compatible({PROTO: content.replace(before, after).encode()}, released)
    assert f"{PROTO}:" in capfd.readouterr().out


def test_a_removed_proto_is_found() -> None:
    """A proto that was released must not disappear; new ones may be added."""
    content = (ROOT / "proto" / PROTO).read_bytes()
    moved = {Path("digitserve/v1/moved.proto"): content}
    assert not check_generated.is_compatible(moved, {PROTO: content})
    assert check_generated.is_compatible({PROTO: content}, {})


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git repository of the project")
def test_the_baseline_is_in_the_history_and_a_shallow_clone_says_how_to_get_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The released proto is read from the history; without it, the message states the command that fetches it."""
    released = check_generated.released_protos(ROOT)
    assert b"service DigitService" in released[PROTO]
    subprocess.run(["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), tmp_path / "shallow"], check=True)
    capfd.readouterr()
    assert check_generated.released_protos(tmp_path / "shallow") is None
    assert "git fetch --unshallow" in capfd.readouterr().err


def test_an_export_without_git_is_accepted_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unpacked source archive has no history; lint states that the protos were not compared, and goes on."""
    monkeypatch.setattr(check_generated, "ROOT", tmp_path)
    assert check_generated.check_compatibility()
    assert "no git repository" in capfd.readouterr().err
