"""Collects the pages of the site: ``docs/``, and every file outside of it that they link to.

The pages are plain Markdown whose relative links work in the repository. Staging keeps these links working in the site:

    docs/NAME                 the same page
    FOLDER/README.md, X.md    folder/index.md, x.md
    a notebook                a page
    a report                  its folder, unchanged
    a picture                 source/PATH
    any other text file       source/PATH.md, a page that shows it

Used by ``build_site``.
"""

import json
import posixpath
import re
import shutil
from pathlib import Path, PurePosixPath

from documentation.notebook import notebook_page

LINK = re.compile(r"(\]\(|<img src=\")([^)\s\"]+)([)\"])")
"""A link or a picture in Markdown, or a picture in HTML, which can have a width."""
CODE = re.compile(r"(^```.*?^```|^    .*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
NESTED = re.compile(r"^  - ", re.MULTILINE)
"""An entry of a nested list: Python-Markdown needs 4 spaces, GitHub 2."""
COMMENT = re.compile(r"^<!--.*?-->\n?", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^)#]+\.(?:md|ipynb|html))\)(.*(?:\n  .*)*)", re.MULTILINE)
"""A page in the lists of the home page: its title, its link, and what is said about it."""
LANGUAGES = {
    ".go": "go",
    ".mjs": "js",
    ".py": "python",
    ".yaml": "yaml",
    ".json": "json",
    ".proto": "protobuf",
    ".toml": "toml",
}
"""By suffix: the language of a text file, for its colours."""

HOME = "docs/index.md"
HEADS: dict[str, dict[str, object]] = {
    HOME: {"hide": ["navigation"]},
    "docs/decisions.md": {"search": {"boost": 0.5}},
    "CHANGELOG.md": {"search": {"boost": 0.5}},
}
"""Front matter of pages: the lists of the home page are the navigation; searches find guides before decisions and changes."""

Navigation = list[dict[str, object]]
"""As MkDocs has it: titles with pages, or with a list of the same kind."""


class StageError(Exception):
    """A page has a link that the site cannot have."""


class Stage:
    """Copies pages to a folder, with all that they link to.

    Attributes:
        root: the repository.
        folder: receives the pages; a new one.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self._staged: set[str] = set()
        self._waiting: list[str] = []
        self._descriptions: dict[str, str] = {}

    def run(self) -> Navigation:
        """Stage the documentation, and return the navigation for MkDocs: headings and lists of ``docs/index.md``."""
        navigation: Navigation = [{"Home": "index.md"}, *self._navigation((self.root / HOME).read_text(), "##")]
        self._waiting = [HOME]
        while self._waiting:
            self._stage(self._waiting.pop())
        return navigation

    def _navigation(self, text: str, level: str) -> Navigation:
        """Return the sections of the home page with headings of a level, and the pages in them."""
        navigation: Navigation = []
        before, *sections = re.split(rf"^{level} (.+)$", text, flags=re.MULTILINE)
        for name, link, rest in ENTRY.findall(before):
            source = posixpath.normpath(f"docs/{link}")
            self._descriptions[source] = _plain(name + rest)
            navigation.append({name: self._target(source, HOME)})
        for title, section in zip(sections[::2], sections[1::2], strict=True):
            navigation.append({title: self._navigation(section, f"{level}#")})
        return navigation

    def _stage(self, source: str) -> None:
        """Stage one file of the repository."""
        path, target = self.root / source, self.folder / self._target(source, source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(self._head(source) + self._page(path.read_text(), source))
        elif source.endswith(".ipynb"):
            target.write_text(self._head(source) + self._page(notebook_page(path), source))
        elif source.endswith("/report/index.html"):
            shutil.copytree(path.parent, target.parent, dirs_exist_ok=True)
        elif target.suffix == ".md":
            fence = f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}````\n"
            target.write_text(f"---\nsearch:\n  exclude: true\n---\n\n# {source}\n\n{fence}")
        else:
            shutil.copy(path, target)

    def _head(self, source: str) -> str:
        """Return the front matter of a page: what the home page says about it describes it for search engines."""
        described = {"description": self._descriptions[source]} if source in self._descriptions else {}
        head = HEADS.get(source, {}) | described
        # JSON is YAML.
        return f"---\n{json.dumps(head)}\n---\n\n" if head else ""

    def _page(self, text: str, source: str) -> str:
        """Return a page with links that are right in the site, without comments; what it links to is staged later."""
        here = posixpath.dirname(self._target(source, source))

        def replace(match: re.Match[str]) -> str:
            link, _, anchor = match[2].partition("#")
            if not link or "://" in link or link.startswith("mailto:"):
                return match[0]
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
            target = self._target(linked, source)
            if linked not in self._staged:
                self._staged.add(linked)
                self._waiting.append(linked)
            return f"{match[1]}{posixpath.relpath(target, here or '.')}{'#' + anchor if anchor else ''}{match[3]}"

        # Odd parts are code.
        parts = CODE.split(COMMENT.sub("", text))
        parts[::2] = [NESTED.sub("    - ", LINK.sub(replace, part)) for part in parts[::2]]
        return "".join(parts)

    def _target(self, source: str, page: str) -> str:
        """Return where a file of the repository is in the site.

        Raises:
            StageError: it is not a file; ``page`` links to it.
        """
        if source.startswith("../") or not (self.root / source).is_file():
            raise StageError(f"{page} links to {source}; expected a file of the repository")
        path = PurePosixPath(source)
        if path.parts[0] == "docs":
            return str(PurePosixPath(*path.parts[1:]).with_suffix(".md" if path.suffix == ".ipynb" else path.suffix))
        if source == "README.md":
            return "index.md"
        if path.suffix == ".md":
            return str(path.with_name("index.md" if path.name == "README.md" else path.name.lower()))
        if source.endswith("/report/index.html"):
            return source
        return f"source/{source}" if path.suffix in {".png", ".svg"} else f"source/{source}.md"


def _plain(text: str) -> str:
    """Return Markdown without links and marks of code, on one line."""
    return " ".join(re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "").split())
