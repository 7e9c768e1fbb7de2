"""What most integration tests need: the echo network's bundle, and a worker that serves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import write_echo_bundle
from serving import RunningWorker, run_worker


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_echo_bundle(tmp_path)
    return tmp_path


@pytest.fixture
def worker(models: Path) -> Iterator[RunningWorker]:
    with run_worker(models) as running:
        yield running
