"""Lint the proto, and check that the checked-in stubs are up to date. Exits with 1 and prints what to do if not."""

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
    """Run ``buf lint`` on a copy of the proto with copies of its imports: buf needs them inside its module."""
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
    """Regenerate the stubs, write them if ``write`` is set, and return the names of the checked-in stubs that differ."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{GOOGLEAPIS}", *outputs, str(PROTO)]
        subprocess.run(protoc, cwd=ROOT / "proto", check=True)
        generated = sorted((Path(folder) / GENERATED).iterdir())
        checked_in = ROOT / "service" / GENERATED
        if write:
            for path in generated:
                shutil.copy(path, checked_in)
        return [
            path.name
            for path in generated
            if not (checked_in / path.name).is_file() or (checked_in / path.name).read_bytes() != path.read_bytes()
        ]


def main() -> int:
    """Check proto and stubs; with ``--write``, write the stubs first."""
    stale = stale_stubs(write="--write" in sys.argv)
    if stale:
        print(f"stale stubs: {', '.join(stale)}; run 'make stubs' and commit the result", file=sys.stderr)
    return 0 if lint_proto() and not stale else 1


if __name__ == "__main__":
    sys.exit(main())
