"""FHIRPath text to syntax tree.

Owns the N1 grammar and nothing of its meaning; refuses text that is not an expression with
FHIRPathError, naming the place. http://hl7.org/fhirpath/N1/#formal-specifications
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.values import CALENDAR_UNITS, Quantity, Temporal, parse_temporal

LiteralValue = bool | int | Decimal | str | Temporal | Quantity


@dataclass(frozen=True, slots=True)
class Literal:
    value: LiteralValue


@dataclass(frozen=True, slots=True)
class Nothing:
    """``{}``, the empty collection."""


@dataclass(frozen=True, slots=True)
class This:
    """``$this``; also the implicit focus of a path's first step."""


@dataclass(frozen=True, slots=True)
class LoopIndex:
    """``$index``."""


@dataclass(frozen=True, slots=True)
class LoopTotal:
    """``$total``."""


@dataclass(frozen=True, slots=True)
class Variable:
    """``%name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """``left.name``; ``first`` when nothing is written before the name."""

    left: Ast
    name: str
    first: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """``left.name(args)``; on the implicit focus ``left`` is This."""

    left: Ast
    name: str
    args: tuple[Ast, ...] = ()


@dataclass(frozen=True, slots=True)
class Indexer:
    left: Ast
    index: Ast


@dataclass(frozen=True, slots=True)
class Sign:
    operator: str
    operand: Ast


@dataclass(frozen=True, slots=True)
class TypeTest:
    """``operand is T`` or ``operand as T``."""

    operator: str
    operand: Ast
    type_name: str


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Ast
    right: Ast


Ast = (
    Literal | Nothing | This | LoopIndex | LoopTotal | Variable
    | Member | Call | Indexer | Sign | TypeTest | Binary
)

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<time>@T\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:\d\d)?)
    |(?P<date>@\d{4}(?:-\d\d(?:-\d\d)?)?(?:T(?:\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:\d\d)?)?)?)
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<string>'(?:[^'\\]|\\.)*')
    |(?P<quoted>`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*")
    |(?P<variable>%(?:[A-Za-z_][A-Za-z0-9_\-]*|`(?:[^`\\]|\\.)*`|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
    |(?P<loop>\$this|\$index|\$total)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<symbol><=|>=|!=|!~|[~=<>+\-*/|&()\[\]{}.,])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNITS = CALENDAR_UNITS | {f"{unit}s" for unit in CALENDAR_UNITS}
_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"implies"}),
    frozenset({"or", "xor"}),
    frozenset({"and"}),
    frozenset({"in", "contains"}),
    frozenset({"=", "~", "!=", "!~"}),
    frozenset({"<=", "<", ">", ">="}),
    frozenset({"|"}),
    frozenset({"is", "as"}),
    frozenset({"+", "-", "&"}),
    frozenset({"*", "/", "div", "mod"}),
)
_LEVEL_OF = {operator: level for level, operators in enumerate(_LEVELS) for operator in operators}
_MAX_DEPTH = 60
_RESERVED = frozenset({"and", "or", "xor", "implies", "div", "mod"})


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        body = match.group(1)
        return chr(int(body[1:], 16)) if len(body) == 5 else _ESCAPES.get(body, body)

    return _ESCAPE.sub(one, text)


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise FHIRPathError(f"FHIRPath: unexpected {text[at]!r} at {at} in {text!r}")
        kind = match.lastgroup or ""
        if kind != "space":
            found.append((kind, match.group(), at))
        at = match.end()
    found.append(("end", "", len(text)))
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0

    def error(self, what: str) -> FHIRPathError:
        return FHIRPathError(f"FHIRPath: {what} at {self.tokens[self.at][2]} in {self.text!r}")

    def peek(self) -> str:
        kind, text, _ = self.tokens[self.at]
        return text if kind in ("symbol", "name") else ""

    def expect(self, symbol: str) -> None:
        if self.tokens[self.at][:2] != ("symbol", symbol):
            raise self.error(f"{symbol!r} expected")
        self.at += 1

    def expression(self, lowest: int = 0) -> Ast:
        """Precedence climbing; a left-hand operator binds before what follows it at the same level."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error("nested too deeply")
        left = self.polarity()
        while (level := _LEVEL_OF.get(operator := self.peek(), -1)) >= lowest:
            self.at += 1
            if operator in ("is", "as"):
                left = TypeTest(operator, left, self.type_name())
            else:
                left = Binary(operator, left, self.expression(level + 1))
        self.depth -= 1
        return left

    def polarity(self) -> Ast:
        signs = []
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            signs.append(sign)
        if len(signs) > _MAX_DEPTH:
            raise self.error("too many signs")
        operand = self.postfix()
        for sign in reversed(signs):
            operand = Sign(sign, operand)
        return operand

    def postfix(self) -> Ast:
        left = self.term()
        while True:
            symbol = self.peek()
            if symbol == ".":
                self.at += 1
                left = self.invocation(left, first=False)
            elif symbol == "[":
                self.at += 1
                index = self.expression()
                self.expect("]")
                left = Indexer(left, index)
            else:
                return left

    def term(self) -> Ast:
        kind, text, _ = self.tokens[self.at]
        if kind == "symbol" and text == "(":
            self.at += 1
            inner = self.expression()
            self.expect(")")
            return inner
        if kind == "symbol" and text == "{":
            self.at += 1
            self.expect("}")
            return Nothing()
        if kind == "name" and text not in ("true", "false") and text not in _RESERVED:
            return self.invocation(This(), first=True)
        if kind == "quoted":
            return self.invocation(This(), first=True)
        if kind == "loop" and self.tokens[self.at][1] != "$this":
            self.at += 1
            return LoopIndex() if text == "$index" else LoopTotal()
        self.at += 1
        if kind == "loop":
            return This()
        if kind == "variable" and text[1:] not in ("``", "''", '""'):
            name = text[1:]
            return Variable(_unescape(name[1:-1]) if name[0] in "`'\"" else name)
        if kind == "string":
            return Literal(_unescape(text[1:-1]))
        if kind == "name" and text in ("true", "false"):
            return Literal(text == "true")
        if kind in ("date", "time"):
            value = parse_temporal(text[1:], literal=True)
            if value is None:
                raise self.error(f"{text} is no date or time")
            return Literal(value)
        if kind == "number":
            return self.number(text)
        self.at -= 1
        raise self.error(f"{text or 'end of text'!r} unexpected")

    def number(self, text: str) -> Ast:
        kind, unit, _ = self.tokens[self.at]
        if kind == "string":
            self.at += 1
            return Literal(Quantity(Decimal(text), _unescape(unit[1:-1])))
        if kind == "name" and unit in _UNITS:
            self.at += 1
            return Literal(Quantity(Decimal(text), unit.removesuffix("s"), calendar=True))
        return Literal(Decimal(text) if "." in text else int(text))

    def identifier(self) -> str:
        kind, text, _ = self.tokens[self.at]
        if kind == "quoted" and len(text) > 2:
            self.at += 1
            return _unescape(text[1:-1])
        if kind == "name":
            self.at += 1
            return text
        raise self.error("a name expected")

    def invocation(self, left: Ast, *, first: bool) -> Ast:
        kind, text, _ = self.tokens[self.at]
        if kind == "loop":
            self.at += 1
            if text == "$this":
                return left
            raise self.error(f"{text} cannot follow a dot")
        name = self.identifier()
        if self.tokens[self.at][:2] != ("symbol", "("):
            return Member(left, name, first)
        self.at += 1
        args: list[Ast] = []
        if self.peek() != ")":
            args.append(self.expression())
            while self.peek() == ",":
                self.at += 1
                args.append(self.expression())
        self.expect(")")
        if name in ("is", "as", "ofType"):
            if len(args) != 1:
                raise self.error(f"{name}() takes one type")
            return TypeTest(name, left, self.type_argument(args[0]))
        return Call(left, name, tuple(args))

    def type_name(self) -> str:
        name = self.identifier()
        if self.peek() == ".":
            self.at += 1
            name = f"{name}.{self.identifier()}"
        return name

    def type_argument(self, argument: Ast) -> str:
        if isinstance(argument, Member):
            if argument.first:
                return argument.name
            if isinstance(argument.left, Member) and argument.left.first:
                return f"{argument.left.name}.{argument.name}"
        raise self.error("a type expected")


def parse(text: str) -> Ast:
    """The tree of one expression. Raises FHIRPathError where the text is not one."""
    parser = _Parser(text)
    tree = parser.expression()
    if parser.tokens[parser.at][0] != "end":
        raise parser.error(f"{parser.tokens[parser.at][1]!r} unexpected")
    return tree
