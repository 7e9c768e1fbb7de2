"""The HTTP API while workers are replaced, and while the service drains, on both transports."""

import http.client
import json
import signal
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.bundles import echo_image, write_echo_bundle
from support.load import Callers
from support.serving import PATIENCE_S, TRANSPORTS, Service, run_service, wait_until


class HttpLoad(Callers):
    """Callers without retries, each on its own connection.

    Attributes:
        outcomes: number of answers by status and version.
    """

    def __init__(self, service: Service, num_callers: int) -> None:
        super().__init__(num_callers)
        self._address = urlsplit(service.http_url)
        self.outcomes: Counter[tuple[int, str]] = Counter()

    def num_answers(self, version: str) -> int:
        return self.outcomes[200, version]

    def call(self, _caller: int) -> None:
        """Call until the end, or until the service has ended."""
        image = echo_image(3).tobytes()
        while not self.stopping.is_set():
            connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=PATIENCE_S)
            try:
                connection.request("POST", "/v1/classify?width=28&height=28", image)
                response = connection.getresponse()
                self.outcomes[response.status, json.loads(response.read()).get("model_version", "")] += 1
            except ConnectionError:
                return
            finally:
                connection.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_request_is_lost_through_a_reload_and_a_lame_duck_time(tmp_path: Path, transport: str) -> None:
    """Each request during a reload is answered by one of the versions. After SIGTERM requests are answered until the lame duck
    time ends, and get 503 then; the service ends with 0.
    """
    models = tmp_path / "models"
    write_echo_bundle(models, 1)
    write_echo_bundle(models, 2)
    active = models / "digits" / "active"
    active.write_text("1")
    arguments = ("--workers", "1", "--transport", transport, "--lame-duck-s", "1")
    with run_service(models, tmp_path / "log", *arguments) as service, HttpLoad(service, 4) as load:
        wait_until(lambda: load.num_answers("1") >= 50, "50 answers")
        active.write_text("2")
        wait_until(lambda: service.total("digitserve_reloads_total", result="completed") == 1, "reloaded")
        wait_until(lambda: load.num_answers("2") >= 50, "50 answers of the new version")
        assert set(load.outcomes) == {(200, "1"), (200, "2")}
        service.process.send_signal(signal.SIGTERM)
        before = load.num_answers("2")
        wait_until(lambda: service.get("/readyz")[0] == 503, "not ready")
        wait_until(lambda: load.num_answers("2") >= before + 20, "20 answers after SIGTERM")
        assert service.process.wait(PATIENCE_S) == 0
    assert set(load.outcomes) <= {(200, "1"), (200, "2"), (503, "")}
