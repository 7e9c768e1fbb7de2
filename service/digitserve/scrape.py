"""Reads the ``/metrics`` page of a service: fetches it with the credentials of a client, and parses it.

    bench ─┐
           ├──▶ Scraper.fetch ──HTTP──▶ service
    top  ──┘          └──▶ Page

Needs prometheus_client. Any thread may call it.
"""

import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from digitserve.credentials import Credentials, explain_handshake, is_local_host, unverified_context
from digitserve.errors import AccessDenied, CredentialsError, DigitserveError

TIMEOUT_S = 2.0
"""For connecting, and for each read of the page."""

MAX_PAGE_BYTES = 16 << 20
"""A page has 70 kB; more labels of a model add 1 kB each."""

NAME = "digitserve_images_total"
"""A metric that each page of digitserve has."""

Labels = frozenset[tuple[str, str]]


class NotAvailable(DigitserveError):
    """The page cannot be read, or it is not a page of digitserve; the message has the reason."""


class NoAnswer(NotAvailable, ConnectionError):
    """No service answers."""


class TooSlow(NotAvailable, TimeoutError):
    """The service did not answer in time."""


class Denied(NotAvailable, AccessDenied):
    """The TLS handshake failed, or the token was not accepted."""


class Page:
    """The samples of a page.

    Attributes:
        samples: by name of the sample, such as ``digitserve_batch_size_bucket``: values by labels.
    """

    def __init__(self, samples: dict[str, dict[Labels, float]]) -> None:
        """Keep the samples."""
        self.samples = samples

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels; 0 if there is none."""
        return sum(value for _, value in self._matching(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return sums by the value of one label, over the samples that have the other labels."""
        sums: dict[str, float] = {}
        for have, value in self._matching(name, labels):
            key = next((text for known, text in have if known == label), "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of the first sample of a name; empty if there is none."""
        return dict(next(iter(self.samples.get(name, {})), frozenset()))

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return the counts of a histogram by the upper bound of each bucket, in ascending order, not cumulative."""
        cumulative = {float(bound): value for bound, value in self.by(f"{name}_bucket", "le", **labels).items()}
        counts, below = {}, 0.0
        for bound in sorted(cumulative):
            counts[bound], below = cumulative[bound] - below, cumulative[bound]
        return counts

    def _matching(self, name: str, labels: dict[str, str]) -> Iterator[tuple[Labels, float]]:
        wanted = labels.items()
        return ((have, value) for have, value in self.samples.get(name, {}).items() if wanted <= have)


class Scraper:
    """Fetches one page; lives as long as its caller needs the page."""

    def __init__(self, url: str, credentials: Credentials, *, verify: bool = True) -> None:
        """Prepare.

        Args:
            url: of the page.
            credentials: for ``https://``, and the token if the page needs one.
            verify: whether to check the certificate; without it, the service must be on this machine.

        Raises:
            NotAvailable: the URL or the credentials cannot be used.
        """
        self._url, self._credentials = url, credentials
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            raise NotAvailable(f"{url}: expected a URL that begins with http:// or https://")
        # Not through a proxy, because the load of bench is not sent through one either.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        tls = parts.scheme == "https"
        try:
            if tls:
                context = credentials.ssl_context("http/1.1") if verify else unverified_context()
                handlers.append(urllib.request.HTTPSHandler(context=context))
            self._authorization = credentials.authorization()
        except CredentialsError as error:
            raise NotAvailable(f"{url}: {error}") from None
        self._advice = "pass token_file or token"
        if self._authorization is not None and not credentials.may_send_token(
            tls=tls, local=is_local_host(parts.hostname or "")
        ):
            self._authorization = None
            self._advice = "it is not sent without TLS: use https://, or pass clear_text_token"
        self._opener = urllib.request.build_opener(*handlers)

    def fetch(self) -> Page:
        """Fetch and parse the page.

        Raises:
            NotAvailable: it cannot be fetched, or it is not a page of digitserve.
        """
        request = urllib.request.Request(self._url)  # noqa: S310 - its scheme was checked
        if self._authorization is not None:
            # Not sent to the target of a redirect.
            request.add_unredirected_header("Authorization", self._authorization())
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as page:
                text = page.read(MAX_PAGE_BYTES).decode()
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.UNAUTHORIZED:
                raise Denied(f"{self._url}: HTTP status 401; it needs a token: {self._advice}") from None
            raise NotAvailable(f"{self._url}: HTTP status {error.code}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise _explain(self._url, error) from None
        return parse(text, self._url)


def _explain(url: str, error: Exception) -> NotAvailable:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return TooSlow(f"{url}: no answer within {TIMEOUT_S:g} s")
    reason = getattr(cause, "strerror", None) or str(cause)
    if handshake := explain_handshake(reason):
        return Denied(f"{url}: {handshake}")
    return (NoAnswer if isinstance(error, OSError | HTTPException) else NotAvailable)(f"{url}: {reason}")


def parse(text: str, url: str) -> Page:
    """Parse the text of a page; samples that are not finite numbers are left out.

    Args:
        text: in the Prometheus text format.
        url: of the page, for errors.

    Raises:
        NotAvailable: it is not a page of digitserve.
    """
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    float(sample.labels.get("le", ""))
                if not math.isfinite(sample.value):
                    continue
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise NotAvailable(f"{url}: not a page of Prometheus metrics ({error})") from None
    if NAME not in samples:
        raise NotAvailable(f"{url}: the page has no {NAME}")
    return Page(samples)
