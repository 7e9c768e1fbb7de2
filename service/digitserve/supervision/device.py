"""Resolution of ``--device auto``. The supervisor calls it once, before it starts a worker."""

from digitserve.child_process import ChannelClosed, Child
from digitserve.log import get_logger
from digitserve.settings import Settings

_log = get_logger("digitserve.supervision.device")


def resolve(settings: Settings) -> str:
    """Return the device on which all workers run the network, ``cpu`` or ``cuda``.

    Only ``auto`` needs a check. It runs in a separate process, so that onnxruntime and CUDA are not loaded into this one.
    Workers get the result, so that a worker that starts later cannot choose another device.
    """
    if settings.device != "auto":
        return settings.device
    with Child("digitserve.inference.providers") as child:
        try:
            child.channel.send({"log_format": settings.log_format})
            return str(child.channel.receive()["device"])
        except ChannelClosed:
            _log.error("the check for CUDA failed, running on the CPU", exit_code=child.process.wait())
            return "cpu"
