"""Worker processes that follow a script instead of serving, for tests of the supervisor."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.supervision import restart_policy, slots, worker_process
from support.bundles import write_echo_bundle
from support.child_modules import write_module

_SCRIPT = """
    import json, sys, os, time
    from pathlib import Path
    from digitserve.child_process import Channel, ChannelClosed
    from digitserve.inference.bundle_files import BundleFiles

    channel = Channel.to_parent()
    order = channel.receive()

    def ready():
        channel.send({{"event": "ready", "provider": "Scripted"}})

    def wait_for_drain():
        try:
            channel.receive()
        except ChannelClosed:
            pass

    # The number of this worker among those started: 1 for the first.
    starts = Path({starts!r})
    # Appending is atomic, so two workers that start together get different numbers.
    with starts.open("a") as file:
        file.write("x")
        file.flush()
        number = file.tell()

    # The version that it should serve.
    version = json.loads(BundleFiles.unseal(order["bundle_fd"]).manifest)["version"]

"""

Script = Callable[[str], None]


def script_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that sets what each worker does once it has its settings; restarts have no delay."""
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(restart_policy, "MAX_DELAY_S", 0.001)
    monkeypatch.setattr(slots, "START_RETRY_S", 0.001)

    def write(body: str) -> None:
        source = _SCRIPT.format(starts=str(folder / "starts")) + "".join(f"    {line}\n" for line in body.splitlines())
        name = write_module(folder / "modules", "scripted_worker", source, monkeypatch)
        monkeypatch.setattr(worker_process, "WORKER_MODULE", name)

    return write


@functools.cache
def echo_bundle(version: int = 1, threshold: float = 1e6, name: str = "digits") -> SealedBundle:
    """Return a bundle in memory; bundles with different thresholds have different files."""
    with tempfile.TemporaryDirectory() as models:
        return SealedBundle(
            BundleFiles.read(write_echo_bundle(Path(models), version, ood_threshold=threshold, name=name))
        )
