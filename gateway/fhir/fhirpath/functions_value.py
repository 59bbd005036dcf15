"""FHIRPath conversions, mathematics and dates. http://hl7.org/fhirpath/N1/#conversion, #math

A conversion that cannot be made gives empty, as does mathematics without a real answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function, argument, integer_argument
from gateway.fhir.fhirpath.node import Item
from gateway.fhir.fhirpath.operators import as_text, singleton, system
from gateway.fhir.fhirpath.values import CALENDAR_UNITS, Quantity, Temporal, of_instant, parse_temporal

_TRUE = frozenset({"true", "t", "yes", "y", "1", "1.0"})
_FALSE = frozenset({"false", "f", "no", "n", "0", "0.0"})
_DECIMAL = re.compile(r"[+-]?\d+(\.\d+)?\Z")
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:\s*'([^']+)'|\s+([a-zA-Z]+))?\Z")


def _to_boolean(item: Item) -> Item | None:
    value = system(item)
    if type(value) is bool:
        return value
    if type(value) in (int, Decimal):
        return {1: True, 0: False}.get(value)
    if type(value) is str:
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None


def _to_integer(item: Item) -> Item | None:
    value = system(item)
    if type(value) is bool:
        return int(value)
    if type(value) is int:
        return value
    if type(value) is str and re.match(r"[+-]?\d+\Z", value):
        return int(value) if len(value) < 20 else None
    return None


def _to_decimal(item: Item) -> Item | None:
    value = system(item)
    if type(value) in (bool, int):
        return Decimal(int(value))
    if type(value) is Decimal:
        return value
    if type(value) is str and _DECIMAL.match(value):
        return Decimal(value)
    return None


def _to_temporal(kind: str) -> Callable[[Item], Item | None]:
    def convert(item: Item) -> Item | None:
        value = system(item)
        if type(value) is str:
            value = parse_temporal(value)
        if type(value) is not Temporal:
            return None
        if value.kind == kind:
            return value
        if kind == "DateTime" and value.kind == "Date":
            return Temporal("DateTime", value.fields, None, value.text)
        if kind == "Date" and value.kind == "DateTime":
            return Temporal("Date", value.fields[:3], None, value.text.partition("T")[0])
        return None

    return convert


def _to_quantity(item: Item) -> Item | None:
    value = system(item)
    if type(value) is Quantity:
        return value
    if type(value) in (bool, int, Decimal):
        return Quantity(Decimal(value), "1")
    match = _QUANTITY.match(value) if type(value) is str else None
    if match is None:
        return None
    amount, unit, word = match.groups()
    if word is not None:
        word = word.removesuffix("s")
        return Quantity(Decimal(amount), word, calendar=True) if word in CALENDAR_UNITS else None
    return Quantity(Decimal(amount), unit or "1")


def _conversion(convert: Callable[[Item], Item | None]) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        item = singleton(items)
        found = None if item is None else convert(item)
        return [] if found is None else [found]

    return function


def _convertible(convert: Callable[[Item], Item | None]) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        item = singleton(items)
        return [] if item is None else [convert(item) is not None]

    return function


def _number(items: list[Item]) -> int | Decimal | None:
    item = singleton(items)
    if item is None:
        return None
    value = system(item)
    if type(value) in (int, Decimal):
        found: int | Decimal = value
        return found
    raise FHIRPathError("FHIRPath: a number expected")


def _math(apply: Callable[[Decimal], Item]) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        value = _number(items)
        if value is None:
            return []
        try:
            return [apply(Decimal(value))]
        except (InvalidOperation, ValueError, OverflowError, ArithmeticError):
            return []

    return function


def _abs(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    item = singleton(items)
    value = None if item is None else system(item)
    if type(value) is Quantity:
        return [Quantity(abs(value.value), value.unit, value.calendar)]
    found = _number(items)
    return [] if found is None else [abs(found)]


def _power(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    base, exponent = _number(items), _number(argument(args, 0, this, env))
    if base is None or exponent is None or abs(Decimal(exponent)) > 10_000:
        return []
    try:
        found: Decimal = Decimal(base) ** Decimal(exponent)
    except (InvalidOperation, ArithmeticError):
        return []
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0
    return [int(found) if whole and found < 2**63 else found]


def _log(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    value, base = _number(items), _number(argument(args, 0, this, env))
    if value is None or base is None or value <= 0 or base <= 0 or base == 1:
        return []
    return [(Decimal(value).log10() / Decimal(base).log10()).quantize(Decimal("1e-15")).normalize()]


def _round(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    value, places = _number(items), integer_argument(args, 0, this, env) or 0
    if value is None:
        return []
    if not 0 <= places <= 28:
        raise FHIRPathError("FHIRPath: round() takes 0 to 28 places")
    return [Decimal(value).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)]


def _moment(*, day_only: bool) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        now = env.context.now
        return [] if now is None else [of_instant(now, day_only=day_only)]

    return function


def _time_of_day(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    now = env.context.now
    found = None if now is None else parse_temporal(now.strftime("%H:%M:%S"))
    return [] if found is None else [found]


_CONVERSIONS: Mapping[str, Callable[[Item], Item | None]] = {
    "Boolean": _to_boolean,
    "Integer": _to_integer,
    "Decimal": _to_decimal,
    "String": as_text,
    "Date": _to_temporal("Date"),
    "DateTime": _to_temporal("DateTime"),
    "Time": _to_temporal("Time"),
    "Quantity": _to_quantity,
}

VALUE_FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    **{f"to{name}": (0, 1, _conversion(convert)) for name, convert in _CONVERSIONS.items()},
    **{f"convertsTo{name}": (0, 1, _convertible(convert)) for name, convert in _CONVERSIONS.items()},
    "abs": (0, 0, _abs),
    "ceiling": (0, 0, _math(lambda value: math.ceil(value))),
    "floor": (0, 0, _math(lambda value: math.floor(value))),
    "truncate": (0, 0, _math(lambda value: math.trunc(value))),
    "exp": (0, 0, _math(lambda value: value.exp())),
    "ln": (0, 0, _math(lambda value: value.ln())),
    "sqrt": (0, 0, _math(lambda value: value.sqrt())),
    "log": (1, 1, _log),
    "power": (1, 1, _power),
    "round": (0, 1, _round),
    "now": (0, 0, _moment(day_only=False)),
    "today": (0, 0, _moment(day_only=True)),
    "timeOfDay": (0, 0, _time_of_day),
}
