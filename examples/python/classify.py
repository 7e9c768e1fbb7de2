"""Classify image files with the client library.

    pip install digitserve
    python classify.py --address 127.0.0.1:50051 ../three.png

A program uses the answer only if the verdict is ACCEPTED.
"""

import argparse
import sys

from PIL import Image

from digitserve.client import Client, ClientError, Prediction, Verdict


def describe(prediction: Prediction) -> str:
    """Return the digit, or why there is none that a program should use."""
    if prediction.verdict is Verdict.ACCEPTED:
        return f"{prediction.label} ({prediction.confidence:.1%})"
    return f"not a clear digit: {prediction.verdict.name}"


def main() -> None:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    # A program that runs for long opens one client and keeps it: threads may share it.
    with Client(arguments.address, timeout_s=5.0) as client:
        predictions = client.classify([Image.open(path) for path in arguments.files])
    for path, prediction in zip(arguments.files, predictions, strict=True):
        print(f"{path}: {describe(prediction)}")


if __name__ == "__main__":
    try:
        main()
    except (ClientError, OSError) as error:
        sys.exit(f"classify.py: {error}")
