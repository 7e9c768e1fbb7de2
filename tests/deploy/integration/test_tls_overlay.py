"""The overlay tls: the service with its environment, its probes and a Secret as the kubelet mounts it."""

import os
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest

from support.bundles import write_echo_bundle
from support.certificates import Certificate, make_certificate
from support.load import classify
from support.manifests import Object, container, find, render
from support.serving import PATIENCE_S, Service, command, run_service, wait_until


class MountedSecret:
    """A folder that the kubelet fills: a link per key leads over the link ``..data`` to a folder, which is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_updates = 0

    def update(self, made: Certificate) -> None:
        """Replace the content, as after an update of the Secret."""
        self._num_updates += 1
        content = self.folder / f"..2026_11_26_10_00_0{self._num_updates}"
        content.mkdir(parents=True)
        for key, path in (("tls.crt", made.certificate), ("tls.key", made.key)):
            (content / key).write_bytes(path.read_bytes())
            if self._num_updates == 1:
                (self.folder / key).symlink_to(f"..data/{key}")
        link = self.folder / "..data_tmp"
        link.symlink_to(content.name)
        link.rename(self.folder / "..data")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of the container, with its Secret in a folder of the test."""
    objects = render("overlays/tls")
    (mount,) = container(objects)["volumeMounts"]
    (volume,) = find(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"] and mount["readOnly"] and "subPath" not in mount
    assert volume["secret"] == {"secretName": "digitserve-tls", "defaultMode": 0o440}
    variables = {each["name"]: each["value"] for each in container(objects)["env"]}
    assert all(value.startswith(mount["mountPath"]) for value in variables.values())
    return {name: value.replace(mount["mountPath"], str(tmp_path / "mounted")) for name, value in variables.items()}


def run_probe(probe: Object, service: Service, environment: dict[str, str]) -> int:
    """Run a probe as the kubelet does, in the environment of the container; return its exit code."""
    assert probe["exec"]["command"][0] == "digitserve"
    ports = {"DIGITSERVE_HTTP_PORT": service.http_url.rpartition(":")[2], "DIGITSERVE_HOST": "127.0.0.1"}
    done = subprocess.run(
        command(*probe["exec"]["command"][1:]),
        env=os.environ | environment | ports, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return done.returncode


def serves(service: Service, certificate: Path) -> bool:
    """Return whether new connections to the gRPC port get this certificate."""
    host, _, port = service.grpc_address.partition(":")
    return ssl.get_server_certificate((host, int(port))) == certificate.read_text()


def test_tls_with_a_mounted_secret(environment: dict[str, str], tmp_path: Path) -> None:
    """Clients use TLS, and the probes succeed without a certificate of their own. A renewed Secret is used without a restart. After
    the service has ended, the probes fail.
    """
    secret = MountedSecret(tmp_path / "mounted")
    old, new = make_certificate(tmp_path / "old"), make_certificate(tmp_path / "new")
    secret.update(old)
    write_echo_bundle(tmp_path / "models")
    probes = [container(render("overlays/tls"))[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(probe["exec"] == probes[0]["exec"] for probe in probes)
    with run_service(tmp_path / "models", tmp_path / "log", "--workers", "1", **environment) as service:
        assert run_probe(probes[0], service, environment) == 0
        assert serves(service, old.certificate)
        secret.update(new)
        wait_until(lambda: serves(service, new.certificate), "the renewed certificate is used")
        credentials = grpc.ssl_channel_credentials(new.certificate.read_bytes())
        with grpc.secure_channel(service.grpc_address, credentials) as channel:
            assert classify(channel, 5) == 5
        assert run_probe(probes[0], service, environment) == 0
        assert service.stop() == 0
    assert run_probe(probes[0], service, environment) != 0
