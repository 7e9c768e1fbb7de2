"""The package as users install it: built from the tree, and installed in environments of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
BUILD_TIMEOUT_S = 300.0
"""Patience for a build or an installation, which may download wheels."""


def build(tree: Path, output: Path, *kinds: str) -> list[Path]:
    """Build distributions of a source tree.

    Args:
        tree: with ``pyproject.toml``.
        output: folder for the files.
        kinds: ``wheel`` and ``sdist``.

    Returns:
        One file per kind, in their order.
    """
    flags = [f"--target={kind}" for kind in kinds]
    run([sys.executable, "-m", "hatchling", "build", "--directory", output, *flags], cwd=tree)
    suffixes = {"wheel": "*.whl", "sdist": "*.tar.gz"}
    return [next(output.glob(suffixes[kind])) for kind in kinds]


def run(arguments: list[str | Path], cwd: Path) -> str:
    """Run a command that must succeed, and return its output."""
    ended = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert ended.returncode == 0, f"{arguments}: {ended.stdout}{ended.stderr}"
    return ended.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside of the repository, with a lock and the wheel.

    Attributes:
        folder: of the environment.
        home: an empty folder, in which its programs run.
    """

    folder: Path
    home: Path

    @classmethod
    def create(cls, folder: Path, lock: str, wheel: Path) -> "Environment":
        """Install a lock file of ``requirements/``, checked by hash, and the wheel, which must need nothing else."""
        made, home, uv = folder / "environment", folder / "home", TOOLS / "uv"
        home.mkdir(parents=True)
        run([uv, "venv", "--quiet", "--no-project", f"--python={sys.executable}", made], ROOT)
        target = f"--python={made}"
        run([uv, "pip", "sync", "--quiet", "--require-hashes", target, ROOT / "requirements" / lock], ROOT)
        run([uv, "pip", "install", "--quiet", "--no-deps", target, wheel], ROOT)
        run([uv, "pip", "check", "--quiet", target], ROOT)
        return cls(made, home)

    def program(self, name: str) -> Path:
        """Return the path of a command."""
        return self.folder / "bin" / name

    def variables(self) -> dict[str, str]:
        """Return an environment in which nothing of the repository or of the user is found, and warnings are errors."""
        kept = {"PATH": os.defpath, "HOME": str(self.home), "LANG": "C.UTF-8"}
        return kept | {"PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment to its end."""
        return subprocess.run(
            [self.program(name), *arguments],
            cwd=self.home, env=self.variables(), capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip
