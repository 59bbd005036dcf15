"""``_filter``: R4's filter expressions as one criterion.

Owns their grammar and which predicate each comparison is; refuses what has none by name: comparisons a kind of
parameter does not take, brackets after what has no parts. https://hl7.org/fhir/R4/search_filter.html

``name[filter].rest`` is R4's paramPath: after a reference, the filter and the rest are asked of one resource it leads
to; after a composite, of one of its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.errors import BadSearch
from gateway.fhir.query import AllOf, AnyOf, Criterion, DateIs, Not, Predicate, UpdatedIs
from gateway.fhir.search_chain import DEPTH_MAX, is_link, linked, linked_to
from gateway.fhir.search_criteria import Criteria
from gateway.fhir.search_encoding import PREFIX_MAX, normal
from gateway.fhir.search_plan import OPENED, Plan
from gateway.fhir.search_results import Unsupported

_TOKEN = re.compile(r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>(?:[^\s()"\[\]]|"""
                    r"""\[[^\s()"\[\]]*\])+)|(?P<from>\[)|(?P<to>\]))""")
"""A word may hold brackets of its own, as the unit mm[Hg] does."""
_LENGTH_MAX = 4_000
_DEPTH_MAX = 30
_TERMS_MAX = 100
_READ_MAX = 200
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
    read: list[str] = field(default_factory=list)
    """The types read for, over all readers of the expression."""

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
        return self.term(text, depth)

    def bracket(self, depth: int) -> Predicate:
        self.take()
        found = self.any_of(depth + 1)
        if self.take()[0] != "close":
            raise _bad("a closing bracket is missing")
        return found

    def term(self, path: str, depth: int) -> Predicate:
        if self.peek()[0] == "from":
            return self.parted(path, depth)
        operator, value = self.comparison(path)
        return self.compared(self.type_name, path, operator, value)

    def compared(self, type_name: str, path: str, operator: str, value: str) -> Predicate:
        """One comparison, at the end of a chain on the type that the chain leads to."""
        head, dot, rest = path.partition(".")
        if not dot or path.startswith("_has:"):
            return _compared(self.criteria, type_name, path, operator, value)
        if path.count(".") > DEPTH_MAX:
            raise _bad(f"more than {DEPTH_MAX} links", "too-costly")

        def read(target: str) -> Criterion:
            self.read.append(target)
            if len(self.read) > _READ_MAX:
                raise _bad("links lead to too many types: name them", "too-costly")
            return Criterion((self.compared(target, rest, operator, value),))

        return _all(linked_to(self.criteria, type_name, head, rest, read))

    def comparison(self, path: str) -> tuple[str, str]:
        self.terms += 1
        if self.terms > _TERMS_MAX:
            raise _bad(f"more than {_TERMS_MAX} comparisons", "too-costly")
        kind, operator = self.take()
        if kind != "word" or operator not in OPERATORS:
            raise _bad(f"{operator[:32]!r} after {path[:64]!r} is no comparison of R4")
        kind, value = self.take()
        if kind not in ("text", "word"):
            raise _bad(f"a value is missing after {path[:64]} {operator}")
        return operator, re.sub(r"\\(.)", r"\1", value[1:-1]) if kind == "text" else value

    def parted(self, path: str, depth: int) -> Predicate:
        """``path[filter].rest``: by what the path leads to, or by the parts of a composite."""
        head, dot, rest = path.partition(".")
        if dot and not head.startswith("_has:"):
            return self.beyond(head, rest, lambda reader: reader.term(rest, depth + 1))
        plan = self.criteria.plan(self.type_name, path.partition(":")[0])
        if plan.components and ":" not in path:
            return self.of_composite(plan)
        if plan.parameter.type != "reference":
            raise Unsupported(f"_filter: {path[:64]!r} has no parts that a filter in brackets is asked of")
        return self.beyond(path, self.after(), lambda reader: reader.both(depth + 1))

    def both(self, depth: int) -> Predicate:
        """``[filter].rest`` of one resource."""
        self.take()
        filtered_by = self.any_of(depth)
        return AllOf((filtered_by, self.term(self.rest(), depth)))

    def rest(self) -> str:
        """The path behind a closing bracket."""
        closed, (kind, text) = self.take()[0] == "to", self.take()
        if not closed or kind != "word" or len(text) < 2 or text[0] != ".":
            raise _bad("], a dot and a parameter are expected after a filter in brackets")
        return text[1:]

    def after(self) -> str:
        """That path, before the brackets are read."""
        depth, place = 1, self.place
        while depth:
            place += 1
            if place >= len(self.tokens):
                raise _bad("a bracket does not end")
            depth += {"from": 1, "to": -1}.get(self.tokens[place][0], 0)
        return _Reader(self.criteria, self.type_name, self.tokens, place).rest()

    def beyond(self, head: str, first: str, ask: Callable[[_Reader], Predicate]) -> Predicate:
        """What ``ask`` reads from here on, of each type the reference may lead to."""
        ends: dict[int, int] = {}

        def read(target: str) -> Criterion:
            self.read.append(target)
            if len(self.read) > _READ_MAX:
                raise _bad("links lead to too many types: name them", "too-costly")
            reader = _Reader(self.criteria, target, self.tokens, self.place, self.terms, self.read)
            found = ask(reader)
            ends[reader.place] = max(ends.get(reader.place, 0), reader.terms)
            return Criterion((found,))

        found = linked_to(self.criteria, self.type_name, head, first, read)
        if not ends:
            raise _bad(f"{head[:64]!r} refers to no resource of that type")
        [(self.place, self.terms)] = ends.items()  # the types differ, not the text
        return _all(found)

    def of_composite(self, plan: Plan) -> Predicate:
        """Each part but one within the brackets, with ``and`` between them; the last after them."""
        self.take()
        asked: dict[str, str] = {}
        while True:
            kind, part = self.take()
            if kind != "word":
                raise _bad("a part of the composite is expected")
            self.of_part(plan, part, asked)
            if self.peek() != ("word", "and"):
                break
            self.take()
        self.of_part(plan, self.rest(), asked)
        codes = [code for code, _ in plan.parameter.components]
        if asked.keys() != set(codes):
            raise Unsupported(f"_filter: of {plan.parameter.code} every part is asked: {', '.join(codes)}")
        value = "$".join(asked[code] for code in codes)
        return _all(self.criteria.criterion(self.type_name, plan.parameter.code, value, asked="_filter"))

    def of_part(self, plan: Plan, part: str, asked: dict[str, str]) -> None:
        kinds = {code: one.type for (code, _), one in zip(plan.parameter.components, plan.components, strict=True)}
        if part not in kinds or part in asked:
            raise Unsupported(f"_filter: {part[:64]!r} is none of {', '.join(kinds)}, or was asked before")
        operator, value = self.comparison(part)
        ranged = kinds[part] in ("date", "number", "quantity")
        if operator != "eq" and not (ranged and operator in _BY_PREFIX):
            raise Unsupported(f"_filter: {operator} does not compare {part} within {plan.parameter.code}")
        asked[part] = (operator if ranged else "") + _escaped(value, ",$")


def filtered(criteria: Criteria, type_name: str, name: str, value: str) -> Criterion:
    """The expression as a criterion on ``type_name``. Raises Unsupported, BadSearch."""
    if len(value) > _LENGTH_MAX:
        raise _bad(f"longer than {_LENGTH_MAX} letters", "too-long")
    reader = _Reader(criteria, type_name, _tokens(value))
    found = reader.any_of(0)
    if len(reader.read) > _READ_MAX:  # a type that was refused is passed over, which here it must not be
        raise _bad("links lead to too many types: name them", "too-costly")
    if reader.peek()[0] != "end":
        raise _bad(f"{reader.peek()[1][:32]!r} is not expected there")
    return Criterion((found,))


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _bad("a text or a bracket does not end")
        found.append((match.lastgroup or "", match[match.lastgroup or 0]))
        place = match.end()
    return found


def _compared(criteria: Criteria, type_name: str, path: str, operator: str, value: str) -> Predicate:
    """One comparison, at the end of a ``_has`` on the type that it leads to."""
    if is_link(path):
        head, _, _ = path.rpartition("." if "." in path.split(":", 3)[-1] else ":")
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
