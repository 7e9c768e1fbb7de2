"""Creates the environment of ``mosec_service``: ``compare`` measures that service only if it exists.

    python -m benchmarks.mosec

The environment has mosec, and finds everything else, digitserve and onnxruntime included, in the one that runs this command:
both services then have the same network and the same versions.
"""

import subprocess
import sys
import sysconfig
import venv

from benchmarks.peers import MOSEC_PYTHON

REQUIREMENT = "mosec==0.9.8"


def main() -> None:
    """Create the environment, or replace it."""
    environment = MOSEC_PYTHON.parents[1]
    venv.create(environment, clear=True, with_pip=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Unlike a plain path, this also follows the .pth files of that folder, so an editable installation is found.
    (packages / "benchmarks.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    subprocess.run([MOSEC_PYTHON, "-m", "pip", "install", REQUIREMENT], check=True)
    sys.stdout.write(f"{REQUIREMENT} is installed in {environment}\n")


if __name__ == "__main__":
    main()
