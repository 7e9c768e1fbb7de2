"""Coverage-guided fuzzing with atheris; ``make fuzz`` runs it.

    make fuzz ARGS="connection --seconds 3600"

An input that violates a property is written to the folder of inputs as ``crash-...``. To run it again:
``make fuzz ARGS="connection --input FILE"``.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris
from atheris.import_hook import HookManager

# For coverage only, without the operands of comparisons: atheris 3.0 never frees arrays that it has seen there.
with HookManager({"digitserve"}, set(), enable_loader_override=False, trace_dataflow=False):
    import digitserve.batching.prepare
    import digitserve.vision.image_files  # noqa: F401

with atheris.instrument_imports(include=["digitserve", "PIL", "click", "h11", "starlette", "uvicorn"]):
    from support.fuzz_targets import TARGETS

INPUT_TIMEOUT_S = 10
"""An input that takes longer counts as a hang. Typical inputs take 1 ms."""


def main() -> None:
    """Run as a command; ends with exit code 77 if an input violates a property."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "target", choices=[*TARGETS, "all"], nargs="?", default="all", help="what to fuzz (default: all)"
    )
    parser.add_argument("--seconds", type=int, default=600, help="time for each target (default: 600)")
    parser.add_argument("--inputs", type=Path, default=Path("runs/fuzz"), help="folder of inputs that reach new code")
    parser.add_argument("--input", type=Path, help="only run this input")
    options = parser.parse_args()
    if options.input:
        TARGETS[options.target].run(options.input.read_bytes())
        return
    if options.target == "all":
        command = [sys.executable, __file__, "--seconds", str(options.seconds), "--inputs", str(options.inputs)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sys.exit(max(abs(done) for done in pool.map(lambda name: subprocess.call([*command, name]), TARGETS)))
    fuzz(options.target, options.seconds, options.inputs / options.target)


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Fuzz a target; never returns."""
    target = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0], str(folder), f"-max_total_time={seconds}", f"-max_len={target.max_bytes}",
            f"-timeout={INPUT_TIMEOUT_S}", f"-artifact_prefix={folder}/", "-print_final_stats=1", "-rss_limit_mb=8192",
        ],
        target.run,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
