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

import posixpath
import re
import shutil
from pathlib import Path, PurePosixPath

from documentation.notebook import notebook_page

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```|^    .*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
NESTED = re.compile(r"^  - ", re.MULTILINE)
"""An entry of a nested list: Python-Markdown needs 4 spaces, GitHub 2."""
COMMENT = re.compile(r"^<!--.*?-->\n?", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^)#]+\.(?:md|ipynb|html))\)", re.MULTILINE)
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
HEADS = {
    HOME: "hide: [navigation]",
    "docs/decisions.md": "search: {boost: 0.5}",
    "CHANGELOG.md": "search: {boost: 0.5}",
}
"""Front matter of pages: the lists of the home page are the navigation; searches find guides before decisions and changes."""


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

    def run(self) -> list[dict[str, object]]:
        """Stage the documentation, and return the navigation for MkDocs: the lists of ``docs/index.md``."""
        self._waiting = [HOME]
        while self._waiting:
            self._stage(self._waiting.pop())
        navigation: list[dict[str, object]] = [{"Home": "index.md"}]
        sections = re.split(r"^## (.+)$", (self.root / HOME).read_text(), flags=re.MULTILINE)[1:]
        for title, text in zip(sections[::2], sections[1::2], strict=True):
            pages = [
                {name: self._target(posixpath.normpath(f"docs/{link}"), HOME)} for name, link in ENTRY.findall(text)
            ]
            navigation.append({title: pages})
        return navigation

    def _stage(self, source: str) -> None:
        """Stage one file of the repository."""
        path, target = self.root / source, self.folder / self._target(source, source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            head = f"---\n{HEADS[source]}\n---\n\n" if source in HEADS else ""
            target.write_text(head + self._page(path.read_text(), source))
        elif source.endswith(".ipynb"):
            target.write_text(self._page(notebook_page(path), source))
        elif source.endswith("/report/index.html"):
            shutil.copytree(path.parent, target.parent, dirs_exist_ok=True)
        elif target.suffix == ".md":
            fence = f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}````\n"
            target.write_text(f"---\nsearch:\n  exclude: true\n---\n\n# {source}\n\n{fence}")
        else:
            shutil.copy(path, target)

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
