"""The notebook ``docs/walkthrough.ipynb``, run from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support.digits import MODELS, needs_mnist
from support.serving import PATIENCE_S

NOTEBOOK = MODELS.parent / "docs" / "walkthrough.ipynb"
SMALLER = "PRESET = 'lenet5'\nNUM_IMAGES = 2_400\nEPOCHS = 1"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    """Read the notebook."""
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """Return what a cell printed."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_no_outputs_are_kept(notebook: nbformat.NotebookNode) -> None:
    """The notebook in the repository has no outputs and no execution counts, so that its diffs are readable."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert len(cells) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@needs_mnist
def test_top_to_bottom(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer images, all cells run: they train, show mistakes, export, and get the same label from the ONNX file
    and from the running service.
    """
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALLER

    NotebookClient(notebook, timeout=2 * PATIENCE_S, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert re.match(r"\d+ of 200 are wrong", printed(notebook, "mistakes"))
    (picture,) = (cell for cell in notebook.cells if cell.id == "picture")
    assert any("image/png" in output.get("data", ()) for output in picture.outputs)
    answers = [re.search(r": (\d), confidence (\S+%)", printed(notebook, part)) for part in ("file", "service")]
    assert answers[0] and answers[1]
    assert answers[0].groups() == answers[1].groups()
