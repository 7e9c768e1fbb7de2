"""The dashboard has the types that Grafana's own package declares: ``@grafana/schema``, checked by the TypeScript compiler."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support.prometheus import DEPLOY
from support.serving import PATIENCE_S

PACKAGE = Path(__file__).parents[2] / "support/grafana_schema/package.json"
PROGRAM = """
import type { Dashboard } from '@grafana/schema';
// Enumerations as the texts that JSON has.
type Json<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
export const dashboard: Json<Dashboard> = %s;
"""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package and the compiler."""
    npm = shutil.which("npm") or pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("grafana_schema")
    shutil.copy(PACKAGE, folder)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=folder, capture_output=True, timeout=2 * PATIENCE_S, check=True,
    )  # fmt: skip
    return folder


def compile_errors(folder: Path, dashboard: object) -> str:
    """Return what the compiler says about a dashboard; unknown names are errors too."""
    (folder / "dashboard.ts").write_text(PROGRAM % json.dumps(dashboard, indent=1))
    flags = [
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--moduleResolution",
        "node",
        "--module",
        "esnext",
        "--target",
        "es2020",
    ]
    checked = subprocess.run(
        ["node_modules/.bin/tsc", *flags, "dashboard.ts"], cwd=folder, capture_output=True, text=True, check=False
    )
    return checked.stdout


def test_the_dashboard_has_the_types_of_grafana(schema: Path) -> None:
    """Panels, variables and options are those of the schema; a wrong type and an unknown name are found."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/digitserve.json").read_text())
    # The type of annotations does not have the fields of data sources, such as expr.
    dashboard["annotations"]["list"] = []
    assert compile_errors(schema, dashboard) == ""
    dashboard["panels"][1]["gridPos"]["w"] = "wide"
    dashboard["panels"][2]["titel"] = "a misspelt name"
    errors = compile_errors(schema, dashboard)
    assert "Type 'string' is not assignable to type 'number'" in errors
    assert "titel" in errors
