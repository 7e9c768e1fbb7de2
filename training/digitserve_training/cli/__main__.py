"""``python -m digitserve_training.cli``."""

from digitserve_training.cli import main

main(prog_name="digitserve-train")
