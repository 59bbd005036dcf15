"""FHIRPath functions on precision and order, from the drafts after N1.

The bounds of what a decimal, date or time may stand for, the digits it was written with, and sorting.
https://hl7.org/fhirpath/#lowboundaryprecision-integer-decimal--date--datetime--time
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import cmp_to_key

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function, argument, each, integer_argument
from gateway.fhir.fhirpath.node import Item, Node
from gateway.fhir.fhirpath.operators import compare, singleton, system
from gateway.fhir.fhirpath.values import Quantity, Temporal, comparable, parse_temporal, written

_MOST_DIGITS = 28
_DECIMAL_DIGITS = 8
_FIELD_DIGITS = {"Date": (4, 6, 8), "DateTime": (4, 6, 8, 10, 12, 17), "Time": (2, 4, 9)}


def _boundary(*, high: bool) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        item = singleton(items)
        if item is None:
            return []
        value, digits = system(item), integer_argument(args, 0, this, env)
        if type(value) is Temporal:
            if type(item) is Node and item.type in ("dateTime", "instant") and value.kind == "Date":
                value = Temporal("DateTime", value.fields, None, value.text)
            bound = _temporal_bound(value, digits, high=high)
            return [] if bound is None else [bound]
        if digits is not None and not 0 <= digits <= _MOST_DIGITS:
            return []
        if type(value) is Quantity:
            return [Quantity(_decimal_bound(value.value, digits, high=high), value.unit, value.calendar)]
        if type(value) in (int, Decimal):
            return [_decimal_bound(Decimal(value), digits, high=high)]
        return []

    return function


def _decimal_bound(value: Decimal, digits: int | None, *, high: bool) -> Decimal:
    exponent = value.as_tuple().exponent
    half = Decimal((0, (5,), (exponent if isinstance(exponent, int) else 0) - 1))
    step = Decimal(1).scaleb(-(_DECIMAL_DIGITS if digits is None else digits))
    if high:
        return (value + half).quantize(step, rounding=ROUND_CEILING)
    return (value - half).quantize(step, rounding=ROUND_FLOOR)


def _temporal_bound(value: Temporal, digits: int | None, *, high: bool) -> Temporal | None:
    levels = _FIELD_DIGITS[value.kind]
    wanted = levels[-1] if digits is None else digits
    if wanted not in levels:
        return None
    size = levels.index(wanted) + 1
    fields = list(value.fields[:size])
    while len(fields) < size:
        fields.append(_edge(value, fields, high=high))
    if value.kind == "Time":
        return written(value, tuple(fields))
    shaped = written(Temporal("DateTime" if size > 3 else "Date", value.fields, None, ""), tuple(fields))
    zone = value.text[len(value.text.rstrip("Z")) :] if value.text.endswith("Z") else value.text[-6:]
    if size <= 3:
        return shaped
    return parse_temporal(shaped.text + (zone if value.offset_min is not None else "-12:00" if high else "+14:00"))


def _edge(value: Temporal, fields: list[int | Decimal], *, high: bool) -> int | Decimal:
    """The first or last value of the next field."""
    at = len(fields) + (3 if value.kind == "Time" else 0)
    if not high:
        return (1, 1, 1, 0, 0, Decimal("0.000"))[at]
    if at == 2:
        return calendar.monthrange(int(fields[0]), int(fields[1]))[1]
    return (9999, 12, 31, 23, 59, Decimal("59.999"))[at]


def _precision(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    item = singleton(items)
    value = None if item is None else system(item)
    if type(value) is Temporal:
        return [_FIELD_DIGITS[value.kind][len(value.fields) - 1]]
    if type(value) is int:
        return [0]
    if type(value) is Decimal:
        exponent = value.as_tuple().exponent
        return [max(0, -exponent) if isinstance(exponent, int) else 0]
    return []


def _comparable(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    one, other = singleton(items), singleton(argument(args, 0, this, env))
    if one is None or other is None:
        return []
    left, right = system(one), system(other)
    return [type(left) is Quantity and type(right) is Quantity and comparable(left, right) is not None]


def sort(items: list[Item], keys: Sequence[tuple[Evaluator, bool]], env: Env) -> list[Item]:
    """``sort(key, -key ...)``: (key, descending); an item without a key comes first either way."""
    columns = [each(items, key, env) for key, _ in keys]

    def order(one: int, other: int) -> int:
        for column, (_, descending) in zip(columns, keys, strict=True):
            left, right = column[one], column[other]
            if not left or not right:
                found = bool(left) - bool(right)
            else:
                found = (compare(left, right) or 0) * (-1 if descending else 1)
            if found:
                return found
        return one - other

    if any(len(value) > 1 for column in columns for value in column):
        raise FHIRPathError("FHIRPath: sort() takes keys of one item")
    return [items[at] for at in sorted(range(len(items)), key=cmp_to_key(order))]


BOUNDARY_FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    "lowBoundary": (0, 1, _boundary(high=False)),
    "highBoundary": (0, 1, _boundary(high=True)),
    "precision": (0, 0, _precision),
    "comparable": (1, 1, _comparable),
}
