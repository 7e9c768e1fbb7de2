"""The service's own counters: its /metrics page, read before and after the measured time.

Called by ``coordinator`` on a separate thread. A page without these counters is reported as not available.
"""

from dataclasses import dataclass, field
from typing import Self

from digitserve import scrape
from digitserve.credentials import Credentials
from digitserve.scrape import NotAvailable, Scraper

_NONE = Credentials()


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
    """Fetch and parse a page.

    Args:
        url: of the page.
        credentials: for ``https://``, and the token if the page needs one.

    Raises:
        NotAvailable: it cannot be fetched, or it is not a page of digitserve.
    """
    return _counters(Scraper(url, credentials).fetch())


def parse(text: str, url: str) -> ServiceCounters:
    """Parse the text of a page.

    Raises:
        NotAvailable: it is not a page of digitserve.
    """
    return _counters(scrape.parse(text, url))


def _counters(page: scrape.Page) -> ServiceCounters:
    cpu = "digitserve_cpu_seconds_total"
    return ServiceCounters(
        page.total("digitserve_images_total"), page.total(cpu) if cpu in page.samples else None,
        page.buckets("digitserve_batch_size"), page.total("digitserve_batch_size_sum"),
    )  # fmt: skip
