"""The service in a network namespace of its own, under strace: it sends nothing to other machines."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, command, run_service

SYSTEM_CALLS = "connect,sendto,sendmsg,sendmmsg"
# As strace shows the address of a connection, or of a datagram.
ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


def traced(trace: Path) -> list[str]:
    """Return a command that runs another one with nothing but the loopback interface, and writes its network calls to a file."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip", "strace"))):
        pytest.skip("needs root, unshare, nsenter, ip and strace")
    script = f'ip link set lo up && exec strace -f -qq --seccomp-bpf -e trace={SYSTEM_CALLS} -o {trace} "$@"'
    return ["unshare", "--net", "sh", "-c", script, "sh"]


def addresses(trace: Path) -> set[str]:
    """Return the addresses to which the traced processes have sent something."""
    return {found[1] or found[2] for found in ADDRESS.finditer(trace.read_text())}


def test_the_trace_has_every_attempt(tmp_path: Path) -> None:
    """Attempts to connect and to send datagrams are found, although the namespace has no route for them."""
    trace = tmp_path / "trace"
    attempts = (
        "import contextlib, socket, threading\n"
        "def send(family, kind, address):\n"
        "    with contextlib.suppress(OSError): socket.socket(family, kind).connect((address, 9))\n"
        "    with contextlib.suppress(OSError): socket.socket(family, socket.SOCK_DGRAM).sendto(b'x', (address, 53))\n"
        "threading.Thread(target=send, args=(socket.AF_INET, socket.SOCK_STREAM, '192.0.2.1')).start()\n"
        "send(socket.AF_INET6, socket.SOCK_STREAM, '2001:db8::1')\n"
    )
    subprocess.run([*traced(trace), sys.executable, "-c", attempts], check=True, timeout=PATIENCE_S)
    assert addresses(trace) == {"192.0.2.1", "2001:db8::1"}
    assert len(ADDRESS.findall(trace.read_text())) == 4


def test_the_service_sends_nothing_to_other_machines(tmp_path: Path) -> None:
    """Without any network but loopback the service starts, answers requests and probes, and drains; it never tries to connect
    to another machine, nor to resolve a name.
    """
    write_echo_bundle(tmp_path)
    image, trace = tmp_path / "seven.png", tmp_path / "trace"
    Image.fromarray(echo_image(7)).save(image)
    with run_service(tmp_path, tmp_path / "log", "--workers", "1", wrapper=traced(trace)) as service:
        inside = ["nsenter", "--net", "--target", str(service.process.pid)]
        classify = command("classify", "--address", service.grpc_address, "--json", str(image))
        done = subprocess.run([*inside, *classify], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert json.loads(done.stdout)["label"] == "7"
        fetch = f"import urllib.request; print(urllib.request.urlopen('{service.http_url}/metrics').read().decode())"
        done = subprocess.run([*inside, sys.executable, "-c", fetch], capture_output=True, text=True, check=True)
        assert "digitserve_images_total 1.0" in done.stdout
        (supervisor,) = service.workers()  # strace is its parent, and blocks signals
        os.kill(supervisor, signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
    assert addresses(trace) <= {"127.0.0.1", "::1"}
