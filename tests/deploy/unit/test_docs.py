"""The documentation: its links lead somewhere, what it copies from the code is current, the README stays one page."""

import json
import re
from pathlib import Path

import pytest

from digitserve.client import RETRY_POLICY

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    """Each relative link and picture names an existing file and, after ``#``, an existing heading."""
    for link in re.findall(r"(?:\]\(|<img src=\")([^)\s\"]+)[)\"]", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    """``docs/index.md`` links to all other pages in ``docs/``."""
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([^)\s#]+)", (docs / "index.md").read_text()))
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"index.md"} <= linked


def test_the_index_lists_each_page_once() -> None:
    """No two entries of ``docs/index.md``, which are the navigation of the site, begin with a link to the same page."""
    entries = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    assert sorted(set(entries)) == sorted(entries)


def test_the_readme_is_short() -> None:
    """The README has at most 90 lines; everything else is in ``docs/``."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_documented_retry_policy_is_that_of_the_client() -> None:
    """The service config in ``docs/how-to/clients.md`` is ``digitserve.client.RETRY_POLICY``."""
    page = (ROOT / "docs" / "how-to" / "clients.md").read_text()
    documented = re.search(r"```json\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
    assert json.loads(documented) == json.loads(RETRY_POLICY)
