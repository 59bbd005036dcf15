"""``_filter``: R4's filter expressions as one criterion.

Owns their grammar and which predicate each comparison is; refuses what has none by name: element filters in brackets,
comparisons a kind of parameter does not take. https://hl7.org/fhir/R4/search_filter.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import BadSearch
from gateway.fhir.query import AllOf, AnyOf, Criterion, DateIs, Not, Predicate, UpdatedIs
from gateway.fhir.search_chain import is_link, linked
from gateway.fhir.search_criteria import Criteria
from gateway.fhir.search_encoding import PREFIX_MAX, normal
from gateway.fhir.search_plan import OPENED, Plan
from gateway.fhir.search_results import Unsupported

_TOKEN = re.compile(r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[^\s()"]+))""")
_LENGTH_MAX = 4_000
_DEPTH_MAX = 30
_TERMS_MAX = 100
OPERATORS = frozenset({"eq", "ne", "co", "sw", "ew", "gt", "lt", "ge", "le", "ap", "sa", "eb", "pr", "po", "ss", "sb",
                       "in", "ni", "re"})
_BY_PREFIX = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "ap", "sa", "eb"})
_TAKEN = {
    "string": frozenset({"eq", "ne", "co", "sw", "ew"}), "token": frozenset({"eq", "ne", "ss", "sb", "in", "ni"}),
    "uri": frozenset({"eq", "ne", "ss", "sb"}), "reference": frozenset({"eq", "ne", "re"}),
    "date": _BY_PREFIX | {"po"}, "number": _BY_PREFIX, "quantity": _BY_PREFIX, "composite": frozenset({"eq", "ne"}),
    "special": frozenset({"eq"})}
"""Comparisons each kind takes, besides ``pr``."""


@dataclass(slots=True)
class _Reader:
    """One expression being read."""

    criteria: Criteria
    type_name: str
    tokens: Sequence[tuple[str, str]]
    place: int = 0
    terms: int = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.place += 1
        return token

    def any_of(self, depth: int) -> Predicate:
        """R4 gives ``and`` no precedence over ``or``: left to right."""
        if depth > _DEPTH_MAX:
            raise _bad(f"more than {_DEPTH_MAX} levels", "too-costly")
        found = self.part(depth)
        while self.peek() in (("word", "and"), ("word", "or")):
            _, word = self.take()
            parts = (found, self.part(depth))
            found = AllOf(parts) if word == "and" else AnyOf(parts)
        return found

    def part(self, depth: int) -> Predicate:
        kind, text = self.take()
        if (kind, text) == ("word", "not"):
            return Not(self.part(depth + 1) if self.peek()[0] != "open" else self.bracket(depth))
        if kind == "open":
            self.place -= 1
            return self.bracket(depth)
        if kind != "word":
            raise _bad("a parameter is expected" + (f" before {text[:32]!r}" if text else " at the end"))
        return self.term(text)

    def bracket(self, depth: int) -> Predicate:
        self.take()
        found = self.any_of(depth + 1)
        if self.take()[0] != "close":
            raise _bad("a closing bracket is missing")
        return found

    def term(self, path: str) -> Predicate:
        self.terms += 1
        if self.terms > _TERMS_MAX:
            raise _bad(f"more than {_TERMS_MAX} comparisons", "too-costly")
        kind, operator = self.take()
        if kind != "word" or operator not in OPERATORS:
            raise _bad(f"{operator[:32]!r} after {path[:64]!r} is no comparison of R4")
        kind, value = self.take()
        if kind not in ("text", "word"):
            raise _bad(f"a value is missing after {path[:64]} {operator}")
        if "[" in path:
            raise Unsupported(f"_filter: {path[:64]!r}: filters of elements in brackets are not supported")
        if kind == "text":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        return _compared(self.criteria, self.type_name, path, operator, value)


def filtered(criteria: Criteria, type_name: str, name: str, value: str) -> Criterion:
    """The expression as a criterion on ``type_name``. Raises Unsupported, BadSearch."""
    if len(value) > _LENGTH_MAX:
        raise _bad(f"longer than {_LENGTH_MAX} letters", "too-long")
    reader = _Reader(criteria, type_name, _tokens(value))
    found = reader.any_of(0)
    if reader.peek()[0] != "end":
        raise _bad(f"{reader.peek()[1][:32]!r} is not expected there")
    return Criterion((found,))


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _bad("a text does not end")
        found.append((match.lastgroup or "", match[match.lastgroup or 0]))
        place = match.end()
    return found


def _compared(criteria: Criteria, type_name: str, path: str, operator: str, value: str) -> Predicate:
    """One comparison, at the end of a chain on the type that the chain leads to."""
    if is_link(path):
        head, _, _ = path.rpartition(":" if path.startswith("_has:") and "." not in path.split(":", 3)[-1] else ".")
        last = path[len(head) + 1:]
        ending = _ending(last, operator, value)
        return _all(linked(criteria, type_name, f"{head}{path[len(head)]}{last}{ending[0]}", ending[1]))
    plan = criteria.plan(type_name, path)
    kind = plan.parameter.type
    if operator == "pr":
        return _presence(criteria, type_name, plan, value)
    if operator not in _TAKEN[kind] or (plan.parameter.code in OPENED and operator != "eq"):
        raise _bad(f"{path[:64]} is a {kind} parameter, which {operator} does not compare", "not-supported")
    if kind == "string" and plan.parameter.code not in OPENED:
        return _string(criteria, type_name, plan, operator, value)
    if operator == "po":
        return _overlap(criteria, type_name, path, value)
    if operator == "ne" and kind not in ("date", "number", "quantity"):
        return Not(_compared(criteria, type_name, path, "eq", value))
    suffix, text = _ending(path, operator, value, kind=kind)
    return _all(criteria.criterion(type_name, path + suffix, text, asked="_filter"))


def _ending(path: str, operator: str, value: str, *, kind: str | None = None) -> tuple[str, str]:
    """The comparison as a modifier and a value of the ordinary parameter."""
    text = _escaped(value, "," if kind in ("token", "reference", "uri", "composite", "quantity", None) else ",$|")
    ranged = kind in ("date", "number", "quantity") or (kind is None and operator in _BY_PREFIX - {"eq", "ne"})
    if operator == "pr":
        return ":missing", {"true": "false", "false": "true"}.get(value, value)
    if ranged:
        return "", operator + text
    if operator in ("eq", "re"):
        return "", text
    if kind is None and operator not in ("co", "ss", "sb", "in", "ni"):
        raise Unsupported(f"_filter: {operator} at the end of a chain is not supported ({path[:64]})")
    if operator == "ne":
        return ":not", text
    # R4: "ss" is true where the value subsumes what is there: everything below the value.
    return {"co": ":contains", "ss": ":below", "sb": ":above", "in": ":in", "ni": ":not-in"}[operator], text


def _presence(criteria: Criteria, type_name: str, plan: Plan, value: str) -> Predicate:
    if value not in ("true", "false"):
        raise _bad("pr is followed by true or false")
    there: Predicate = AnyOf(criteria.present(type_name, plan))
    return there if value == "true" else Not(there)


def _string(criteria: Criteria, type_name: str, plan: Plan, operator: str, value: str) -> Predicate:
    """Without case and accents, as strings are searched."""
    text = normal(value)
    if not text:
        raise _bad("a value is missing")
    if operator == "ne":
        return Not(_string(criteria, type_name, plan, "eq", value))
    if operator == "co":
        return criteria.opened(type_name, plan, "contains", text, "_filter")
    if operator == "ew":
        return criteria.opened(type_name, plan, "ends", text, "_filter")
    start = _all(criteria.criterion(type_name, plan.parameter.code, _escaped(text[:PREFIX_MAX], ",$|"),
                                    asked="_filter"))
    if operator == "sw":
        if len(text) > PREFIX_MAX:
            raise _bad(f"at most {PREFIX_MAX} letters are searched for", "too-long")
        return start
    return AllOf((start, criteria.opened(type_name, plan, "equals", text, "_filter")))


def _overlap(criteria: Criteria, type_name: str, path: str, value: str) -> Predicate:
    """``po``: the periods share a moment."""
    criterion = criteria.criterion(type_name, path, "eq" + value, asked="_filter")
    found: list[Predicate] = []
    for one in criterion.any_of:
        if not isinstance(one, DateIs | UpdatedIs):
            raise Unsupported(f"_filter: {path[:64]} is kept in a form that po does not compare")
        found.append(DateIs(one.key, "ap", one.low_ms, one.high_ms) if isinstance(one, DateIs) else
                     UpdatedIs("ap", one.low_ms, one.high_ms))
    return AnyOf(tuple(found))


def _all(criterion: Criterion) -> Predicate:
    found = criterion.any_of[0] if len(criterion.any_of) == 1 else AnyOf(criterion.any_of)
    return Not(found) if criterion.negated else found


def _escaped(text: str, signs: str) -> str:
    return "".join("\\" + one if one in signs or one == "\\" else one for one in text)


def _bad(text: str, code: str = "value") -> BadSearch:
    return BadSearch(f"_filter: {text}", code=code, expression="http._filter")
