"""Memory growth of one worker over a million requests.

    python -m benchmarks.soak --requests 1000000

Each request has two images; sizes are mixed, and some images are framed. The load generator is ``digitserve bench``. Growth
counts from the first tenth of the requests, because some memory is allocated only once.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.installation import BenchError
from benchmarks.load import add_cores
from benchmarks.servers import Digitserve

SIZES = "28x28:8,64x64:1,100x60:1"
IMAGES = 2
POLL_S = 2.0
WARM_UP_FRACTION = 0.1
MAX_GROWTH = 0.02


def soak(server: Digitserve, load_cores: str, num_requests: int) -> tuple[int, int]:
    """Load a server until it has answered this many requests; return a worker's memory after the first tenth and at the end.

    Returns:
        Both in bytes.

    Raises:
        BenchError: the load generator ended before.
    """
    command = [
        "taskset", "-c", load_cores, str(Path(sys.executable).parent / "digitserve"), "bench",
        "--address", f"127.0.0.1:{server.grpc_port}", "--metrics", server.metrics_url(), "--sizes", SIZES, "--images", str(IMAGES),
        "--processes", "1", "--duration-s", "86400",
    ]  # fmt: skip
    first_bytes = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            while (answered := server.num_ok() // IMAGES) < num_requests:
                if load.poll() is not None:
                    raise BenchError(
                        f"the load generator ended with exit code {load.returncode} after {answered} requests"
                    )
                if not first_bytes and answered >= WARM_UP_FRACTION * num_requests:
                    first_bytes = server.worker_bytes()
                sys.stderr.write(f"\r{answered:,} of {num_requests:,} requests, {server.worker_bytes() / 1e6:.1f} MB ")
                time.sleep(POLL_S)
        finally:
            load.terminate()
    sys.stderr.write("\n")
    return first_bytes or server.worker_bytes(), server.worker_bytes()


def main() -> int:
    """Run as a command; return 1 when the memory grew by more than 2 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--requests", type=int, default=1_000_000, help="number of requests (default 1000000)")
    add_cores(parser)
    options = parser.parse_args()
    with Digitserve(options.models, options.cores) as server:
        first_bytes, end_bytes = soak(server, options.load_cores, options.requests)
    growth = end_bytes / first_bytes - 1
    sys.stdout.write(
        f"{options.requests:,} requests: a worker used {first_bytes / 1e6:.1f} MB after the first tenth and {end_bytes / 1e6:.1f} MB "
        f"at the end, {growth:+.1%} (maximum {MAX_GROWTH:+.0%})\n"
    )
    return 0 if growth <= MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
