"""Who may read what on the HTTP port, and its TLS.

    HttpServer ──handshake──▶ HttpAccess.context
    application ──request───▶ HttpAccess.admits, refusal
    /metrics ───────────────▶ HttpAccess.metrics

Owned by the supervisor, and used on its event loop; only the thread of ``watch`` reads changed files.
"""

import functools
import math
import ssl
from collections.abc import Iterable
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from digitserve.access import UNAUTHENTICATED, LastValid, Tokens
from digitserve.certificate import KeyFiles, expiry, new_context, watched_certificate
from digitserve.file_watch import FileWatch, WatchedValue
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.settings import Settings
from digitserve.telemetry.supervisor_metrics import metric

_NEEDS_CERTIFICATE = Status(
    Code.UNAUTHENTICATED, "this server requires a client certificate: send a valid one in the TLS handshake"
)


class HttpCertificate(NamedTuple):
    """What the supervisor needs of the certificate.

    Attributes:
        files: content of its files.
        context: TLS configuration of the HTTP port.
        expires: Unix time in seconds; NaN if the certificate has no date in the usual form.
    """

    files: KeyFiles
    context: ssl.SSLContext
    expires: float


class HttpAccess:
    """The certificate and the tokens of the HTTP port, and who needs them; owned by the supervisor.

    This is the one object of the service that logs and counts reloads.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the files.

        Raises:
            SettingsError: one of them cannot be used.
        """
        self._certificate = watched_certificate(settings, functools.partial(_convert, settings), logs=True)
        self._tokens = Tokens.of(settings, logs=True)
        self._needs_certificate = settings.tls_client_ca is not None
        self._is_open = not self._needs_certificate and self._tokens is None
        self._num_rejected = 0
        self._reloaded: list[WatchedValue[Any]] = [
            reloaded for reloaded in (self._certificate, self._tokens) if reloaded is not None
        ]
        self.watch = FileWatch(self._reloaded)

    @property
    def context(self) -> ssl.SSLContext | None:
        """TLS configuration of the next handshake; None for clear text."""
        return None if self._certificate is None else self._certificate.value.context

    def admits(self, authorization: str, *, is_verified: bool) -> bool:
        """Return whether a client may read more than the state of the service, and count it if not.

        Args:
            authorization: value of the header field; empty if there is none.
            is_verified: whether the client has a certificate that the authority of the settings has signed.
        """
        if self._is_open or is_verified:
            return True
        if self._tokens is not None and self._tokens.admits(authorization.encode("latin-1")):
            return True
        self._num_rejected += 1
        return False

    def refusal(self, authorization: str, *, is_verified: bool) -> Status | None:
        """Return why a client may not classify, and count it; None if it may. The rules are those of the gRPC port.

        Args:
            authorization: see ``admits``.
            is_verified: see ``admits``.
        """
        refusal = None
        if self._needs_certificate and not is_verified:
            refusal = _NEEDS_CERTIFICATE
        elif self._tokens is not None and not self._tokens.admits(authorization.encode("latin-1")):
            refusal = UNAUTHENTICATED
        self._num_rejected += refusal is not None
        return refusal

    def last_valid(self) -> LastValid:
        """Return the newest valid certificate and tokens, for a new worker."""
        return LastValid(
            None if self._certificate is None else self._certificate.value.files,
            None if self._tokens is None else self._tokens.value,
        )

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of certificate, reloads and rejected requests."""
        if self._certificate is not None:
            yield metric("digitserve_certificate_expiry_timestamp_seconds", self._certificate.value.expires)
        yield metric(
            "digitserve_reload_failures", {(reloaded.name,): reloaded.num_failures for reloaded in self._reloaded}
        )
        yield metric("digitserve_http_unauthorized", self._num_rejected)


def _convert(settings: Settings, files: KeyFiles) -> HttpCertificate:
    """Return the certificate of the HTTP port; see ``new_context`` for errors."""
    # The configuration of the workers must be valid too. It differs only in the protocol and in who needs a certificate.
    # Probes and browsers have none, so clients of this port may have one or not.
    context = new_context(files, settings, "http/1.1", ssl.CERT_OPTIONAL)
    try:
        expires = expiry(files.certificate)
    except ValueError:
        expires = math.nan
    return HttpCertificate(files, context, expires)
