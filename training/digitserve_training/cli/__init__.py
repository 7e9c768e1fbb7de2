"""The command ``digitserve-train``."""

from digitserve_training.cli.commands import main

__all__ = ["main"]
