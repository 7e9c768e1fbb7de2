"""Print the path of a Python interpreter of a version, such as 3.12: from PATH, from pyenv, or one that uv has or installs."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

UV = Path(sys.executable).with_name("uv")


def candidates(version: str) -> Iterator[str | Path]:
    """Yield the paths at which an interpreter may be, the most likely first."""
    if found := shutil.which(f"python{version}"):
        yield found
    # pyenv's commands on PATH fail for versions that are not selected with ``pyenv global``.
    if shutil.which("pyenv"):
        root = Path(output("pyenv", "root"))
        yield from root.glob(f"versions/{version}.*/bin/python{version}")
    yield output(UV, "python", "find", "--no-project", version)
    if subprocess.run([UV, "python", "install", "--quiet", version], check=False).returncode == 0:
        yield output(UV, "python", "find", "--no-project", version)


def output(*command: str | Path) -> str:
    """Return what a command prints; nothing if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def works(path: str | Path, version: str) -> bool:
    """Return whether this interpreter runs, has this version, and can make virtual environments."""
    program = "import sys, venv, ssl, sqlite3; print('{}.{}'.format(*sys.version_info))"
    return bool(path) and output(path, "-c", program) == version


def main() -> int:
    """Print the first candidate that works."""
    version = sys.argv[1]
    found = next((path for path in candidates(version) if works(path, version)), None)
    if found is None:
        print(f"no interpreter of Python {version} on PATH, in pyenv or from uv; install it", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
