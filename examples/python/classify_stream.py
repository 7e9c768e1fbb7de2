"""Classify images on one stream, until standard input ends.

    pip install digitserve
    ls ../*.png | python classify_stream.py --address 127.0.0.1:50051

The names of the files are read from standard input. Each answer is printed as soon as it arrives.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterator

from PIL import Image

from digitserve.client import Client, ClientError


def images(paths: deque[str]) -> Iterator[Image.Image]:
    """Open each file when its name arrives, and append the name to ``paths``."""
    for line in sys.stdin:
        paths.append(line.rstrip("\n"))
        yield Image.open(paths[-1])


def main() -> None:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    arguments = parser.parse_args()
    paths: deque[str] = deque()
    # Answers are in the order of the images. If a worker is replaced, the client opens the stream again and continues.
    with Client(arguments.address, timeout_s=5.0) as client:
        for prediction in client.classify_stream(images(paths)):
            print(f"{paths.popleft()}: {prediction.label or '-'} {prediction.verdict.name}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ClientError, OSError) as error:
        sys.exit(f"classify_stream.py: {error}")
