"""Writes the screenshots of the terminal in docs/how-to: SVG images of what the real commands print on a terminal.

It starts a service, puts load on it, and runs ``digitserve classify`` and ``digitserve top`` on a pseudo terminal.

    python scripts/draw_terminal.py             # needs rich, which Keras brings, and MNIST (DIGITSERVE_MNIST); takes 30 s
"""

import argparse
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import numpy as np
from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/how-to"
COLUMNS, LINES = 80, 24

# Documents load nothing from other hosts: without the fonts that rich would load, the reader's own are used.
SVG = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "digitserve", *arguments]


@contextmanager
def service() -> Iterator[tuple[str, str]]:
    """Run a service on free ports; yield the address of its gRPC port and the URL of its HTTP port."""
    arguments = command("serve", "--grpc-port", "0", "--http-port", "0", "--models", str(ROOT / "models"))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        banner = ""
        while " try " not in banner:
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line, f"the service did not start: {banner}"
            banner += line
        try:
            yield re.search(r"gRPC +(\S+)", banner)[1], re.search(r"HTTP +(\S+)", banner)[1]  # type: ignore[index]
        finally:
            process.terminate()


def shown(arguments: list[str], folder: Path, quit_after_s: float = math.inf) -> str:
    """Return what a command writes to a terminal; after a time, press q."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(arguments, stdout=child, stderr=child, stdin=child, env=environment, cwd=folder):
        os.close(child)
        pieces, ends = [], time.monotonic() + quit_after_s
        try:
            while True:
                if time.monotonic() > ends:
                    os.write(parent, b"q")
                    ends = math.inf
                if select.select([parent], [], [], 0.1)[0]:
                    pieces.append(os.read(parent, 1 << 16))
        except OSError:  # the command has ended
            pass
    os.close(parent)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def write_svg(path: Path, prompt: str, text: str) -> None:
    """Write what a terminal shows as an SVG image."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, color_system="truecolor")
        console.print(Text(f"$ {prompt}", style="bold"))
        console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
        path.write_text(console.export_svg(title="", code_format=SVG, unique_id=path.stem) + "\n", encoding="utf-8")


def photo() -> Image.Image:
    """Return a digit as on a photo of a sheet of paper: dark blue ink, uneven light."""
    rows, columns = np.mgrid[:240, :320]
    paper = (205 - 0.15 * columns - 0.1 * rows)[..., np.newaxis] + np.array([12.0, 8, -8])
    with np.load(os.environ["DIGITSERVE_MNIST"]) as mnist:
        digit = Image.fromarray(mnist["x_test"][1]).resize((150, 150), Image.Resampling.BICUBIC)
    ink = np.zeros((240, 320, 1))
    ink[45:195, 110:260, 0] = np.asarray(digit) / 255
    return Image.fromarray((paper * (1 - ink) + ink * np.array([25, 40, 110])).clip(0, 255).astype(np.uint8))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as name, service() as (address, url):
        folder = Path(name)
        photo().save(folder / "photo.jpg")
        with np.load(os.environ["DIGITSERVE_MNIST"]) as mnist:
            np.save(folder / "digits.npy", mnist["x_test"][:8])
        for file, flags in (("photo.jpg", ["--explain"]), ("digits.npy", [])):
            text = shown(command("classify", "--address", address, *flags, file), folder)
            prompt = " ".join(["digitserve classify", *flags, file])
            write_svg(FOLDER / f"classify-{file.partition('.')[0]}.svg", prompt, text)
        load = command("bench", "--address", address, "--poisson", "--duration-s", "60")
        with (
            running([*load, "--rate", "300", "--sizes", "28x28:4,64x64:1"]),
            # Images over the largest size.
            running([*load, "--rate", "3", "--sizes", "5000x28", "--connections", "1"]),
        ):
            text = shown(command("top", "--metrics", f"{url}/metrics"), folder, quit_after_s=15)
        last = re.sub(r"\x1b\[[0-?]*[JKhl]", "", text.rpartition("\x1b[H")[2]).replace("\r", "")
        write_svg(FOLDER / "top.svg", "digitserve top", last.replace(url, "http://127.0.0.1:8080"))


@contextmanager
def running(arguments: list[str]) -> Iterator[None]:
    """Run a command until the end of the ``with`` block."""
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()


if __name__ == "__main__":
    main()
