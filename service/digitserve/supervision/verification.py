"""Verification of a bundle in a child process, with all checks that a worker makes when it starts.

    models verify, models activate ──sealed files, inherited──▶ child: load, golden outputs, warm-up ──None or the failed check──▶

A network is not trusted: one that crashes onnxruntime, or never ends, affects only the child. The parent's functions are called
on the one thread of a command; the child runs ``main``.
"""

import signal
from pathlib import Path

from digitserve.child_process import Channel, ChannelClosed, Child
from digitserve.errors import StartupError
from digitserve.inference.bundle import Manifest, parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.settings import Settings
from digitserve.supervision.restart_policy import START_LIMIT_S


def verify(folder: Path, timeout_s: float = START_LIMIT_S) -> Manifest:
    """Verify a bundle on the CPU.

    Args:
        folder: of the bundle.
        timeout_s: maximum time for its network, in seconds; by default that of the start of a worker.

    Returns:
        Its manifest.

    Raises:
        StartupError: it failed a check.
    """
    bundle = SealedBundle(BundleFiles.read(folder))
    with Child(__name__, pass_fds=(bundle.fd,)) as child:
        child.channel.send(bundle.fd)
        try:
            problem = child.channel.receive(timeout_s)
        except TimeoutError:
            problem = f"the network in {folder} did not run within {timeout_s:g} s"
        except ChannelClosed:
            problem = f"the process that ran the network in {folder} ended: {_end(child.process.wait())}"
    if problem is not None:
        raise StartupError(problem)
    return bundle.manifest


def _end(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def main() -> None:
    """Run the network of an inherited bundle as a worker does when it starts, and report the check that fails."""
    # Imported here, because it loads onnxruntime, which the parent does not need.
    from digitserve.inference.session import Session  # noqa: PLC0415

    channel = Channel.to_parent()
    bundle = parse_bundle(BundleFiles.unseal(channel.receive()))
    try:
        Session(bundle).warm_up(Settings().batch_limit)
    except StartupError as error:
        channel.send(str(error))
    else:
        channel.send(None)


if __name__ == "__main__":
    main()
