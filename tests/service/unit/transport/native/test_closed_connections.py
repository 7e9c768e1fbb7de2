"""A connection that has ended because of an error holds nothing but its last output, until its socket is closed."""

from support.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    STREAM,
    Peer,
    data,
    headers,
    message,
    raw,
    request,
)


def test_input_is_freed() -> None:
    """An open header block, the start of a frame and an unfinished message are freed when a client violates the protocol."""
    peer = Peer()
    peer.send(headers(1), data(1, message(bytes(60_000))[:50_000]))
    peer.send(raw(HEADERS, 0, 3, bytes(16_000)), raw(CONTINUATION, 0, 3, bytes(16_000)) * 2)
    peer.send(raw(CONTINUATION, END_HEADERS, 3, bytes(16_000))[:-1])
    connection = peer.connection
    assert len(connection._rest) + len(connection._block or b"") > 60_000

    peer.send(b"\0", raw(DATA, 0, 5))  # completes the header block, and then there is DATA on an idle stream

    assert peer.failure is not None
    assert connection.closing
    assert not connection._rest and connection._block is None
    assert not connection.streams and not peer.budget.used_bytes


def test_input_after_the_end_is_ignored() -> None:
    """What a client sends after the end of its connection has no effect."""
    peer = Peer()
    peer.send(raw(DATA, 0, 5))
    output = peer.output
    peer.send(headers(1), data(1, message(b"hello"), ended=True), bytes(1000))
    peer.check()
    assert peer.output == output and not peer.unary.calls


def test_reports_to_streams_are_dropped() -> None:
    """A report to a stream refers to the connection: kept, both would be freed by the garbage collector only."""
    peer = Peer()
    peer.stream.accept = lambda stream: (stream.write(b"1"), stream.flush())
    connection = peer.connection
    connection.receive(headers(1, request(STREAM)), peer.now, peer.wall)
    assert connection.take_output()
    assert connection.has_output()  # the report that the message is sent

    connection.drop()

    assert not connection.has_output()
