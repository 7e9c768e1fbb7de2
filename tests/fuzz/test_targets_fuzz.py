"""The targets of ``make fuzz`` without coverage guidance: on their seeds, on changed seeds, and on random bytes."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fuzz_targets import TARGETS


def run_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Draw a seed with a few bytes replaced, removed or inserted."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for start, stop, inserted in draw(
        st.lists(st.tuples(st.integers(0, 1 << 13), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
    ):
        position = start % (len(content) + 1)
        content[position : position + stop] = inserted
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("default")
def test_seeds_and_random_bytes_break_no_promise(name: str) -> None:
    """No input raises an exception, exceeds a limit, or leaves memory held at the end."""
    target = TARGETS[name]
    run_seeds(name)

    @given(st.binary(max_size=target.max_bytes) | changed(target.seeds))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def run(choices: bytes) -> None:
        target.run(choices)

    run()


def ignore(*_: object) -> None:
    """Check nothing."""


def fail(*_: object) -> None:
    """Raise an exception that no caller expects."""
    raise ZeroDivisionError


BROKEN: dict[str, tuple[str, str, object]] = {
    "an exception in the connection": (
        "connection",
        "digitserve.transport.native.connection.Connection._on_data",
        fail,
    ),
    "an exception in one of several": ("budget", "digitserve.transport.native.connection.Connection._on_data", fail),
    "bytes that stay in the budget": ("budget", "digitserve.transport.native.limits.ReceiveBudget.give_back", ignore),
    "a tensor of another length": (
        "tensors",
        "digitserve.protocol.infer._pixels",
        lambda body, *_: body,
    ),
    "unknown values in a message": ("messages", "digitserve.protocol.codec.KNOWN_INK", range(-(1 << 31), 1 << 31)),
    "a part of a part of a part": ("framing", "support.fuzz_requests.MAX_LOOKS", 0),
    "work without limit": ("framing", "support.fuzz_requests.MAX_OPERATIONS", 100),
    "an exception in a batch": ("batches", "digitserve.vision.framing.segment_all", fail),
    "a picture of any size": ("images", "digitserve.vision.image_files._check_size", ignore),
    "numbers that are not finite": ("manifests", "digitserve.inference.bundle._refuse_constant", float),
    "custom operators": ("graphs", "digitserve.inference.graph_check._check_node", ignore),
    "memory by a header": (
        "golden",
        "digitserve.inference.bundle.view_array",
        lambda content: np.load(BytesIO(content)),
    ),
    "an exception in a setting": ("settings", "click.types._NumberRangeBase.convert", fail),
    "an exception in a query": ("http", "digitserve.web.parameters.parse", fail),
    "an upload of any size": ("uploads", "digitserve.vision.image_files._check_size", ignore),
    "an exception in a page": ("http", "digitserve.supervision.http.exposition.choose", fail),
}
"""A fault, the target that finds it, and how it is made."""


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.filterwarnings("default")
def test_a_target_finds_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of a target fail if its code is broken."""
    name, part, broken = BROKEN[fault]
    monkeypatch.setattr(part, broken)
    with pytest.raises((AssertionError, ZeroDivisionError, KeyError)):
        run_seeds(name)
