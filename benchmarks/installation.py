"""Installations of digitserve to measure: the working tree in this environment, or a commit in a separate environment.

The lowest module of the benchmarks. ``servers`` starts the ``digitserve`` command of an installation.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".bench"
"""Default folder for the environments of other commits; ignored by git."""

_LOCK = Path("requirements/serve.txt")
_PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME")
_PRINT_LOCATION = "import digitserve, sys; sys.stdout.write(digitserve.__file__)"


class BenchError(Exception):
    """The benchmark cannot run, or its figures cannot be trusted; the message has the reason."""


@dataclass(frozen=True)
class Installation:
    """An installed digitserve.

    Attributes:
        description: what it is, for people.
        source: root of its source tree; its processes run there.
        python: its interpreter; the command ``digitserve`` is in the same folder.
        environment: variables of its processes.
    """

    description: str = "the working tree"
    source: Path = ROOT
    python: Path = Path(sys.executable)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def program(self) -> str:
        """The path of its command ``digitserve``."""
        return str(self.python.parent / "digitserve")

    def verify(self) -> Path:
        """Check that its interpreter imports the package from its own source tree, and return where from.

        Raises:
            BenchError: it imports another package, or none.
        """
        command = [self.python, "-P", "-c", _PRINT_LOCATION]
        done = _run(command, "importing digitserve", cwd=self.source, env=self.environment)
        location = Path(done.stdout).resolve()
        if not location.is_relative_to(self.source.resolve()):
            raise BenchError(f"{self.description}: digitserve is imported from {location}, expected {self.source}")
        return location.parent


def working_tree() -> Installation:
    """Return the installation that this process runs in."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    changed = ", with uncommitted changes" if _git("status", "--porcelain") else ""
    return Installation(f"the working tree at {commit}{changed}")


def install(commit: str, cache: Path = CACHE) -> Installation:
    """Install a commit of this repository in a separate environment.

    The source tree is extracted again each time. The environment is kept for the next time. Its packages are those of the
    commit's lock file: shared with this environment if this has exactly the same versions, otherwise installed with hashes.

    Args:
        commit: anything that names a commit in git.
        cache: folder for environments.

    Raises:
        BenchError: there is no such commit, or a step of the installation failed.
    """
    sha = _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    folder = cache.resolve() / sha
    source, environment = folder / "source", folder / "venv"
    _extract(sha, source)
    lock = (source / _LOCK).read_text()
    shared = is_satisfied(lock, _installed_versions())
    kind = f"packages shared with {sys.prefix}" if shared else "packages of its own"
    marker = environment / "installed"
    expected = f"{sys.version}\n{kind}\n"
    if not marker.is_file() or marker.read_text() != expected:
        _make_environment(environment, source, shared=shared)
        marker.write_text(expected)
    return Installation(
        f"commit {sha[:10]} ({_git('log', '-1', '--format=%s', sha)}), {kind.removesuffix(f' with {sys.prefix}')}",
        source,
        environment / "bin" / "python",
        {name: value for name, value in os.environ.items() if name not in _PYTHON_VARIABLES},
    )


def is_satisfied(lock: str, installed: Mapping[str, str]) -> bool:
    """Return whether an environment has exactly the versions of a lock file.

    Args:
        lock: text of a requirements file with exact versions.
        installed: version by normalised name of each installed package.
    """
    lines = (line.rstrip("\\ ") for line in lock.splitlines() if line.strip() and not line.startswith((" ", "#")))
    pinned = [Requirement(line) for line in lines]
    return all(
        requirement.name in installed and installed[requirement.name] in requirement.specifier
        for requirement in pinned
        if requirement.marker is None or requirement.marker.evaluate()
    )


def _installed_versions() -> dict[str, str]:
    names = ((package.name, package.version) for package in metadata.distributions())
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in names}


def _extract(sha: str, source: Path) -> None:
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    archive = source.with_name("source.tar")
    _git("archive", "--output", str(archive), sha)
    _run(["tar", "-xf", archive, "-C", source], "extracting the source tree")
    archive.unlink()
    if not (source / _LOCK).is_file():
        raise BenchError(f"commit {sha} has no {_LOCK}")


def _make_environment(environment: Path, source: Path, *, shared: bool) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", environment], "making a virtual environment")
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    if shared:
        # Entries of a .pth file come after the environment's own packages, and .pth files in these folders are not read:
        # this environment's own editable installation of digitserve stays invisible.
        packages = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
        folders = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (Path(packages) / "shared.pth").write_text("".join(f"{folder}\n" for folder in folders))
    else:
        _run([*pip, "--require-hashes", "-r", source / _LOCK], "installing the locked packages")
    # --ignore-installed, because pip would otherwise remove the digitserve of the shared environment first.
    editable = ["--no-deps", "--no-build-isolation", "--ignore-installed", "--editable", source]
    _run([*pip, *editable], "installing digitserve")


def _git(*arguments: str) -> str:
    return _run(["git", "-C", ROOT, *arguments], " ".join(["git", *arguments])).stdout.strip()


def _run(
    command: Iterable[str | Path], what: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(list(command), capture_output=True, text=True, check=True, cwd=cwd, env=env)
    except FileNotFoundError as error:
        raise BenchError(f"{what} failed: {error}") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{what} failed with exit code {error.returncode}: {error.stderr}{error.stdout}") from None
