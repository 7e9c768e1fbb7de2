"""Lint the protos, compare them with the released protocol, and check that the checked-in stubs are up to date.

Exits with 1 and prints what to do if a check fails; ``--write`` writes the stubs first.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).parent.parent
GOOGLEAPIS = Path(status_pb2.__file__).parents[2]
TOOLS = Path(sys.executable).parent

BASELINE = "f9189cd"
"""Commit whose messages and calls clients may use: no later proto may change them incompatibly."""


@dataclass(frozen=True)
class Proto:
    """A proto whose stubs are checked in.

    Attributes:
        source: its path in ``proto/``.
        package: folder of its stubs in ``service/``; descriptors name the proto by this folder.
        ours: whether it is our own, which follows buf's style rules and has stubs for grpcio; others have messages only.
    """

    source: Path
    package: Path
    ours: bool = True


PROTOS = (
    Proto(Path("digitserve/v1/digits.proto"), Path("digitserve/v1")),
    Proto(Path("inference/open_inference.proto"), Path("digitserve/open_inference"), ours=False),
)


def check_style() -> bool:
    """Run ``buf lint`` on our own protos."""
    sources = {proto.source: (ROOT / "proto" / proto.source).read_bytes() for proto in PROTOS if proto.ours}
    with buf_module(sources) as module:
        return _run_buf("lint", *(f"--path={source}" for source in sources), module=module)


def check_compatibility() -> bool:
    """Run ``buf breaking`` on the protos against those of ``BASELINE``.

    An export without git has nothing to compare with; this is printed and accepted.
    """
    if not (ROOT / ".git").exists():
        print(f"protos not compared with commit {BASELINE}: {ROOT} is no git repository", file=sys.stderr)
        return True
    released = released_protos(ROOT)
    return released is not None and is_compatible(
        {proto.source: (ROOT / "proto" / proto.source).read_bytes() for proto in PROTOS}, released
    )


def released_protos(repository: Path) -> dict[Path, bytes] | None:
    """Return the protos of ``BASELINE``; None if the repository does not have this commit, which is printed."""
    paths = [f"proto/{proto.source}" for proto in PROTOS]
    try:
        listed = _git(repository, "ls-tree", "--name-only", BASELINE, *paths).decode().splitlines()
        return {Path(path).relative_to("proto"): _git(repository, "show", f"{BASELINE}:{path}") for path in listed}
    except FileNotFoundError:
        reason, advice = "git is not installed", "install it"
    except subprocess.CalledProcessError as error:
        reason, advice = error.stderr.decode().strip(), "a shallow clone gets it with: git fetch --unshallow"
    print(f"the protos are compared with commit {BASELINE}, which cannot be read: {reason}; {advice}", file=sys.stderr)
    return None


def _git(repository: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, check=True).stdout


def is_compatible(current: dict[Path, bytes], released: dict[Path, bytes]) -> bool:
    """Return whether clients of the released protos can call a service with the current ones; ``buf`` prints what differs."""
    with buf_module(released) as before, buf_module(current) as after:
        return _run_buf("breaking", f"--against={before}", module=after)


@contextmanager
def buf_module(protos: dict[Path, bytes]) -> Iterator[Path]:
    """Yield a folder with protos and their imports: buf needs the imports inside its module."""
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder)
        (module / "buf.yaml").write_bytes((ROOT / "proto" / "buf.yaml").read_bytes())
        status = Path("google/rpc/status.proto")
        for path, content in {status: (GOOGLEAPIS / status).read_bytes(), **protos}.items():
            (module / path).parent.mkdir(parents=True, exist_ok=True)
            (module / path).write_bytes(content)
        yield module


def _run_buf(*arguments: str, module: Path) -> bool:
    return subprocess.run([TOOLS / "buf", *arguments], cwd=module, check=False).returncode == 0


def stale_stubs(*, write: bool) -> list[str]:
    """Regenerate the stubs, write them if ``write`` is set, and return the names of the checked-in stubs that differ."""
    stale: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder))
        for path in sorted(path for path in Path(folder, "stubs").rglob("*") if path.is_file()):
            name = path.relative_to(Path(folder, "stubs"))
            checked_in = ROOT / "service" / name
            if write:
                shutil.copy(path, checked_in)
            if not checked_in.is_file() or checked_in.read_bytes() != path.read_bytes():
                stale.append(str(name))
    return stale


def _generate(folder: Path) -> None:
    """Generate all stubs in ``folder/stubs``.

    The generator needs protobuf 6, and the service is developed with protobuf 7. So it runs in an environment of its own, which
    uv creates from its cache in 0.2 s.
    """
    environment, stubs = folder / "environment", folder / "stubs"
    stubs.mkdir()
    uv, lock = TOOLS / "uv", ROOT / "requirements" / "stubs.txt"
    subprocess.run([uv, "venv", "--quiet", "--no-project", f"--python={sys.executable}", environment], check=True)
    subprocess.run([uv, "pip", "sync", "--quiet", "--require-hashes", f"--python={environment}", lock], check=True)
    for proto in PROTOS:
        kinds = ["python", "pyi", *(["grpc_python"] if proto.ours else [])]
        subprocess.run(
            [
                environment / "bin" / "python", "-m", "grpc_tools.protoc",
                f"-I{proto.package}={ROOT / 'proto' / proto.source.parent}",
                f"-I{GOOGLEAPIS}",
                *(f"--{kind}_out={stubs}" for kind in kinds),
                str(proto.package / proto.source.name),
            ],
            check=True,
        )  # fmt: skip


def main() -> int:
    """Check protos and stubs."""
    try:
        stale = stale_stubs(write="--write" in sys.argv)
    except subprocess.CalledProcessError as error:
        print(f"the stubs cannot be generated: {error}", file=sys.stderr)
        return 1
    if stale:
        print(f"stale stubs: {', '.join(stale)}; run 'make stubs' and commit the result", file=sys.stderr)
    return 0 if all([not stale, check_style(), check_compatibility()]) else 1


if __name__ == "__main__":
    sys.exit(main())
