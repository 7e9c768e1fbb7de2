"""What ``--device`` comes to on this machine, for the supervisor, which calls it once before it starts a worker."""

import subprocess
import sys

import structlog

from digitserve.settings import Settings

_log = structlog.get_logger("digitserve.supervision.device")


def settle(settings: Settings) -> str:
    """Return what ``--device`` comes to here, ``cpu`` or ``cuda``.

    Only ``auto`` needs a look: in a process of its own, so that onnxruntime and CUDA stay out of this one. Workers get the
    answer, so that those that are started later do not come to another.
    """
    if settings.device != "auto":
        return settings.device
    program = [sys.executable, "-m", "digitserve.inference.providers", settings.log_format]
    looked = subprocess.run(program, stdout=subprocess.PIPE, check=False)
    if looked.returncode:
        _log.error("looking for CUDA failed, running on the CPU", exit_code=looked.returncode)
        return "cpu"
    return looked.stdout.decode().strip()
