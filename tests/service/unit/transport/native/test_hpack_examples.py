import pytest

from digitserve.transport.native.hpack import _NEWEST, Decoder

# RFC 7541, appendix C: the table size, and per block its hex and the fields; then the table of the last block.

WWW = (b":authority", b"www.example.com")
FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), WWW]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    WWW,
    (b"custom-key", b"custom-value"),
]
REQUESTS_TABLE = [(b"custom-key", b"custom-value"), (b"cache-control", b"no-cache"), WWW]

DATE = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
LATER = (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
LOCATION = (b"location", b"https://www.example.com")
PRIVATE = (b"cache-control", b"private")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
GZIP = (b"content-encoding", b"gzip")
RESPONSES = [
    [(b":status", b"302"), PRIVATE, DATE, LOCATION],
    [(b":status", b"307"), PRIVATE, DATE, LOCATION],
    [(b":status", b"200"), PRIVATE, LATER, LOCATION, GZIP, COOKIE],
]
RESPONSES_TABLE = [COOKIE, GZIP, LATER]

EXAMPLES = {
    "C.2.1": (
        4096,
        ["400a637573746f6d2d6b65790d637573746f6d2d686561646572"],
        [[(b"custom-key", b"custom-header")]],
        [(b"custom-key", b"custom-header")],
    ),
    "C.2.2": (4096, ["040c2f73616d706c652f70617468"], [[(b":path", b"/sample/path")]], []),
    "C.2.3": (4096, ["100870617373776f726406736563726574"], [[(b"password", b"secret")]], []),
    "C.2.4": (4096, ["82"], [[(b":method", b"GET")]], []),
    "C.3": (
        4096,
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [FIRST, SECOND, THIRD],
        REQUESTS_TABLE,
    ),
    "C.4": (
        4096,
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
        [FIRST, SECOND, THIRD],
        REQUESTS_TABLE,
    ),
    "C.5": (
        256,
        [
            (
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
                "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
            ),
            "4803333037c1c0bf",
            (
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
                "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31"
            ),
        ],
        RESPONSES,
        RESPONSES_TABLE,
    ),
    "C.6": (
        256,
        [
            (
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff"
                "6e919d29ad171863c78f0b97c8e9ae82ae43d3"
            ),
            "4883640effc1c0bf",
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960"
                "d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
            ),
        ],
        RESPONSES,
        RESPONSES_TABLE,
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_rfc(example: str) -> None:
    """The examples of RFC 7541, appendix C give the fields and the dynamic table printed there."""
    size_bytes, blocks, expected, expected_table = EXAMPLES[example]
    decoder = Decoder(max_table_size=size_bytes)
    fields = [[field[:2] for field in decoder.decode_fields(bytes.fromhex(block))] for block in blocks]
    assert fields == expected
    assert [field[:2] for field in decoder._table[_NEWEST:]] == expected_table
