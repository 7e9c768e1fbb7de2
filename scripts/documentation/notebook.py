"""Converts a Jupyter notebook without outputs to a page. Used by ``stage``."""

import json
from pathlib import Path


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text as it is, its code as blocks."""
    cells = json.loads(path.read_text())["cells"]
    texts = ("".join(cell["source"]).rstrip("\n") for cell in cells)
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )
