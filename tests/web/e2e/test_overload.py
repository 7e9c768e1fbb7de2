"""The HTTP API with more requests than the queue of the worker takes."""

import contextlib
import http.client
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.bundles import echo_image, write_echo_bundle
from support.load import Callers
from support.serving import PATIENCE_S, Service, run_service, wait_until

NUM_IMAGES, NUM_CALLERS = 32, 16
MAX_PENDING = 2 * NUM_IMAGES


class Batches(Callers):
    """Callers that send requests of ``NUM_IMAGES`` images, each on a connection of its own.

    Attributes:
        answers: by status; each with its header fields and its content.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(NUM_CALLERS)
        self._address = urlsplit(service.http_url)
        self.answers: dict[int, list[tuple[http.client.HTTPMessage, dict[str, Any]]]] = defaultdict(list)

    def call(self, caller: int) -> None:
        """Call until the end."""
        path = "/v1/classify?width=28&height=28"
        body = b"".join(echo_image(caller).tobytes() for _ in range(NUM_IMAGES))
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            while not self.stopping.is_set():
                connection.request("POST", path, body)
                response = connection.getresponse()
                content = json.loads(response.read())
                if response.status == 200:
                    assert {one["ood_score"] for one in content["predictions"]} == {caller}
                self.answers[response.status].append((response.headers, content))


def test_overload_gets_429_and_a_time_to_retry(tmp_path: Path) -> None:
    """While callers send more than the queue takes, each request gets its own answer, or 429 with ``Retry-After``, RetryInfo and the
    text of gRPC. Probes are answered, nothing is logged as an error, and afterwards all requests are answered again.
    """
    write_echo_bundle(tmp_path / "models")
    arguments = ("--workers", "1", "--max-pending-images", str(MAX_PENDING), "--max-batch-size", "1")
    with run_service(tmp_path / "models", tmp_path / "log", *arguments) as service:
        with Batches(service) as load:
            wait_until(
                lambda: len(load.answers[200]) >= 20 and len(load.answers[429]) >= 20, "20 answers of both kinds"
            )
            assert service.get("/readyz")[0] == service.get("/livez")[0] == 200
            num_rejected = service.total("digitserve_rejected_total", reason="queue_full")
        assert set(load.answers) == {200, 429}
        for headers, content in load.answers[429]:
            assert int(headers["retry-after"]) >= 1
            assert content["code"] == 8
            assert f"at most {MAX_PENDING} images may wait; retry in " in content["message"]
            (details,) = content["details"]
            assert details["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
            assert float(details["retry_delay"].removesuffix("s")) > 0
        assert num_rejected > 0
        assert service.total("digitserve_http_requests_total", code="429") == len(load.answers[429])
        with Batches(service) as load:
            wait_until(lambda: len(load.answers[200]) >= 1, "an answer after the overload")
        levels = {json.loads(line)["level"] for line in service.log.read_text().splitlines()}
        assert levels <= {"info", "warning"}
