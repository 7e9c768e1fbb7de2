r"""What a line must look like: a small regular expression and a number of digits, as one automaton.

    pattern ──parse──▶ states ──LineAutomaton──▶ search, a step per character

``reader`` compiles once per request; ``search`` steps. Python's ``re`` cannot be used: it matches whole texts only, while the
search needs to know after each character whether the rest can still match. No state is kept between requests.

Syntax: digits, ``.`` ``,`` ``/`` ``-`` and the space stand for themselves; ``\d`` any digit; ``[0-36]`` some digits;
``{n}`` and ``{m,n}`` repetitions; ``?`` an optional part; ``|`` alternatives; ``( )`` groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

from digitserve.errors import InvalidRequest

DIGITS = "0123456789"

SEPARATORS = ".,/-"
"""Characters of ``MarkKind.SEPARATOR``."""

MAX_LENGTH = 256
"""Characters of a pattern. The longest of an IBAN with all its groups has 60."""

MAX_STATES = 256
"""Positions of a pattern after repetitions are written out: digits and separators of the longest text, roughly."""

MAX_PARTS = 8 * MAX_STATES
"""Groups and characters after repetitions are written out."""

MAX_DEPTH = 16
"""Groups within groups: parsing is recursive."""

_SYNTAX = r"digits, . , / - and space, \d, [0-9], {n}, {m,n}, ?, |, ( )"


class _Node(NamedTuple):
    """A part of a pattern.

    Attributes:
        kind: "characters", "sequence", "choice" or "repeat".
        characters: that match, of "characters".
        parts: of the others.
        least: repetitions at least.
        most: repetitions at most.
    """

    kind: str
    characters: str = ""
    parts: "Sequence[_Node]" = ()
    least: int = 1
    most: int = 1


class _Parser:
    """Reads one pattern; lives during ``parse``."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def parse(self) -> _Node:
        node = self._choice(0)
        if self._at < len(self._text):
            raise self._error(f"got {self._peek()!r} without its '('")
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _error(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"pattern, position {min(self._at, len(self._text))}: {problem}; expected {_SYNTAX}")

    def _choice(self, depth: int) -> _Node:
        parts = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _Node("choice", parts=parts)

    def _sequence(self, depth: int) -> _Node:
        parts = []
        while self._peek() and self._peek() not in "|)":
            parts.append(self._repeated(self._atom(depth)))
        return _Node("sequence", parts=parts)

    def _atom(self, depth: int) -> _Node:
        character = self._peek()
        if character and character in DIGITS + SEPARATORS + " ":
            return _Node("characters", self._take())
        if character == "\\":
            return self._escape()
        if character == "[":
            return self._class()
        if character == "(":
            if depth == MAX_DEPTH:
                raise self._error(f"got more than {MAX_DEPTH} groups within each other")
            self._at += 1
            node = self._choice(depth + 1)
            if self._peek() != ")":
                raise self._error("got a group without its ')'")
            self._at += 1
            return node
        raise self._error(f"got {character!r}")

    def _escape(self) -> _Node:
        following = self._text[self._at + 1 : self._at + 2]
        if following == "d":
            self._at += 2
            return _Node("characters", DIGITS)
        if following and following in SEPARATORS:
            self._at += 2
            return _Node("characters", following)
        raise self._error(f"got {self._text[self._at : self._at + 2]!r}")

    def _class(self) -> _Node:
        self._at += 1
        found: set[str] = set()
        while self._peek() != "]":
            first = self._peek()
            if not first or first not in DIGITS:
                raise self._error(f"got {first!r} in [ ], where only digits and ranges of digits can stand")
            self._at += 1
            last = first
            if self._peek() == "-":
                self._at += 1
                last = self._peek()
                if not last or last not in DIGITS or last < first:
                    raise self._error(f"got the range {first}-{last}")
                self._at += 1
            found.update(DIGITS[int(first) : int(last) + 1])
        if not found:
            raise self._error("got [] without a digit")
        self._at += 1
        return _Node("characters", "".join(sorted(found)))

    def _repeated(self, node: _Node) -> _Node:
        while self._peek() in ("?", "{"):
            if self._take() == "?":
                node = _Node("repeat", parts=(node,), least=0)
                continue
            least = self._number()
            most = least
            if self._peek() == ",":
                self._at += 1
                most = self._number()
            if self._peek() != "}" or most < least:
                raise self._error("got a repetition that is neither {n} nor {m,n} with m <= n")
            self._at += 1
            node = _Node("repeat", parts=(node,), least=least, most=most)
        return node

    def _number(self) -> int:
        start = self._at
        while self._peek() and self._peek() in DIGITS:
            self._at += 1
        digits = self._text[start : self._at]
        if not digits or len(digits) > 3 or int(digits) > MAX_STATES:  # noqa: PLR2004 - digits of MAX_STATES
            raise self._error(f"got {digits or self._peek()!r} as a number of repetitions, from 0 to {MAX_STATES}")
        return int(digits)


class _States:
    """States of an automaton, with steps that take a character and jumps that take none; lives during ``compile_line``."""

    def __init__(self) -> None:
        self.jumps: list[list[int]] = []
        self.steps: list[tuple[str, int] | None] = []
        self._num_characters = 0
        self._num_parts = 0

    def new(self) -> int:
        """Add a state."""
        self.jumps.append([])
        self.steps.append(None)
        return len(self.jumps) - 1

    @staticmethod
    def _too_large() -> InvalidRequest:
        return InvalidRequest(
            f"pattern: got more than {MAX_STATES} characters after repetitions are written out; expected a shorter pattern"
        )

    def add(self, node: _Node, start: int) -> int:
        """Add a node's states after ``start`` and return the state after it."""
        # Groups that take no character count too: repetitions within each other would take for ever.
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise self._too_large()
        if node.kind == "characters":
            self._num_characters += 1
            if self._num_characters > MAX_STATES:
                raise self._too_large()
            end = self.new()
            self.steps[start] = (node.characters, end)
            return end
        if node.kind == "sequence":
            for part in node.parts:
                start = self.add(part, start)
            return start
        if node.kind == "choice":
            return self._join(start, node.parts)
        for _ in range(node.least):
            start = self.add(node.parts[0], start)
        for _ in range(node.most - node.least):
            start = self._join(start, (node.parts[0], None))
        return start

    def _join(self, start: int, parts: Sequence[_Node | None]) -> int:
        """Add alternatives after ``start``, of which None takes no character; return the state after all of them."""
        end = self.new()
        for part in parts:
            first = self.new()
            self.jumps[start].append(first)
            last = first if part is None else self.add(part, first)
            self.jumps[last].append(end)
        return end

    def closure(self, states: Sequence[int]) -> frozenset[int]:
        """Return these states and all that jumps lead to."""
        found = set(states)
        waiting = list(states)
        while waiting:
            for following in self.jumps[waiting.pop()]:
                if following not in found:
                    found.add(following)
                    waiting.append(following)
        return frozenset(found)


State = tuple[frozenset[int], int]
"""Of a ``LineAutomaton``: positions in the pattern, and digits so far."""


class LineAutomaton:
    """Accepts the texts that a request allows for a line; lives as long as the request.

    Attributes:
        start: its state before the first character.
    """

    def __init__(self, pattern: str, num_digits: int) -> None:
        """Compile.

        Args:
            pattern: as in a request; empty for any text.
            num_digits: of each accepted text; 0 for any number.

        Raises:
            InvalidRequest: the pattern is wrong or too large.
        """
        if len(pattern) > MAX_LENGTH:
            raise InvalidRequest(f"pattern: got {len(pattern)} characters, expected at most {MAX_LENGTH}")
        self._num_digits = num_digits
        self._states: _States | None = None
        self._end = 0
        first: frozenset[int] = frozenset()
        if pattern:
            self._states = _States()
            start = self._states.new()
            self._end = self._states.add(_Parser(pattern).parse(), start)
            first = self._states.closure([start])
        self.start: State = (first, 0)
        self._cache: dict[tuple[frozenset[int], str], frozenset[int] | None] = {}

    def step(self, state: State, character: str) -> State | None:
        """Return the state after one more character; None if no accepted text goes on like this."""
        positions, digits = state
        if self._num_digits and character in DIGITS:
            digits += 1
            if digits > self._num_digits:
                return None
        if self._states is None:
            return positions, digits
        key = positions, character
        if key not in self._cache:
            self._cache[key] = self._advance(self._states, positions, character)
        following = self._cache[key]
        return None if following is None else (following, digits)

    @staticmethod
    def _advance(states: _States, positions: frozenset[int], character: str) -> frozenset[int] | None:
        ends = []
        for position in positions:
            step = states.steps[position]
            if step is not None and character in step[0]:
                ends.append(step[1])
        return states.closure(ends) if ends else None

    def run(self, text: str, state: State | None = None) -> State | None:
        """Return the state after several characters, from ``state`` or from the start."""
        state = self.start if state is None else state
        for character in text:
            following = self.step(state, character)
            if following is None:
                return None
            state = following
        return state

    def accepts(self, state: State) -> bool:
        """Return whether a text may end in this state."""
        positions, digits = state
        return (not self._num_digits or digits == self._num_digits) and (self._states is None or self._end in positions)
