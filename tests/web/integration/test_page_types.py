"""The types of the page's JavaScript, which its comments declare: checked by the TypeScript compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest

from digitserve.web import page_files
from support.serving import PATIENCE_S

PROJECT = Path(__file__).parents[2] / "support/page_types"
PAGE = Path(page_files.__file__).parent / "page"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the compiler and a copy of the page."""
    npm = shutil.which("npm") or pytest.skip("needs npm")
    folder = shutil.copytree(PROJECT, tmp_path_factory.mktemp("page_types"), dirs_exist_ok=True)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=folder, capture_output=True, timeout=2 * PATIENCE_S, check=True,
    )  # fmt: skip
    shutil.copytree(PAGE, folder / "page")
    return folder


def test_the_types_of_the_page_agree(project: Path) -> None:
    """Every call and every value has the type that is declared, and nothing is unused; a call with a wrong type is found."""
    (project / "page/wrong.js").write_text('import { create } from "./elements.js";\ncreate(1, "text");\n')
    checked = subprocess.run(
        ["node_modules/.bin/tsc"], cwd=project, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert [line.partition("(")[0] for line in checked.stdout.splitlines()] == ["page/wrong.js"], checked.stdout
