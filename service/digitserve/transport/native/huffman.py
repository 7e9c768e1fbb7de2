"""Huffman code of HPACK strings (RFC 7541, section 5.2), decoded one byte at a time.

    hpack ──encoded string──▶ decode ──▶ string

Called on the worker's one thread.

A state of the automaton is an inner node of the code tree. Its row says for each input byte which state follows and
which symbols the eight bits complete. All 256 rows would take 5 MB and 40 ms; requests use few of them, so a row
is built when a string first reaches it.
"""

from typing import TypeAlias

# Bits of the code of each symbol 0 to 255, then of EOS: RFC 7541, appendix B. The code is canonical, so the lengths
# define it: shorter codes precede longer ones, and codes of equal length ascend with the symbol.
_CODE_LENGTHS = """
13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28
 6 10 10 12 13  6  8 11 10 10  8 11  8  6  6  6  5  5  5  6  6  6  6  6  6  6  7  8 15  6 12 10
13  6  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  7  8  7  8 13 19 13 14  6
15  5  6  5  6  5  6  6  6  5  7  7  6  6  6  5  6  7  6  5  5  6  7  7  7  7  7 15 11 14 13 28
20 22 20 20 22 22 22 23 22 23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 23 21 22 23 22 23 23 24
22 21 20 22 22 23 23 21 23 22 22 24 21 22 23 23 21 21 22 21 23 22 23 23 20 22 22 22 23 22 22 23
26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 21 26 27 27 26 27 24 21 21 26 26 28 27 27 27
20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 27 27 27 28 27 27 27 27 27 26
30
"""
_EOS = 256
_FAILED = -1  # instead of a node: the bits contain EOS

_Row: TypeAlias = list["tuple[_Row, bytes] | bool"]
"""256 steps (next row, symbols) by input byte, then whether a string may end here; empty until it is used."""


def decode(encoded: bytes) -> bytes:
    """Return the string.

    Raises:
        ValueError: the string contains EOS, or its padding is longer than 7 bits or has a bit other than 1.
    """
    while True:
        row = _ROOT
        symbols = []
        try:
            for byte in encoded:
                row, symbol = row[byte]  # type: ignore[misc]
                symbols.append(symbol)
            complete = row[_MAY_END]
        except IndexError:
            # At most once per state in the life of the process.
            _fill(row)
            continue
        if not complete:
            raise ValueError("Huffman-coded string contains EOS or ends in invalid padding")
        return b"".join(symbols)


def _code_tree() -> list[list[int]]:
    """Return the inner nodes, root first: per bit the index of a node, or the complement of a symbol."""
    lengths = [int(length) for length in _CODE_LENGTHS.split()]
    tree = [[0, 0]]
    code = previous_length = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        code <<= length - previous_length
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not tree[node][bit]:
                tree[node][bit] = len(tree)
                tree.append([0, 0])
            node = tree[node][bit]
        tree[node][code & 1] = ~symbol
        code += 1
        previous_length = length
    return tree


def _fill(row: _Row) -> None:
    """Build the row of a state: follow its node through each bit of a byte."""
    state = next(index for index, other in enumerate(_ROWS) if other is row)
    paths: list[tuple[int, bytes]] = [(state, b"")]
    for _ in range(8):
        paths = [_follow(node, symbols, bit) for node, symbols in paths for bit in (0, 1)]
    row += [(_INVALID if node == _FAILED else _ROWS[node], symbols) for node, symbols in paths]
    row.append(state in _PADDING)


def _follow(node: int, symbols: bytes, bit: int) -> tuple[int, bytes]:
    """Return the node after a bit and the symbols up to there."""
    if node == _FAILED:
        return _FAILED, b""
    child = _TREE[node][bit]
    if child >= 0:
        return child, symbols
    return (_FAILED, b"") if ~child == _EOS else (0, symbols + bytes((~child,)))


_MAY_END = 256
_TREE = _code_tree()
_ROWS: list[_Row] = [[] for _ in _TREE]
_ROOT = _ROWS[0]

# After EOS no string is valid.
_INVALID: _Row = []
_INVALID += [(_INVALID, b"")] * 256
_INVALID.append(False)

# A string may end between codes and after up to seven bits of the code of EOS, which is all ones.
_PADDING = [0]
for _ in range(7):
    _PADDING.append(_TREE[_PADDING[-1]][1])
