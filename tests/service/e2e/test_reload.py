"""``digitserve models activate`` and ``serve --shadow`` with the real commands, under load."""

import subprocess
from collections import Counter
from pathlib import Path

import grpc

from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request, write_echo_bundle
from support.load import CLASSIFY, Callers
from support.serving import PATIENCE_S, command, run_service, wait_until

LETTERS = tuple("abcdefghij")


class DefaultLoad(Callers):
    """Callers with default channels: no service config, no retries, no ``wait_for_ready``.

    Attributes:
        outcomes: number of answers by version and label, or of errors by code.
    """

    def __init__(self, address: str, num_callers: int) -> None:
        super().__init__(num_callers)
        self._address = address
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def num_answers(self, version: str) -> int:
        return sum(count for (answered, _), count in self.outcomes.items() if answered == version)

    def call(self, caller: int) -> None:
        """Call until the end; half of the callers have eight calls in flight."""
        num_calls = 1 if caller % 2 else 8
        with grpc.insecure_channel(self._address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            call = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
            while not self.stopping.is_set():
                futures = [call.future(echo_request(3), timeout=PATIENCE_S) for _ in range(num_calls)]
                for future in futures:
                    if (error := future.exception()) is not None:
                        self.outcomes["error", f"{error.code().name}: {error.details()}"] += 1
                        continue
                    answer = future.result()
                    self.outcomes[answer.model_version, answer.predictions[0].label] += 1


def activate(models: Path, version: int) -> subprocess.CompletedProcess[str]:
    """Run ``digitserve models activate``."""
    return subprocess.run(
        command("models", "activate", f"digits/{version}", "--models", str(models)),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_a_version_is_compared_and_activated_under_load(tmp_path: Path) -> None:
    """Clients with default channels lose no call through a reload, and each answer is of one version. Before it, the shadow version
    was compared; a version that fails a check is not activated; after SIGTERM the log sums up the comparison.
    """
    models = tmp_path / "models"
    write_echo_bundle(models, 1)
    write_echo_bundle(models, 2, labels=LETTERS)
    (write_echo_bundle(models, 3) / "model.onnx").write_bytes(b"damaged")
    assert activate(models, 1).returncode == 0
    arguments = ("--workers", "1", "--shadow", "2", "--lame-duck-s", "0")
    with run_service(models, tmp_path / "log", *arguments) as service:
        assert "shadow digits/2" in service.banner
        with DefaultLoad(service.grpc_address, 4) as load:
            wait_until(lambda: load.num_answers("1") >= 100, "100 answers")
            refused = activate(models, 3)
            assert (refused.returncode, (models / "digits/active").read_text()) == (1, "1\n")
            assert "check 'sha256' failed" in refused.stderr
            (models / "digits/active").write_text("2\n")
            wait_until(lambda: service.total("digitserve_reloads_total", result="completed") == 1, "reloaded")
            answered = load.num_answers("2")
            wait_until(lambda: load.num_answers("2") >= answered + 100, "100 more answers")

        assert set(load.outcomes) == {("1", "3"), ("2", "d")}
        assert service.get("/readyz")[1].startswith("digitserve ready: digits/2")
        assert service.total("digitserve_model_info", version="2") == 1
        assert service.total("digitserve_worker_restarts_total") == 0
        assert service.total("digitserve_predictions_total") == load.outcomes.total()
        # All answers of version 1 had another label than version 2 would have given.
        compared = service.total("digitserve_shadow_images_total")
        assert service.total("digitserve_shadow_images_total", result="label") == compared > 0
        skipped = service.total("digitserve_shadow_skipped_images_total")
        assert load.num_answers("1") - 64 <= compared + skipped <= load.num_answers("1")
        assert service.stop() == 0
        assert f'"result_label": {compared:.0f}' in service.log.read_text()
