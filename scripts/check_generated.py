"""Lint: the proto is well-formed, and the checked-in stubs are what it generates. Prints what to do, exits with 1."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).parent.parent
GOOGLEAPIS = Path(status_pb2.__file__).parents[2]
GENERATED = Path("digitserve/v1")
PROTO = GENERATED / "digits.proto"


def lint_proto() -> bool:
    """Run ``buf lint``; buf wants imports inside its module, so the proto is linted beside copies of them."""
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder)
        for source, name in (
            (ROOT / "proto", "buf.yaml"),
            (ROOT / "proto", str(PROTO)),
            (GOOGLEAPIS, "google/rpc/status.proto"),
        ):
            (module / name).parent.mkdir(parents=True, exist_ok=True)
            (module / name).write_bytes((source / name).read_bytes())
        buf = Path(sys.executable).with_name("buf")
        return subprocess.run([buf, "lint", "--path", str(PROTO)], cwd=module, check=False).returncode == 0


def stale_stubs(*, write: bool) -> list[str]:
    """Generate the stubs anew and name those that differ, or write them."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{GOOGLEAPIS}", *outputs, str(PROTO)]
        subprocess.run(protoc, cwd=ROOT / "proto", check=True)
        fresh = sorted((Path(folder) / GENERATED).iterdir())
        kept = ROOT / "service" / GENERATED
        if write:
            for path in fresh:
                shutil.copy(path, kept)
        return [
            path.name
            for path in fresh
            if not (kept / path.name).is_file() or (kept / path.name).read_bytes() != path.read_bytes()
        ]


def main() -> int:
    """Check both; with ``--write``, write the stubs first."""
    stale = stale_stubs(write="--write" in sys.argv)
    if stale:
        print(f"stale stubs: {', '.join(stale)}; run 'make stubs' and commit the result", file=sys.stderr)
    return 0 if lint_proto() and not stale else 1


if __name__ == "__main__":
    sys.exit(main())
