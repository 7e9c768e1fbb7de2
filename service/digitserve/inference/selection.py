"""Choice of the bundle to serve: by version, and by ``--precision``.

    start, --tune ──served──────────┐
    active file ──of_version────────┼──▶ Selection ──▶ SealedBundle, which states why it was chosen
    --shadow ──shadow───────────────┘

The int8 bundle of digits/5 is digits-int8/5, exported from the same run. So one active file and one ``--model-version`` are for
both, and machines that serve different precisions serve the same version. The supervisor creates one ``Selection`` and calls it
at its start; later, the thread that watches the active file does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digitserve.errors import SettingsError, StartupError
from digitserve.inference.active_file import active_path, read_active, signature
from digitserve.inference.bundle import Manifest
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.model_folder import INT8_SUFFIX, find_bundle, int8_folder, is_bundle
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.log import get_logger
from digitserve.settings import VERSION, Settings

INT8 = "int8"

PINNED = "pinned"
"""Reason if ``--precision`` names the precision."""

_OF_THE_EXPORT = {"precision", "quantization", "versions"}
"""Entries of ``Manifest.training`` that may differ between two exports of one run."""

_log = get_logger("digitserve.inference.selection")


@dataclass(frozen=True)
class Int8Speed:
    """Whether int8 is faster than float32 where the network runs.

    Attributes:
        is_fast: whether ``--precision auto`` prefers int8.
        reason: why, as in "the processor has AVX512_VNNI".
    """

    is_fast: bool
    reason: str


class Selection:
    """Reads and verifies the bundles that a service with these settings serves.

    Attributes:
        active_path: of the active file.
        active_signature: of the active file before the first bundle was chosen.
    """

    def __init__(self, settings: Settings, int8: Int8Speed) -> None:
        """Prepare; no bundle is read.

        Args:
            settings: only the choice of the bundle is used.
            int8: of this machine and device; only ``auto`` uses it.
        """
        self.active_path = active_path(settings.models, settings.model, settings.active_file)
        self.active_signature = signature(self.active_path)
        self._settings = settings
        self._int8 = int8

    @property
    def name_for_clients(self) -> str | None:
        """Name of the model for clients; None for that of the bundle.

        With ``--precision`` it does not depend on the precision, which may differ between the machines of a deployment.
        """
        settings = self._settings
        chooses = settings.precision is not None and not is_bundle(settings.models)
        return settings.served_name or (settings.model if chooses else None)

    def served(self) -> SealedBundle:
        """Return the version to serve at first: ``model_version``, or else that of the active file, or else the highest.

        Raises:
            StartupError: there is none, or it failed a check.
        """
        version = self._settings.model_version
        return self.of_version(read_active(self.active_path) if version is None else version)

    def of_version(self, version: int | None) -> SealedBundle:
        """Return a version, by default the highest, in the precision to serve.

        Raises:
            StartupError: there is none, or it failed a check.
        """
        settings = self._settings
        named = _read(find_bundle(settings.models, settings.model, version))
        if settings.precision is None:
            return named
        chosen, reason = self._choose(named, settings.precision)
        chosen.choice = reason
        _log.info("precision chosen", bundle=str(chosen), precision=chosen.manifest.precision, reason=reason)
        return chosen

    def _choose(self, named: SealedBundle, precision: str) -> tuple[SealedBundle, str]:
        """Return a bundle or its int8 bundle, and the reason."""
        is_int8 = named.manifest.precision == INT8
        if precision == "float32":
            if is_int8:
                raise SettingsError(f"--precision float32: {named} is in int8; expected a float32 model in --model")
            return named, PINNED
        is_auto = precision == "auto"
        if is_int8:
            return named, f"auto: {named} is in int8" if is_auto else PINNED
        if is_auto and not self._int8.is_fast:
            return named, f"auto: {self._int8.reason}"
        found = self._int8_of(named)
        if isinstance(found, SealedBundle):
            return found, f"auto: {self._int8.reason}" if is_auto else PINNED
        if not is_auto:
            raise SettingsError(f"--precision int8: {found}; export it, or use --precision auto or float32")
        _log.warning("no int8 bundle, serving float32", bundle=str(named), reason=found)
        return named, f"auto: {found}"

    def shadow(self) -> SealedBundle | None:
        """Return the bundle of ``--shadow``, a version in the precision that would be served; None without this setting.

        With a name before the version, it is exactly that bundle.

        Raises:
            StartupError: it is no version, or failed a check.
        """
        settings = self._settings
        if settings.shadow is None:
            return None
        name, _, version = settings.shadow.rpartition("/")
        if not VERSION.fullmatch(version) or "/" in name:
            raise SettingsError(
                f"--shadow: got '{settings.shadow}'; expected a version such as 5, or a name and a version such as digits/5"
            )
        try:
            if name:
                return _read(find_bundle(settings.models, name, int(version)))
            return self.of_version(int(version))
        except StartupError as error:
            raise StartupError(f"--shadow: {error}") from None

    def _int8_of(self, named: SealedBundle) -> SealedBundle | str:
        """Return the int8 bundle of a float32 one, or why there is none.

        Raises:
            BundleError: it failed a check.
        """
        models, version = self._settings.models, named.manifest.version
        folder = int8_folder(models, self._settings.model, version)
        if folder is None:
            return f"{models} has no {self._settings.model}{INT8_SUFFIX}/{version}"
        int8 = _read(folder)
        if int8.manifest.precision != INT8 or _run(int8.manifest) != _run(named.manifest):
            return f"{int8} is not {named} in int8: its manifest describes another training"
        return int8


def _read(folder: Path) -> SealedBundle:
    return SealedBundle(BundleFiles.read(folder))


def _run(manifest: Manifest) -> tuple[Any, ...]:
    """Return what bundles of one run have in common. The format of bundles does not define the contents of ``training``."""
    training: Any = manifest.training
    if isinstance(training, dict):
        training = {key: value for key, value in training.items() if key not in _OF_THE_EXPORT}
    return manifest.labels, training
