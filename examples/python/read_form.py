r"""Read forms with a box for each digit, and list what a person must look at.

    pip install digitserve
    python read_form.py --address 127.0.0.1:50051 --pattern '\d{5}' form.png

A number is used only if it has the pattern and each of its digits is sure enough.
"""

import argparse
import sys

from PIL import Image

from digitserve.client import Client, ClientError, Line, MarkKind


def describe(line: Line) -> str:
    """Return the number of a line, or what is doubtful in it."""
    if line.complete:
        return f"{line.text} ({line.confidence:.1%})"
    doubtful = [mark for mark in line.marks if mark.kind is MarkKind.UNREAD]
    boxes = ", ".join(f"{mark.label or 'nothing'} at column {mark.box.left}" for mark in doubtful)
    return f"{line.text} to be checked: {boxes or 'does not have the pattern'}"


def main() -> None:
    """Print a line per number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--pattern", default="", help=r"of each number, such as \d{5}")
    parser.add_argument("--min-confidence", type=float, default=0.9, help="of each digit, from 0 to 1")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    # A program that runs for long opens one client and keeps it: threads may share it.
    with Client(arguments.address, timeout_s=5.0) as client:
        for path in arguments.files:
            reading = client.read(
                Image.open(path),
                layout="cells",
                pattern=arguments.pattern,
                min_confidence=arguments.min_confidence,
            )
            for line in reading.lines:
                print(f"{path}: {describe(line)}")


if __name__ == "__main__":
    try:
        main()
    except (ClientError, OSError) as error:
        sys.exit(f"read_form.py: {error}")
