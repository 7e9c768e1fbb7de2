"""Modules for child processes of tests, and checks that a process leaves nothing behind."""

import gc
import os
from pathlib import Path
from textwrap import dedent

import pytest


def write_module(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module that child processes of this test can import, and return its name."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(dedent(source))
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(paths)))
    return name


def open_descriptors() -> set[str]:
    """Return this process's open file descriptors with what they refer to."""
    # Unreachable objects, such as tracebacks of earlier tests, may still hold some.
    gc.collect()
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name} {link.readlink()}")
        except FileNotFoundError:
            # The descriptor that listed the folder.
            continue
    return found


def child_processes() -> set[int]:
    """Return the ids of this process's children, including those that have ended and were not waited for."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
