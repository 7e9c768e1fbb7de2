"""The first release beside this one: tables of networks and services, records of accuracy, and the bundles that stay."""

from pathlib import Path

import pytest

from benchmarks import accuracy, bundles, releases
from benchmarks.accuracy import Accuracy, Core
from benchmarks.releases import SIDES, Network
from digitserve.inference.bundle import Manifest, read_bundle

FIRST, NOW = (
    Accuracy("digits/3", 0.99, 0.97, Core(1000, 960, 20)),
    Accuracy("digits/5", 0.99, 0.98, None),
)
ROUNDS = [
    {"first_image_s": 80e-6, "image_s": 40e-6},
    {"first_image_s": 100e-6, "image_s": 40e-6},
    {"first_image_s": 88e-6, "image_s": 40e-6},
]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Return the manifest of the float32 network of the first release."""
    return read_bundle(bundles.folder(bundles.FIRST_RELEASE, bundles.FLOAT32_MODEL)).manifest


def test_networks_have_speed_and_accuracy(manifest: Manifest) -> None:
    """Each network has its speed alone, relative to the first one within rounds, and its accuracy; figures that were not
    measured are empty.
    """
    listed = [
        Network(manifest, "first_image_s", FIRST),
        Network(manifest, "image_s", NOW),
        Network(manifest, "image_s", None),
    ]

    first, now, unknown = releases.networks(listed, ROUNDS).splitlines()[2:]

    assert first == "| digits/3 | 3,586,432 | 11,364 | 1.00 | 99.66% | 97.00% | 96.00% | 2.00% |"
    assert now == "| digits/3 | 3,586,432 | 25,000 | 2.20 | 99.66% | 98.00% |  |  |"
    assert unknown == "| digits/3 | 3,586,432 | 25,000 | 2.20 | 99.66% |  |  |  |"


def test_services_have_images_and_cpu_seconds() -> None:
    """A load has images/s and CPU seconds per million images of the first release, of its network on this code, and of this
    release; loads that were not measured on all three have no row.
    """
    rates, cpu_us = (100.0, 200.0, 400.0), (6400.0, 3200.0, 1600.0)
    figures = {
        f"{server}/{load}/{metric}": value
        for load in ("large", "single")
        for metric, values in (("rate", rates), ("cpu_us", cpu_us))
        for server, value in zip(SIDES["float32"], values, strict=True)
    }
    del figures["native/single/rate"]

    (row,) = releases.services([figures, figures]).splitlines()[2:]

    assert row == "| large | float32 | 6,400 | 12,800 | 25,600 | 100.0 | 50.0 | 25.0 | 4.00 (4.00 to 4.00) |"


def test_records_are_kept(tmp_path: Path) -> None:
    """Records are read as they were written, with and without results on handwriting of other people."""
    path = tmp_path / "accuracy.json"
    assert accuracy.read(path) == {}
    accuracy.write({"b": NOW, "a": FIRST}, path)
    assert accuracy.read(path) == {"a": FIRST, "b": NOW}


def test_the_networks_of_the_first_release_stay(manifest: Manifest) -> None:
    """B is measured with the float32 network of the first release; the accuracy of both networks is recorded."""
    int8 = read_bundle(bundles.folder(bundles.FIRST_RELEASE, bundles.INT8_MODEL)).manifest
    assert manifest.sha256 == "0ad8a08aac20db82e211af1c9fd16212db669802c1753ca2d95dc8e67d2a5928"
    assert (manifest.version, int8.name, int8.version) == (3, "digits-int8", 1)
    assert {manifest.sha256, int8.sha256} <= accuracy.read().keys()
