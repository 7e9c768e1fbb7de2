"""Staging of the pages for the documentation site: links, code, navigation."""

import json
from pathlib import Path

import pytest
from documentation.markup import code, escape
from documentation.stage import Stage, StageError

INDEX = """# Home

Text with a [link](guide.md#part), and one [elsewhere](https://example.com).

![picture](../models/digits/4/report/picture.png)
<img src="../picture.svg" width="240">

## Guides

- [Guide](guide.md): text, and
  [a `file`](../code.py).

### Books

- [Notebook](book.ipynb)

## Project

- [Changes](../CHANGELOG.md)
- [Report](../models/digits/4/report/index.html)
"""
GUIDE = """# Guide

<!-- [[[cog
[hidden](gone.md)
]]] -->

- [one](index.md)
  - [nested](../examples/README.md)

Code is unchanged: `[x](y.md)`.

    [x](y.md)

```yaml
  - [x](y.md)
```
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a small repository."""
    for name, text in {
        "docs/index.md": INDEX, "docs/guide.md": GUIDE, "CHANGELOG.md": "# Changes\n", "code.py": "print()\n",
        "examples/README.md": "# Examples\n\n[guide](../docs/guide.md)\n",
        "models/digits/4/report/index.html": "<p>", "models/digits/4/report/picture.png": "",
        "picture.svg": "",
        "docs/book.ipynb": json.dumps({"cells": [
            {"cell_type": "markdown", "source": ["# Book\n", "text"]}, {"cell_type": "code", "source": ["x = 1"]},
        ]}),
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_navigation_is_that_of_the_home_page(repository: Path, tmp_path: Path) -> None:
    """Sections of ``docs/index.md`` are those of the site, headings in them are groups, entries are pages."""
    assert Stage(repository, tmp_path / "pages").run() == [
        {"Home": "index.md"},
        {"Guides": [{"Guide": "guide.md"}, {"Books": [{"Notebook": "book.md"}]}]},
        {"Project": [{"Changes": "changelog.md"}, {"Report": "models/digits/4/report/index.html"}]},
    ]


def test_pages_have_the_description_of_the_home_page(repository: Path, tmp_path: Path) -> None:
    """Front matter has what the home page says about a page, without links and marks."""
    Stage(repository, tmp_path / "pages").run()
    assert (
        (tmp_path / "pages/guide.md")
        .read_text()
        .startswith('---\n{"description": "Guide: text, and a file."}\n---\n\n# Guide')
    )


def test_links_are_right_in_the_site_and_code_is_unchanged(repository: Path, tmp_path: Path) -> None:
    """Links to files outside of ``docs/`` lead to their pages; code keeps its text; comments are left out."""
    pages = tmp_path / "pages"
    Stage(repository, pages).run()
    home, guide = (pages / "index.md").read_text(), (pages / "guide.md").read_text()
    assert (
        "[link](guide.md#part)" in home and "(https://example.com)" in home and "[a `file`](source/code.py.md)" in home
    )
    assert "- [one](index.md)\n    - [nested](examples/index.md)\n" in guide
    assert guide.count("[x](y.md)") == 3 and "  - [x](y.md)" in guide and "hidden" not in guide
    assert "[guide](../guide.md)" in (pages / "examples/index.md").read_text()
    assert "```python\nprint()\n```" in (pages / "source/code.py.md").read_text()
    assert (pages / "book.md").read_text().endswith("# Book\ntext\n\n```python\nx = 1\n```")
    assert (pages / "models/digits/4/report/picture.png").exists()
    assert "(source/models/digits/4/report/picture.png)" in home
    assert (pages / "source/models/digits/4/report/picture.png").exists()
    assert '<img src="source/picture.svg" width="240">' in home and (pages / "source/picture.svg").exists()


@pytest.mark.parametrize(
    "link", ["[x](gone.md)", "[x](../gone.py)", "[x](../../outside.md)", "[x](../models)", '<img src="gone.png">']
)
def test_a_link_to_no_file_is_an_error(repository: Path, tmp_path: Path, link: str) -> None:
    """The error names the page and what it links to."""
    (repository / "docs/guide.md").write_text(link)
    with pytest.raises(StageError, match=r"docs/guide\.md links to .*; expected a file of the repository"):
        Stage(repository, tmp_path / "pages").run()


def test_generated_text_is_shown_as_it_is() -> None:
    """Marks of Markdown are escaped, code keeps them, and no cell of a table ends at a bar."""
    assert escape("a_b  <c>\n``d_e`` [f]") == r"a\_b \<c> `d_e` \[f\]"
    assert code("--ink [a|b]") == "<code>--ink [a&#124;b]</code>"
