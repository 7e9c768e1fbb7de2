"""Classify image files with the client library for asyncio.

    pip install digitserve
    python classify_async.py --address 127.0.0.1:50051 ../three.png ../three.png

Each file is a call of its own, and all of them run at the same time, as in a web server.
"""

import argparse
import asyncio
import sys

from PIL import Image

from digitserve.client import AsyncClient, ClientError


async def classify(client: AsyncClient, path: str) -> str:
    """Return the line for one file."""
    (prediction,) = await client.classify(Image.open(path))
    return f"{path}: {prediction.label or '-'} {prediction.confidence:.3f} {prediction.verdict.name}"


async def main() -> None:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    # The client of a web server lives as long as the server. A call ends after 5 seconds, its retries included.
    async with AsyncClient(arguments.address, timeout_s=5.0) as client:
        lines = await asyncio.gather(*(classify(client, path) for path in arguments.files))
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (ClientError, OSError) as error:
        sys.exit(f"classify_async.py: {error}")
