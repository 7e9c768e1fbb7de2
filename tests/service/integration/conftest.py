"""The tests of the RPCs run on each transport: callers must not notice which one a worker uses."""

import pytest

from support.serving import TRANSPORTS


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param
