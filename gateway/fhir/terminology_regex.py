"""Regular expressions of value set filters, matched in time linear in the text.

Owns a subset of the XML Schema and Perl syntax (characters, classes, groups, ``| * + ? {m,n}``, ``\\d \\w \\s``) run
as sets of states, so that no expression can be made to backtrack; refuses everything else, and expressions beyond a
stated size. https://hl7.org/fhir/R4/valueset-filter-operator.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import TooCostly, Unprocessable

_LENGTH_MAX = 256
_STATES_MAX = 1_000
_STEPS_MAX = 400_000
_REPEAT_MAX = 100
_DEPTH_MAX = 20
_LITERAL_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}

Test = Callable[[str], bool]
_CLASSES: dict[str, Test] = {
    "d": str.isdecimal, "w": lambda one: one.isalnum() or one == "_", "s": str.isspace,
    "D": lambda one: not one.isdecimal(), "W": lambda one: not (one.isalnum() or one == "_"),
    "S": lambda one: not one.isspace(),
}


@dataclass(slots=True)
class _State:
    """Either a test with one successor, or free ways on."""

    test: Test | None = None
    following: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int


class Regex:
    """One expression, matched against whole texts. Raises Unprocessable, TooCostly when made."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _LENGTH_MAX:
            raise TooCostly(f"a regex filter may have {_LENGTH_MAX} characters", code="too-costly")
        self._states: list[_State] = []
        self._text = pattern.removeprefix("^")
        if self._text.endswith("$") and not self._text.endswith("\\$"):
            self._text = self._text[:-1]
        self._at = 0
        piece = self._alternatives(0)
        if self._at != len(self._text):
            raise _refused()
        self._accept = piece.end
        self._begin = self._closure([piece.start])
        self._seen: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._steps = 0

    def fullmatch(self, text: str) -> bool:
        """Whether all of ``text`` matches. Raises TooCostly once the work is beyond its limit."""
        current = self._begin
        for one in text:
            following = self._seen.get((current, one))
            if following is None:
                self._steps += len(current) + 1
                if self._steps > _STEPS_MAX:
                    raise TooCostly("a regex filter takes too long over this code system", code="too-costly")
                following = self._closure([on for state in current for on in self._after(state, one)])
                self._seen[current, one] = following
            if not following:
                return False
            current = following
        return self._accept in current

    def _after(self, number: int, one: str) -> list[int]:
        state = self._states[number]
        return state.following if state.test is not None and state.test(one) else []

    def _closure(self, numbers: list[int]) -> frozenset[int]:
        found = set(numbers)
        waiting = list(found)
        while waiting:
            state = self._states[waiting.pop()]
            if state.test is None:
                fresh = [on for on in state.following if on not in found]
                found.update(fresh)
                waiting += fresh
        return frozenset(found)

    def _new(self, test: Test | None = None) -> int:
        if len(self._states) >= _STATES_MAX:
            raise TooCostly(f"a regex filter may have {_STATES_MAX} states", code="too-costly")
        self._states.append(_State(test))
        return len(self._states) - 1

    def _join(self, start: int, *ends: int) -> None:
        self._states[start].following += ends

    def _peek(self) -> str:
        return self._text[self._at:self._at + 1]

    def _take(self) -> str:
        one = self._peek()
        if not one:
            raise _refused()
        self._at += 1
        return one

    def _alternatives(self, depth: int) -> _Piece:
        if depth > _DEPTH_MAX:
            raise TooCostly(f"a regex filter may nest {_DEPTH_MAX} groups", code="too-costly")
        branches = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence(depth))
        start, end = self._new(), self._new()
        for branch in branches:
            self._join(start, branch.start)
            self._join(branch.end, end)
        return _Piece(start, end)

    def _sequence(self, depth: int) -> _Piece:
        start = end = self._new()
        while self._peek() not in ("", "|", ")"):
            piece = self._repeated(depth)
            self._join(end, piece.start)
            end = piece.end
        return _Piece(start, end)

    def _repeated(self, depth: int) -> _Piece:
        begin = self._at
        piece = self._one(depth)
        least, most = self._counts()
        if (least, most) == (1, 1):
            return piece
        after = self._at
        start = end = self._new()
        for turn in range(most if most is not None else max(least, 1)):
            if turn:  # the same text again, as states of its own
                self._at = begin
                piece = self._one(depth)
            if turn >= least:
                self._join(end, piece.start)
                out = self._new()
                self._join(end, out)
                self._join(piece.end, out)
                end = out
            else:
                self._join(end, piece.start)
                end = piece.end
        self._at = after
        if most is None:
            self._join(piece.end, piece.start)
        return _Piece(start, end)

    def _counts(self) -> tuple[int, int | None]:
        one = self._peek()
        if one in ("*", "+", "?") and one:
            self._at += 1
            found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[one]
        elif one == "{":
            close = self._text.find("}", self._at)
            least, comma, most = self._text[self._at + 1:close].partition(",") if close > 0 else ("", "", "")
            if not _natural(least) or (most and not _natural(most)):
                raise _refused()
            found = (int(least), (int(most) if most else None) if comma else int(least))
            if max(found[0], found[1] or 0) > _REPEAT_MAX:
                raise TooCostly(f"a regex filter may repeat {_REPEAT_MAX} times", code="too-costly")
            if found[1] is not None and found[1] < found[0]:
                raise _refused()
            self._at = close + 1
        else:
            return 1, 1
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise _refused()
        return found

    def _one(self, depth: int) -> _Piece:
        one = self._take()
        if one == "(":
            if self._peek() == "?":
                if self._text[self._at:self._at + 2] != "?:":
                    raise _refused()
                self._at += 2
            piece = self._alternatives(depth + 1)
            if self._take() != ")":
                raise _refused()
            return piece
        if one in "*+?{)^$":
            raise _refused()
        if one == "[":
            return self._single(self._class())
        if one == ".":
            return self._single(lambda character: character not in "\n\r")
        if one == "\\":
            return self._single(self._escape())
        return self._single(lambda character: character == one)

    def _single(self, test: Test) -> _Piece:
        start, end = self._new(test), self._new()
        self._join(start, end)
        return _Piece(start, end)

    def _escape(self) -> Test:
        one = self._take()
        if one in _CLASSES:
            return _CLASSES[one]
        literal = self._literal(one)
        return lambda character: character == literal

    def _literal(self, one: str) -> str:
        if one in _LITERAL_ESCAPES:
            return _LITERAL_ESCAPES[one]
        if one.isalnum():  # \b, \p{..}, \1: what is not spoken here
            raise _refused()
        return one

    def _class(self) -> Test:
        negated = self._peek() == "^"
        self._at += negated
        tests: list[Test] = []
        ranges: list[tuple[str, str]] = []
        while (one := self._take()) != "]":
            if one == "[":
                raise _refused()
            if one == "\\":
                escaped = self._take()
                if escaped in _CLASSES:
                    tests.append(_CLASSES[escaped])
                    continue
                one = self._literal(escaped)
            last = one
            if self._peek() == "-" and self._text[self._at + 1:self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._take()
                last = self._literal(self._take()) if last == "\\" else last
                if last < one:
                    raise _refused()
            ranges.append((one, last))
        if not tests and not ranges:
            raise _refused()
        return lambda character: (any(low <= character <= high for low, high in ranges)
                                  or any(test(character) for test in tests)) is not negated


def _natural(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6


def _refused() -> Unprocessable:
    return Unprocessable("the regex filter is none this server understands: characters, classes, groups, | * + ? {m,n}",
                         code="not-supported", expression="ValueSet.compose.include.filter.value")
