"""The commands and programs in the documentation: indented blocks and fenced blocks of the pages."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    ROOT / "docs" / "index.md",
    *sorted((ROOT / "docs" / "start").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    ROOT / "docs" / "reference" / "http.md",
)
"""Pages with commands that readers copy."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n\n)((?:    .*\n|\n(?=    ))+)")
_YAML = re.compile(r"(?:# .*\n)?(?!promql)[\w]+:[ \n]")


@dataclass(frozen=True)
class Step:
    """A command, a program, or a line of another text in a block.

    Attributes:
        page: path in the repository.
        language: of a fenced block, which is one step; ``yaml`` also for an indented block; empty for a line of another one.
        text: a block, or a line without comment; continuation lines are joined.
    """

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip()}"


def steps(page: Path) -> Iterator[Step]:
    """Yield the steps of a page in their order: fenced blocks, then the lines of indented blocks."""
    name, text = str(page.relative_to(ROOT)), page.read_text()
    for language, block in _FENCE.findall(text):
        yield Step(name, language, block)
    for block in map(textwrap.dedent, _INDENTED.findall(_FENCE.sub("", text))):
        if _YAML.match(block):
            yield Step(name, "yaml", block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s+)# .*$", "", line).strip():
                yield Step(name, "", re.sub(r"\s{2,}", " ", command))
