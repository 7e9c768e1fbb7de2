"""The container image, built once for all tests of this folder, on a base of Debian packages."""

from pathlib import Path

import pytest

from support.image import BASE, IMAGE, run

HOST_PIP_SETTINGS = [Path("/etc/ssl/certs"), Path("/etc/pip.conf")]
"""Mounted into the build where they exist, so that pip uses the host's package index."""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("base") / "base.tar"
    packages = "python3,python3-venv,ca-certificates"
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(base))
    run("podman", "import", str(base), BASE)
    mounts = [f"-v {path}:{path}:ro" for path in HOST_PIP_SETTINGS if path.exists()]
    flags = ["--isolation chroot", "--network host", *mounts, f"--build-arg BASE_IMAGE={BASE}"]
    run("make", "image", "ENGINE=buildah", f"TAG={IMAGE}", f"ARGS={' '.join(flags)}")
    return IMAGE
