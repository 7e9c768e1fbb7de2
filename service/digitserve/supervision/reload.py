"""Rolling update: replaces the workers one by one when another version is activated.

    active file ──every second──▶ ActiveFileWatcher, on a FileWatch ──SealedBundle or reason──▶ Reloader ──replace──▶ slots

The watcher reads and verifies files, which may take long, on its thread. The reloader runs on the supervisor's event loop. It
compares the version that was activated last with that of each slot, and replaces the worker of the first slot that differs. The
old worker continues until the new one is ready, so there is at most one worker more than usual. If a new worker fails, the
version is refused, and the slots that have it already get the old one back in the same way.
"""

import asyncio
from collections.abc import Callable, Sequence

from digitserve.errors import StartupError
from digitserve.inference.active_file import read_active, signature
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.inference.selection import Selection
from digitserve.log import get_logger
from digitserve.supervision.slots import GIVEN_UP, InlineSlot, WorkerSlot

PROVE_S = 1.0
"""Seconds for which the first new worker serves beside the old one before that one drains. Under load that is long enough to
find a version that crashes on requests. If it ends in this time, the version is refused."""

RETRY_S = 1.0
"""Seconds before another try to give a slot the old version back, if its worker could not be started."""

_log = get_logger("digitserve.supervision.reload")


class ActiveFileWatcher:
    """Reports changes of the active file; owned by the supervisor.

    ``check`` is called on the thread of a ``FileWatch`` of its own, because verifying a bundle takes long.
    """

    name = "active file"

    def __init__(
        self,
        selection: Selection,
        on_activated: Callable[[SealedBundle], object],
        on_refused: Callable[[str], object],
        on_removed: Callable[[], object],
    ) -> None:
        """Prepare; nothing is started.

        Args:
            selection: reads the version; knows the active file as it was when the service started.
            on_activated: called on the watcher's thread with the verified bundle when the file has changed.
            on_refused: called there with the reason if it has changed and its version cannot be served.
            on_removed: called there if it was removed.
        """
        self._selection = selection
        self._path = selection.active_path
        self._last_signature = selection.active_signature
        self._on_activated = on_activated
        self._on_refused = on_refused
        self._on_removed = on_removed

    def check(self) -> None:
        """Report a change of the file."""
        # Before reading: a later change has another signature, so the next check sees it.
        seen = signature(self._path)
        if seen == self._last_signature:
            return
        self._last_signature = seen
        try:
            version = read_active(self._path)
            if version is None:
                self._on_removed()
                return
            bundle = self._selection.of_version(version)
        except (StartupError, OSError, MemoryError) as error:
            self._on_refused(str(error) or type(error).__name__)
        else:
            self._on_activated(bundle)


class Reloader:
    """Gives all slots the version that was activated last. The supervisor makes one and runs it; all calls are on its event loop.

    Attributes:
        active: that all slots serve, except during a reload.
        refusal: why the version that was activated last is not served; None if it is, or is being loaded.
        num_completed: reloads after which all slots served the new version.
        num_failed: versions that were refused.
    """

    def __init__(self, slots: Sequence[WorkerSlot | InlineSlot], active: SealedBundle) -> None:
        """Prepare: all slots serve ``active``."""
        self.active = active
        self.refusal: str | None = None
        self.num_completed = 0
        self.num_failed = 0
        self._slots = slots
        self._target = active
        self._wake = asyncio.Event()

    @property
    def target(self) -> SealedBundle:
        """The version that all slots get; during a reload it is not ``active``."""
        return self._target

    def activate(self, bundle: SealedBundle) -> None:
        """Serve a version as soon as possible; a reload in progress is cancelled."""
        # The name too: with --precision, the int8 bundle of the same version may be activated later.
        if str(bundle) == str(self.active):
            if bundle.digest != self.active.digest:
                self.refuse(f"{bundle} has other files than the {bundle} that is served; export it as another version")
                return
            bundle = self.active
        self.refusal = None
        # If it is being loaded already, that continues.
        self._set_target(self._target if bundle.digest == self._target.digest else bundle)

    def refuse(self, reason: str) -> None:
        """Note that the version that was activated last cannot be served; the present one continues."""
        self.num_failed += 1
        self.refusal = reason
        _log.error("the version that was activated cannot be served", reason=reason, serving=str(self.active))
        self._set_target(self.active)

    def keep(self) -> None:
        """Keep the version that is served, because the active file was removed: that may be a mistake."""
        self.refusal = None
        _log.warning("the active file was removed; the version that is served stays", version=str(self._target))

    async def run(self) -> None:
        """Replace workers whenever a slot has another version than the one to serve; until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._reload()
            except Exception:  # the version that is served continues
                _log.exception("replacing the workers failed")
                self.refuse("internal fault; see the log")
                await asyncio.sleep(RETRY_S)

    def _set_target(self, bundle: SealedBundle) -> None:
        if bundle is not self._target:
            self._target = bundle
            for slot in self._slots:
                slot.give_up_replacement()
        self._wake.set()

    async def _reload(self) -> None:
        """Replace the workers of all slots that differ from the target, which may change meanwhile."""
        while different := [slot for slot in self._slots if slot.bundle is not self._target]:
            target = self._target
            is_trial = target is not self.active and len(different) == len(self._slots)
            if is_trial:
                _log.info("replacing the workers", old=str(self.active), new=str(target))
            failure = self._failure_of_new_workers() or await different[0].replace(target, PROVE_S if is_trial else 0.0)
            if failure is None:
                continue
            if failure == GIVEN_UP:
                await asyncio.sleep(0)  # the service may be about to stop
            elif target is self.active:
                _log.error("a worker of the old version could not be started, trying again", reason=failure)
                await asyncio.sleep(RETRY_S)
            else:
                self.refuse(f"{target}: {failure}")
        if self._target is not self.active:
            if failure := self._failure_of_new_workers():
                self.refuse(f"{self._target}: {failure}")
                return
            self.active = self._target
            self.num_completed += 1
            _log.info("all workers serve the new version", version=str(self.active))

    def _failure_of_new_workers(self) -> str | None:
        """Return a reason if a worker that has replaced an old one does not run any more."""
        target = self._target
        if target is not self.active and not all(slot.is_ready for slot in self._slots if slot.bundle is target):
            return "a worker that was ready has ended"
        return None
