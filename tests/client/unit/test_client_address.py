"""Addresses as people write them."""

import pytest

from digitserve.client import AsyncClient, Client, ClientError, InvalidAddress
from digitserve.client.address import is_local, parse_address
from digitserve.client.channel import pool_options


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("localhost", "localhost:50051"),
        ("http://127.0.0.1:50051", "127.0.0.1:50051"),
        ("http://digits.example/", "digits.example:50051"),
        ("HTTP://digits.example:80", "digits.example:80"),
        ("grpc://digits:50052", "digits:50052"),
        (" digits:50051\n", "digits:50051"),
        ("digits:", "digits:50051"),
        ("dns:50051", "dns:50051"),
        ("[::1]", "[::1]:50051"),
        ("[fe80::1%eth0]:7", "[fe80::1%eth0]:7"),
        ("dns:///digits.example:50051", "dns:///digits.example:50051"),
        ("dns:digits", "dns:digits"),
        ("unix:/run/digits.sock", "unix:/run/digits.sock"),
        ("unix:///run/digits.sock", "unix:///run/digits.sock"),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", "ipv4:10.0.0.1:50051,10.0.0.2:50051"),
    ],
)
def test_an_address_is_corrected(text: str, address: str) -> None:
    """``http://`` is removed and a missing port added; addresses in gRPC's own schemes stay as they are."""
    assert parse_address(text).target == address


@pytest.mark.parametrize(
    ("text", "tls"),
    [
        ("https://digits.example", True),
        ("GRPCS://digits:1/", True),
        ("http://digits", False),
        ("grpc://digits", False),
        ("digits:50051", None),
        ("dns:digits", None),
    ],
)
def test_the_scheme_decides_about_tls(text: str, tls: bool | None) -> None:
    """``https`` and ``grpcs`` demand TLS, ``http`` and ``grpc`` clear text; an address without a scheme demands neither."""
    assert parse_address(text).tls is tls


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://digits.example/classify", "a gRPC address has no path"),
        ("tcp://10.96.0.1:50051", "unknown scheme 'tcp'"),
        ("http://127.0.0.1:8080/metrics", "a gRPC address has no path"),
        ("digits:http", "the port 'http' is not a number from 1 to 65535"),
        ("digits:0", "the port '0'"),
        ("digits:65536", "the port '65536'"),
        ("digits:-1", "the port '-1'"),
        ("::1", "an IPv6 address needs brackets"),
        ("::1:50051", "an IPv6 address needs brackets"),
        ("[::g]:50051", "'[::g]' is not a host name or IP address"),
        ("user@digits:50051", "'user@digits' is not a host name"),
        ("two hosts:50051", "is not a host name"),
        (":50051", "it has no host"),
        ("", "it has no host"),
    ],
)
def test_an_address_that_cannot_be_corrected_is_explained(text: str, reason: str) -> None:
    """The error states what is wrong and what an address looks like, when the client is created."""
    with pytest.raises(InvalidAddress) as caught:
        Client(text)

    assert reason in str(caught.value)
    assert f"got '{text}'" in str(caught.value)
    assert "expected host:port, such as 127.0.0.1:50051" in str(caught.value)
    assert isinstance(caught.value, ClientError) and isinstance(caught.value, ValueError)


def test_both_clients_check_the_address() -> None:
    """The asynchronous client raises the same error."""
    with pytest.raises(InvalidAddress):
        AsyncClient("tcp://digits.example")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("localhost:50051", True),
        ("digits.localhost:50051", True),
        ("[::1]:50051", True),
        ("0.0.0.0:50051", True),
        ("[::]:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("dns:///localhost:50051", True),
        ("[::ffff:127.0.0.1]:50051", True),
        ("ipv6:[::ffff:127.0.0.1]:50051", True),
        ("ipv4:127.0.0.1:50051,127.0.0.2:50051", True),
        ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
        ("dns://10.0.0.1:53/localhost:50051", True),
        ("dns://127.0.0.1:53/digits.example:50051", False),
        ("10.0.0.1:50051", False),
        ("[::ffff:10.0.0.1]:50051", False),
        ("localhost.example:50051", False),
        ("digits.example:50051", False),
        ("unix:/run/digits.sock", True),
        ("unix-abstract:digits", True),
    ],
)
def test_addresses_of_this_machine_are_recognised(address: str, local: bool) -> None:
    """Calls to the loopback interface and to Unix sockets use no proxy, and may have a token in clear text; others not."""
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("address", "spreads"),
    [
        ("digits.example:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("127.0.0.1:50051", True),
        ("unix:/run/digits.sock", True),
        ("localhost:50051", False),
        ("dns:///LOCALHOST:50051", False),
        ("digits.localhost:50051", False),
    ],
)
def test_calls_are_spread_over_the_addresses_of_other_names(address: str, spreads: bool) -> None:
    """All addresses of a name are used, except for ``localhost``, whose addresses of IPv4 and IPv6 are one service."""
    assert (("grpc.lb_policy_name", "round_robin") in pool_options(address, use_proxy=True)) is spreads
