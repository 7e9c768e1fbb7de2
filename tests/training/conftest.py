"""Trainings of the tests use pen strokes only where a test gives them."""

from collections.abc import Iterator

import pytest

from digitserve_training.data import pen_split


@pytest.fixture(scope="session", autouse=True)
def _without_strokes() -> Iterator[None]:
    """Unset DIGITSERVE_STROKES: reading and drawing the real archive takes minutes. ``test_unipen`` reads it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(pen_split.ENVIRONMENT, raising=False)
        yield
