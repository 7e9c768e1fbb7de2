"""The command ``digitserve``, also as ``python -m digitserve``."""

from digitserve.interrupt import exit_when_interrupted


def main() -> None:
    """Run the command line of this process."""
    exit_when_interrupted()
    from digitserve.cli import main as run  # noqa: PLC0415 - Ctrl-C must be handled before

    run(prog_name="digitserve")


if __name__ == "__main__":
    main()
