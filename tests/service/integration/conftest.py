"""The tests of the RPCs run on each transport: callers must not notice which one a worker uses."""

from pathlib import Path

import pytest

from support.scripted_workers import Script, script_writer
from support.serving import TRANSPORTS


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that sets what each worker does once it has its settings."""
    return script_writer(tmp_path, monkeypatch)
