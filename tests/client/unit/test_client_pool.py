"""Choice of a connection, deadlines, checks of arguments."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.client import (
    ClientError,
    Closed,
    DeadlineExceeded,
    InvalidAddress,
    InvalidRequest,
    RequestRejected,
    Unreachable,
)
from digitserve.client.pool import MAX_TIMEOUT_S, Deadline, Pool, require_positive
from digitserve.errors import DigitserveError


@given(num_connections=st.integers(1, 9), steps=st.lists(st.integers(0, 40), max_size=80))
def test_a_call_takes_the_connection_with_the_fewest_in_flight(num_connections: int, steps: list[int]) -> None:
    """After any sequence of borrowing and returning, the next call gets a connection with the fewest calls in flight."""
    pool = Pool(range(num_connections))
    in_flight = [0] * num_connections
    held: list[tuple[ExitStack, int]] = []
    for step in steps:
        if step % 2 and held:
            stack, index = held.pop(step % len(held))
            stack.close()
            in_flight[index] -= 1
        else:
            stack = ExitStack()
            index = stack.enter_context(pool.borrow())
            assert in_flight[index] == min(in_flight)
            in_flight[index] += 1
            held.append((stack, index))


def test_equals_take_turns() -> None:
    """Successive calls use all connections in turn, and so all workers."""
    pool = Pool("abc")
    seen = []
    for _ in range(7):
        with pool.borrow() as one:
            seen.append(one)

    assert seen == list("abcabca")


def test_a_failed_call_returns_its_connection() -> None:
    """After an error the call does not count as in flight."""
    pool = Pool("ab")
    for _ in range(3):
        with pytest.raises(KeyError), pool.borrow():
            raise KeyError
    with pool.borrow() as first, pool.borrow() as second:
        assert {first, second} == {"a", "b"}


def test_a_closed_pool_lends_nothing() -> None:
    """``close`` returns the connections to their owner; callers then get the error Closed."""
    pool = Pool("ab")

    assert pool.close() == "ab"
    with pytest.raises(Closed, match="closed"), pool.borrow():
        pass


def test_a_passed_deadline_raises() -> None:
    """After the deadline ``remaining_s`` raises, so no call is sent."""
    assert 0 < Deadline(60).remaining_s() <= 60
    with pytest.raises(DeadlineExceeded, match="within 0 s"):
        Deadline(0).remaining_s()


def test_an_infinite_timeout_is_a_long_one() -> None:
    """To gRPC, a deadline that it cannot represent has passed already."""
    for timeout_s in (float("inf"), 1e300, MAX_TIMEOUT_S):
        assert MAX_TIMEOUT_S - 60 < Deadline(timeout_s).remaining_s() <= MAX_TIMEOUT_S
    with pytest.raises(InvalidRequest, match="timeout_s: got nan"):
        Deadline(float("nan"))


def test_numbers_not_above_zero_are_rejected_by_name() -> None:
    """A client without connections or with empty requests is rejected when it is created."""
    with pytest.raises(InvalidRequest, match="num_connections: got 0"):
        require_positive(images_per_request=1, num_connections=0)


def test_every_error_derives_from_one_class() -> None:
    """``except ClientError`` catches all errors of the client; the usual built-in classes work as well."""
    for error, base in (
        (InvalidRequest, ValueError), (InvalidAddress, ValueError), (Unreachable, ConnectionError),
        (DeadlineExceeded, TimeoutError), (RequestRejected, Exception), (Closed, Exception),
    ):  # fmt: skip
        assert issubclass(error, ClientError) and issubclass(error, DigitserveError) and issubclass(error, base)
