"""The documentation site, built from its lock: links, resources of pages, and search without a server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser

from support.browser import DESKTOP, accessibility_faults, chromium, run_browser
from support.packages import BUILD_TIMEOUT_S, ROOT, TOOLS, run

BUILD = ROOT / "scripts" / "build_site.py"
SOURCES = {"src", "srcset", "poster", "data", "action"}
"""Attributes whose address a browser opens by itself, or to which it sends a form."""


class Page(HTMLParser):
    """What a page refers to.

    Attributes:
        anchors: ids of its elements.
        links: addresses that readers can open.
        loaded: addresses that a browser loads with the page.
        scripts: code in the page itself.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep ids and addresses."""
        self._in_script = tag == "script"
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif tag == "a" and name == "href":
                self.links.add(value or "")
            elif name in SOURCES or (name == "href" and tag != "a"):
                self.loaded.add(value or "")

    def handle_data(self, data: str) -> None:
        """Keep the code of scripts."""
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        """End a script."""
        self._in_script = False


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the lock of the site."""
    folder, uv = tmp_path_factory.mktemp("environment"), TOOLS / "uv"
    run([uv, "venv", "--quiet", "--no-project", "--clear", f"--python={sys.executable}", folder], ROOT)
    lock = ROOT / "requirements" / "site.txt"
    run([uv, "pip", "sync", "--quiet", "--require-hashes", f"--python={folder}", lock], ROOT)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def site(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    output = tmp_path_factory.mktemp("site")
    run([python, BUILD, "--output", output], ROOT)
    return output


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return all pages of the site by their files."""
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_leads_to_a_file_and_an_anchor(site: Path, pages: dict[Path, Page]) -> None:
    """Each link between pages names a file of the site and, after ``#``, the id of an element; none leaves the site. Each
    picture, script and style sheet of a page is a file of the site.
    """
    dead = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            name, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:", name):
                continue
            # The page for unknown addresses has links from the root of the site.
            target = (site / name[1:] if name.startswith("/") else path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            known = target.is_file() and target.is_relative_to(site)
            if not known or (target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []
    assert len(pages) > 50


def test_pages_load_nothing_from_other_hosts(site: Path, pages: dict[Path, Page]) -> None:
    """Scripts, styles, fonts, pictures and forms of all pages and style sheets are files of the site, or within the page."""
    loaded = {(path, address) for path, page in pages.items() for address in page.loaded}
    for sheet in site.rglob("*.css"):
        loaded |= {(sheet, address) for address in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text())}
    foreign = [(path.name, address) for path, address in loaded if re.match(r"(?!data:)\w+:|//", address)]
    assert foreign == []
    assert not [script for page in pages.values() for script in page.scripts if "https:" in script]
    # The theme would load a library from another host for the diagrams of these pages.
    assert not [path for path in pages if 'class="mermaid"' in path.read_text()]


def test_the_references_are_in_the_site(pages: dict[Path, Page], site: Path) -> None:
    """The pages from the proto, the commands, the manifest and the docstrings have an entry for each kind of thing."""
    for page, anchor in (
        ("messages", "classifyrequest"), ("commands", "digitserve-models-verify"), ("bundle", "manifest"),
        ("python-client", "digitserve.client.Client.classify"), ("python-client", "digitserve.client.errors.Unreachable"),
    ):  # fmt: skip
        assert anchor in pages[site / "reference" / f"{page}.html"].anchors


def test_pages_are_described(site: Path, pages: dict[Path, Page]) -> None:
    """Search engines get what the home page says about a page, without Markdown; the titles of pages differ."""
    operate = (site / "how-to" / "operate.html").read_text()
    assert (
        '<meta name="description" content="Operate the service: container, shutdown, overload, logs, CPU budget'
        in operate
    )
    titles = [re.search(r"<title>(.*?)</title>", path.read_text(), re.DOTALL)[1] for path in pages]  # type: ignore[index]
    assert len(set(titles)) == len(titles)


def open_page(page: Path, folder: Path, query: str = "") -> tuple[str, list[str]]:
    """Open a page in Chromium from disk, and return its HTML and the addresses that it requested."""
    program = chromium() or pytest.skip("chromium is not installed")
    log = folder / "net.json"
    shown = run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
            "--virtual-time-budget=5000", "--dump-dom", f"{page.as_uri()}{query}",
        ],
        folder,
    )  # fmt: skip
    # Requests of Chromium itself have the initiator "not an origin".
    requests = re.findall(r'"initiator":"(?!not an origin)[^"]*".*?"url":"(https?:[^"]*)"', log.read_text())
    return shown, requests


def test_search_works_without_a_server(site: Path, tmp_path: Path) -> None:
    """Chromium opens a page from disk and shows results of a search; the page requests nothing from any host."""
    shown, requests = open_page(site / "index.html", tmp_path, "?q=golden")
    assert re.search(r'href="[^"]*reference/bundle.html[^"]*"[^>]*class="md-search-result__link"', shown)
    assert requests == []


def test_the_browser_reports_requests_to_other_hosts(tmp_path: Path) -> None:
    """A page with a script on another host fails the check of ``test_search_works_without_a_server``."""
    page = tmp_path / "page.html"
    page.write_text('<script src="https://other.invalid/script.js"></script>')
    assert open_page(page, tmp_path)[1] == ["https://other.invalid/script.js"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("chromium is not installed")
    with run_browser() as browser:
        yield browser


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "reference/settings", "reference/python-client"])
def test_pages_are_accessible(browser: Browser, site: Path, name: str, colors: str) -> None:
    """The start page, a page with tables, and the page of the client library have no violation that axe finds."""
    with browser.new_context(**DESKTOP, color_scheme=colors) as context:
        page = context.new_page()
        page.goto((site / f"{name}.html").as_uri())
        assert accessibility_faults(page) == []


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """Return a small repository with a home page and one other page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n## Guides\n\n- [Guide](guide.md)\n")
    (tmp_path / "docs" / "guide.md").write_text("# Guide\n\n## A part\n")
    return tmp_path


@pytest.mark.parametrize(
    ("link", "error"),
    [("guide.md#a-part", None), ("guide.md#other", "#other"), ("../gone.py", "gone.py"), ("../../out.md", "out.md")],
)
def test_dead_links_fail_the_build(python: Path, repository: Path, link: str, error: str | None) -> None:
    """The build fails, and names the link, if a file or heading does not exist, or is outside of the repository."""
    guide = repository / "docs" / "guide.md"
    guide.write_text(f"{guide.read_text()}\n[link]({link})\n")
    ended = subprocess.run(
        [python, BUILD, "--root", repository, "--output", repository / "site"],
        capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (ended.returncode, error is None) in {(0, True), (1, False)}, ended.stderr
    assert error is None or error in ended.stderr
