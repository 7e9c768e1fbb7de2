"""Builds the documentation site in ``site/``: HTML without a server, in which search works too.

``make site`` runs it in an environment with ``requirements/site.txt``. It uses no network, and fails on a dead link or anchor.
Its pages load nothing from other hosts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from documentation.stage import Stage, StageError

ROOT = Path(__file__).parent.parent
DESIGN = Path(__file__).parent / "documentation"


def build(root: Path, output: Path) -> int:
    """Build the site of a repository in a folder, whose content is replaced, and return the exit code of MkDocs."""
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder, "pages")
        navigation = Stage(root, pages).run()
        shutil.copytree(DESIGN / "assets", pages / "assets")
        # JSON is YAML.
        config = {
            "INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": str(pages), "site_dir": str(output), "nav": navigation,
            "theme": {"custom_dir": str(DESIGN / "theme")},
        }  # fmt: skip
        Path(folder, "mkdocs.yml").write_text(json.dumps(config))
        environment = os.environ | {"PYTHONPATH": str(ROOT / "service"), "NO_MKDOCS_2_WARNING": "true"}
        # Not with --quiet, which also hides warnings from --strict.
        built = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", Path(folder, "mkdocs.yml")],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode:
            sys.stderr.write(built.stderr)
        return built.returncode


def main() -> int:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder of the site (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository with the pages (default: this one)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    try:
        exit_code = build(arguments.root, output)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    if exit_code == 0:
        print(f"open {output / 'index.html'}")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
