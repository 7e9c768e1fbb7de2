"""``python -m digitserve``: the command ``digitserve``."""

from digitserve.cli import main

if __name__ == "__main__":
    main(prog_name="digitserve")
