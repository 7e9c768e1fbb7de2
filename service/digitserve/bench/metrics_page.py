"""The service's own counters: its /metrics page, read before and after the measured time.

Called by ``coordinator`` on a separate thread. A page without these counters is reported as not available.
"""

import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from digitserve.credentials import Credentials, explain_handshake, is_local_host
from digitserve.errors import CredentialsError, DigitserveError

TIMEOUT_S = 2.0

_NONE = Credentials()


class NotAvailable(DigitserveError):
    """The page cannot be read, or it is not a page of digitserve; the message has the reason."""


@dataclass(frozen=True)
class ServiceCounters:
    """Counters of the service, or their increase between two readings.

    Attributes:
        images: number of classified images.
        cpu_s: CPU seconds of all workers; None when the service does not count them.
        batches: number of batches by the upper bound of their size, in images.
        batched_images: number of images in these batches.
    """

    images: float
    cpu_s: float | None
    batches: dict[float, float] = field(default_factory=dict)
    batched_images: float = 0.0

    def since(self, before: Self) -> Self:
        """Return the increase since an earlier reading.

        Raises:
            NotAvailable: the service was restarted in between.
        """
        if self.images < before.images:
            raise NotAvailable("the service was restarted during the measurement")
        cpu_s = None if self.cpu_s is None or before.cpu_s is None else self.cpu_s - before.cpu_s
        batches = {bound: num - before.batches.get(bound, 0.0) for bound, num in self.batches.items()}
        return type(self)(self.images - before.images, cpu_s, batches, self.batched_images - before.batched_images)

    @property
    def mean_batch_size(self) -> float | None:
        """Images per batch; None without a batch."""
        num = sum(self.batches.values())
        return self.batched_images / num if num else None

    @property
    def cpu_s_per_image(self) -> float | None:
        """CPU seconds per image; None when they are not counted, or no image was classified."""
        return None if self.cpu_s is None or not self.images else self.cpu_s / self.images


def read(url: str, credentials: Credentials = _NONE) -> ServiceCounters:
    """Fetch and parse a page, not through a proxy, because the load is not sent through one either.

    Args:
        url: of the page.
        credentials: for ``https://``, and the token if the page needs one.

    Raises:
        NotAvailable: it cannot be fetched, or it is not a page of digitserve.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise NotAvailable(f"{url}: expected a URL that begins with http:// or https://")
    request = urllib.request.Request(url)  # noqa: S310 - checked above
    advice = "pass token_file or token"
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    try:
        tls = parts.scheme == "https"
        if tls:
            handlers.append(urllib.request.HTTPSHandler(context=credentials.ssl_context("http/1.1")))
        authorization = credentials.authorization()
        if authorization is not None and not credentials.may_send_token(
            tls=tls, local=is_local_host(parts.hostname or "")
        ):
            authorization, advice = None, "it is not sent without TLS: use https://, or pass clear_text_token"
        if authorization is not None:
            # Not sent to the target of a redirect.
            request.add_unredirected_header("Authorization", authorization())
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as page:
            text = page.read().decode()
    except CredentialsError as error:
        raise NotAvailable(f"{url}: {error}") from None
    except urllib.error.HTTPError as error:
        advice = f"; it needs a token: {advice}" if error.code == HTTPStatus.UNAUTHORIZED else ""
        raise NotAvailable(f"{url}: HTTP status {error.code}{advice}") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
        raise NotAvailable(f"{url}: {explain_handshake(reason) or reason}") from None
    return parse(text, url)


def parse(text: str, url: str) -> ServiceCounters:
    """Parse the text of a page.

    Raises:
        NotAvailable: it is not a page of digitserve.
    """
    samples: dict[str, float] = {}
    cumulative: dict[float, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            if family.name in {"digitserve_images", "digitserve_cpu_seconds", "digitserve_batch_size"}:
                for sample in family.samples:
                    if sample.name.endswith("_bucket"):
                        cumulative[float(sample.labels["le"])] = sample.value
                    else:
                        samples[sample.name] = sample.value
    except ValueError as error:
        raise NotAvailable(f"{url}: not a page of Prometheus metrics ({error})") from None
    if "digitserve_images_total" not in samples:
        raise NotAvailable(f"{url}: the page has no digitserve_images_total")
    batches, below = {}, 0.0
    for bound in sorted(cumulative):
        batches[bound], below = cumulative[bound] - below, cumulative[bound]
    return ServiceCounters(
        samples["digitserve_images_total"], samples.get("digitserve_cpu_seconds_total"), batches,
        samples.get("digitserve_batch_size_sum", 0.0),
    )  # fmt: skip
