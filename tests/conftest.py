"""Fixtures that tests share, and property tests that draw the same examples on every run, however slow the machine is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from digitserve.settings import Settings
from support.bundles import write_echo_bundle
from support.serving import RunningWorker, run_worker

settings.register_profile("digitserve", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("digitserve")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a directory of models that holds the echo network's bundle."""
    write_echo_bundle(tmp_path)
    return tmp_path


@pytest.fixture
def transport() -> str:
    """Return the transport of ``worker``; tests that must pass on several override it with a parametrised fixture."""
    return Settings.transport


@pytest.fixture
def worker(models: Path, transport: str) -> Iterator[RunningWorker]:
    """Run a worker that serves the echo network, on a thread."""
    with run_worker(models, transport=transport) as running:
        yield running
