"""Who may read what on the HTTP port, and its TLS.

    HttpServer ──handshake──▶ HttpAccess.context
    application ──request───▶ HttpAccess.admits
    /metrics ───────────────▶ HttpAccess.metrics

Owned by the supervisor, and used on its event loop; only the thread of ``watch`` reads changed files.
"""

import math
import ssl
from collections.abc import Iterable
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from digitserve.access import Tokens
from digitserve.certificate import expiry, read_key_files, server_context, watched_files
from digitserve.reload import FileWatch, Reloaded
from digitserve.settings import Settings


class HttpCertificate(NamedTuple):
    """What the supervisor needs of the certificate.

    Attributes:
        context: TLS configuration of the HTTP port.
        expires: Unix time in seconds; NaN if the certificate has no date in the usual form.
    """

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
        files = watched_files(settings)
        self._certificate = Reloaded("certificate", files, lambda: _read(settings), logs=True) if files else None
        self._tokens = Tokens.of(settings, logs=True)
        self._is_open = settings.tls_client_ca is None and self._tokens is None
        self._num_rejected = 0
        self._reloaded: list[Reloaded[Any]] = [
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

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of certificate, reloads and rejected requests."""
        if self._certificate is not None:
            yield GaugeMetricFamily(
                "digitserve_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, in seconds since 1970.",
                self._certificate.value.expires,
            )
        failures = CounterMetricFamily(
            "digitserve_reload_failures",
            "Changes of files that were refused because they are invalid.",
            labels=("files",),
        )
        for reloaded in self._reloaded:
            failures.add_metric((reloaded.name,), reloaded.num_failures)
        yield failures
        yield CounterMetricFamily(
            "digitserve_http_unauthorized",
            "Requests for the HTTP port without a valid token or client certificate.",
            self._num_rejected,
        )


def _read(settings: Settings) -> HttpCertificate:
    """Return the certificate; see ``server_context`` for errors."""
    # Probes and browsers have no certificates, so clients may have one or not.
    context = server_context(settings, "http/1.1", ssl.CERT_OPTIONAL)
    assert context is not None
    try:
        expires = expiry(read_key_files(settings).certificate)
    except ValueError:
        expires = math.nan
    return HttpCertificate(context, expires)
