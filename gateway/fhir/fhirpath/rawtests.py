"""Tests of the values behind a plain path, which stay bare: no Node is made but to compare.

Owns what a literal, a list of codes, a text or a number is held against, and how absence counts; refuses several
values where N1 takes one. http://hl7.org/fhirpath/N1/
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from gateway.fhir.fhirpath import operators
from gateway.fhir.fhirpath.functions_text import pattern
from gateway.fhir.fhirpath.logic import Truth
from gateway.fhir.fhirpath.node import OPEN_TYPES, Context, Json, Node, choice_key
from gateway.fhir.fhirpath.rawpath import RawValues

ON_TEXT = frozenset({"startsWith", "endsWith", "contains", "matches"})
"""The functions ``text_test`` knows."""
INTEGERS: dict[str, Callable[[int, int], bool]] = {
    "=": int.__eq__, "!=": int.__ne__, "<": int.__lt__, ">": int.__gt__, "<=": int.__le__, ">=": int.__ge__,
}
"""What each operator says of two counts."""
_WANTED: dict[str, tuple[int, ...]] = {"<": (-1,), ">": (1,), "<=": (-1, 0), ">=": (0, 1)}


def presence(name: str, choice: bool, wanted: bool) -> Truth:
    """``name.exists()``, or ``empty()`` where it is not ``wanted``; ``choice``: ``name`` stands for a value[x]."""
    side = "_" + name
    if not choice:

        def present(value: Json, context: Context) -> bool:
            return (type(value) is dict and (name in value or side in value)) is wanted

        return present
    keys = frozenset(name + suffix for suffix in OPEN_TYPES)

    def chosen(value: Json, context: Context) -> bool:
        if type(value) is not dict:
            return not wanted
        if name in value or side in value or not keys.isdisjoint(value):
            return wanted
        return (choice_key(value, name, None) is not None) is wanted if _has_side(value) else not wanted

    return chosen


def _has_side(value: dict[str, Json]) -> bool:
    return any(key[0] == "_" for key in value)


def equality(values: RawValues, literal: str | bool | int, wanted: bool) -> Truth:
    """``path = literal``, or ``!=`` where it is not ``wanted``."""

    def test(value: Json, context: Context) -> bool | None:
        found = values(value, context)
        if not found:
            return None
        return (len(found) == 1 and _same(found[0], literal)) is wanted

    return test


def membership(values: RawValues, texts: frozenset[str]) -> Truth:
    """``path in (texts)``."""

    def test(value: Json, context: Context) -> bool | None:
        found = values(value, context)
        if not found:
            return None
        operators.singleton(found)
        return type(found[0]) is str and found[0] in texts

    return test


def held(values: RawValues) -> Truth:
    """``path.hasValue()``."""

    def test(value: Json, context: Context) -> bool:
        found = values(value, context)
        return len(found) == 1 and found[0] is not None and type(found[0]) is not dict

    return test


def any_of(values: RawValues, test: Truth, wanted: bool) -> Truth:
    """``path.exists(test)``, or its contrary where it is not ``wanted``."""

    def some(value: Json, context: Context) -> bool:
        for one in values(value, context):
            if test(one, context):
                return wanted
        return not wanted

    return some


def all_of(values: RawValues, test: Truth) -> Truth:
    """``path.all(test)``."""

    def every(value: Json, context: Context) -> bool:
        return all(test(one, context) for one in values(value, context))

    return every


def text_test(name: str, values: RawValues, argument: str) -> Truth:
    """``path.startsWith(argument)`` and its like, false for absent text."""
    regex: re.Pattern[str] | None = pattern(argument) if name == "matches" else None
    test: Callable[[str], bool] = {
        "startsWith": lambda text: text.startswith(argument),
        "endsWith": lambda text: text.endswith(argument),
        "contains": lambda text: argument in text,
        "matches": lambda text: regex is not None and regex.search(text) is not None,
    }[name]

    def apply(value: Json, context: Context) -> bool:
        found = values(value, context)
        if not found:
            return False
        operators.singleton(found)
        return type(found[0]) is str and test(found[0])

    return apply


def above(operator: str, values: RawValues, literal: int) -> Truth:
    """``path > literal`` and its like."""
    limit = Decimal(literal)

    def test(value: Json, context: Context) -> bool | None:
        order = operators.compare([Node(one, "") for one in values(value, context)], [limit])
        return None if order is None else order in _WANTED[operator]

    return test


def ordered(operator: str, left: RawValues, right: RawValues) -> Truth:
    """``left < right`` and its like; texts of one length and zone, dates say, compare as they stand."""
    wanted = _WANTED[operator]

    def test(value: Json, context: Context) -> bool | None:
        ours, theirs = left(value, context), right(value, context)
        if len(ours) == 1 and len(theirs) == 1:
            one, other = ours[0], theirs[0]
            if type(one) is str and type(other) is str and len(one) == len(other) and (
                len(one) <= 10 or one[-6:] == other[-6:] or one[-1] == other[-1] == "Z"
            ):
                return (one > other) - (one < other) in wanted
        order = operators.compare([Node(one, "") for one in ours], [Node(one, "") for one in theirs])
        return None if order is None else order in wanted

    return test


def _same(found: Json, wanted: str | bool | int) -> bool:
    if type(wanted) is int:
        return type(found) not in (str, bool, dict, list) and found is not None and (
            found == wanted if type(found) is int else operators.number(found) == wanted
        )
    return type(found) is type(wanted) and bool(found == wanted)
