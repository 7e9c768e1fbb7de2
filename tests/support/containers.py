"""Containers of the image that the tests build, run by podman."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.image import run
from support.serving import wait_until

PODMAN = ("podman", "--runtime", "runc")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""Without them, runc fails where it may not raise limits."""

RESTRICTED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""No folder that the service could write to, except /dev/shm; no capabilities."""


def run_once(image: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of the image to its end; the arguments follow those of the entry point."""
    return subprocess.run(
        [*PODMAN, "run", "--rm", "--network", "none", *LIMITS, *options, image, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@dataclass
class Container:
    """A container that runs, or has run.

    Attributes:
        name: of the container.
    """

    name: str

    def log(self) -> str:
        """Return what it printed so far."""
        return run("podman", "logs", self.name)

    def execute(self, *arguments: str) -> str:
        """Run a command in it that must succeed, and return what that printed."""
        return run(*PODMAN, "exec", self.name, *arguments)

    def is_healthy(self) -> bool:
        """Run the health check of the image once, as docker does every few seconds."""
        done = subprocess.run(["podman", "healthcheck", "run", self.name], capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def inspect(self) -> dict[str, Any]:
        """Return its configuration and state."""
        done = subprocess.run(["podman", "inspect", self.name], capture_output=True, timeout=60, check=True)
        return dict(json.loads(done.stdout)[0])

    def workers(self) -> list[int]:
        """Return the process ids of the workers, as the host numbers them."""
        pid = self.inspect()["State"]["Pid"]
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def changes(self) -> list[str]:
        """Return the paths in its root that are no longer as in the image."""
        changed = run("podman", "diff", self.name).splitlines()
        return [line.split()[1] for line in changed if line[:2] in {"A ", "C ", "D "}]

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        run("podman", "kill", "--signal", name, self.name)

    def exit_code(self) -> int:
        """Wait until it has ended and return the exit code."""
        wait_until(lambda: not self.inspect()["State"]["Running"], "the container has ended")
        return int(self.inspect()["State"]["ExitCode"])

    def stop(self) -> int:
        """Stop it with its own signal and a grace of 25 s, and return the exit code."""
        run("podman", "stop", "--time", "25", self.name)
        return self.exit_code()


@contextmanager
def container(image: str, *options: str) -> Iterator[Container]:
    """Run the service in a container after waiting for its banner; remove it at the end of the ``with`` block."""
    running = Container(f"digitserve-test-{uuid.uuid4().hex[:12]}")
    try:
        run(*PODMAN, "run", "--detach", "--name", running.name, *LIMITS, *options, image)
        wait_until(lambda: "try  " in running.log() or not running.inspect()["State"]["Running"], "the banner")
        assert running.inspect()["State"]["Running"], running.log()
        yield running
    finally:
        run("podman", "rm", "--force", "--ignore", "--time", "0", running.name)
