"""Entry point of the command ``digitserve`` and of ``python -m digitserve``."""

from digitserve.interrupt import exit_when_interrupted


def main() -> None:
    """Run the command line of this process."""
    exit_when_interrupted()
    from digitserve.cli import main as run  # noqa: PLC0415 - Ctrl-C must be handled first

    run(prog_name="digitserve")


if __name__ == "__main__":
    main()
