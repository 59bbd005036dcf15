"""What the operators of FHIRPath mean on single items and collections.

Owns conversion of elements to System values, equality, equivalence, order and arithmetic; refuses
operands of the wrong kind with FHIRPathError. http://hl7.org/fhirpath/N1/#operations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, DivisionByZero, InvalidOperation, Overflow

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.node import Item, Json, Node
from gateway.fhir.fhirpath.values import (
    Quantity,
    Temporal,
    canonical_unit,
    comparable,
    compare_temporal,
    parse_temporal,
    shift,
)

_TEMPORAL_TYPES = frozenset({"date", "dateTime", "instant", "time"})
_QUANTITY_KEYS = frozenset({"value", "unit", "system", "code", "comparator", "extension", "id"})


def number(value: Json) -> Decimal:
    """A JSON decimal (text kept) or float as an exact Decimal."""
    return value if type(value) is Decimal else Decimal(str(value))


def system(item: Item) -> Item:
    """The System value of an element; a complex element stays the Node it is. None: no value."""
    if type(item) is not Node:
        return item
    value = item.value
    kind = type(value)
    if kind is str:
        if item.type in _TEMPORAL_TYPES:
            return parse_temporal(value) or value
        return value
    if kind is bool or value is None:
        return value
    if kind is int:
        return Decimal(value) if item.type == "decimal" else value
    if kind is not dict:
        return number(value)
    if "value" in value and item.type in _QUANTITIES and type(value["value"]) is not dict:
        return _quantity(value) or item
    return item


_QUANTITIES = frozenset({"", "Quantity", "Age", "Count", "Distance", "Duration", "SimpleQuantity", "MoneyQuantity"})
_UCUM = "http://unitsofmeasure.org"


def _quantity(value: dict[str, Json]) -> Quantity | None:
    if not _QUANTITY_KEYS.issuperset(value) or type(value["value"]) is str:
        return None
    unit = value.get("code") if value.get("system", _UCUM) == _UCUM else None
    if unit is None:
        unit = value.get("unit", value.get("code", "1"))
    return Quantity(number(value["value"]), str(unit))


def singleton(items: Sequence[Item]) -> Item | None:
    """The one item, None of none; more than one is an error."""
    if not items:
        return None
    if len(items) > 1:
        raise FHIRPathError(f"FHIRPath: one item expected, {len(items)} found")
    return items[0]


def boolean(items: Sequence[Item]) -> bool | None:
    """A collection read as three-valued truth; one item that is not boolean counts as true."""
    item = singleton(items)
    if item is None:
        return None
    value = item.value if type(item) is Node else item
    return value if type(value) is bool else True


def _pair(left: Item, right: Item) -> tuple[Item, Item]:
    """Both as System values, a text beside a date or time read as one."""
    left, right = system(left), system(right)
    if type(left) is Temporal and type(right) is str:
        right = parse_temporal(right) or right
    elif type(right) is Temporal and type(left) is str:
        left = parse_temporal(left) or left
    elif type(left) is Quantity and type(right) in (int, Decimal):
        right = Quantity(Decimal(right), "1")
    elif type(right) is Quantity and type(left) in (int, Decimal):
        left = Quantity(Decimal(left), "1")
    return left, right


def _json_equal(left: Json, right: Json) -> bool:
    if type(left) is dict:
        return (
            type(right) is dict
            and left.keys() == right.keys()
            and all(_json_equal(value, right[key]) for key, value in left.items())
        )
    if type(left) is list:
        return (
            type(right) is list
            and len(left) == len(right)
            and all(_json_equal(one, other) for one, other in zip(left, right, strict=True))
        )
    if type(left) is bool or type(right) is bool or type(left) is str or type(right) is str:
        return type(left) is type(right) and bool(left == right)
    if type(right) in (dict, list) or left is None or right is None:
        return left is right
    return number(left) == number(right)


def item_equal(left: Item, right: Item) -> bool | None:
    """``=`` of two items; None where a shorter date leaves it open."""
    if type(left) is Node and type(right) is Node and left.value is right.value and left.value is not None:
        return True
    left, right = _pair(left, right)
    kind = type(left)
    if kind is Temporal and type(right) is Temporal:
        if (left.kind == "Time") != (right.kind == "Time"):
            return False
        order = compare_temporal(left, right)
        return None if order is None else order == 0
    if kind is Quantity and type(right) is Quantity:
        if (left.calendar or right.calendar) and left.calendar != right.calendar:
            words = {left.duration_unit(), right.duration_unit()}
            if words & {"year", "month"}:
                return None
        values = comparable(left, right)
        return None if values is None else values[0] == values[1]
    if kind is Node:
        return type(right) is Node and _json_equal(left.value, right.value)
    if kind is bool or type(right) is bool:
        return kind is type(right) and bool(left == right)
    if kind in (int, Decimal) and type(right) in (int, Decimal):
        return bool(left == right)
    return kind is type(right) and bool(left == right)


def equal(left: Sequence[Item], right: Sequence[Item]) -> bool | None:
    """``=`` of collections: empty gives None, order counts."""
    if not left or not right:
        return None
    if len(left) != len(right):
        return False
    open_ended = False
    for one, other in zip(left, right, strict=True):
        same = item_equal(one, other)
        if same is False:
            return False
        open_ended = open_ended or same is None
    return None if open_ended else True


def _scale(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def item_equivalent(left: Item, right: Item) -> bool:
    """``~`` of two items: text without case and spacing, decimals to the shorter precision."""
    left, right = _pair(left, right)
    kind = type(left)
    if kind is str and type(right) is str:
        return " ".join(left.casefold().split()) == " ".join(right.casefold().split())
    if kind is Temporal and type(right) is Temporal:
        return len(left.fields) == len(right.fields) and compare_temporal(left, right) == 0
    if kind is Quantity and type(right) is Quantity:
        values = comparable(left, right)
        if values is None and left.duration_unit() and left.duration_unit() == right.duration_unit():
            values = left.value, right.value
        return values is not None and _near(*values)
    if kind is Node and type(right) is Node:
        return _json_equivalent(left.value, right.value)
    if kind in (int, Decimal) and type(right) in (int, Decimal):
        return _near(Decimal(left), Decimal(right))
    return item_equal(left, right) is True


def _near(left: Decimal, right: Decimal) -> bool:
    step = Decimal(1).scaleb(-min(_scale(left), _scale(right)))
    return bool(left.quantize(step) == right.quantize(step))


def _json_equivalent(left: Json, right: Json) -> bool:
    if type(left) is dict and type(right) is dict:
        ours, theirs = left.keys() - {"id"}, right.keys() - {"id"}
        return ours == theirs and all(_json_equivalent(left[key], right[key]) for key in ours)
    if type(left) is list and type(right) is list:
        return equivalent([Node(one, "") for one in left], [Node(one, "") for one in right])
    if type(left) in (dict, list) or type(right) in (dict, list):
        return False
    return item_equivalent(Node(left, ""), Node(right, ""))


def equivalent(left: Sequence[Item], right: Sequence[Item]) -> bool:
    """``~`` of collections: never empty, order does not count."""
    if len(left) != len(right):
        return False
    rest = list(right)
    for one in left:
        for at, other in enumerate(rest):
            if item_equivalent(one, other):
                del rest[at]
                break
        else:
            return False
    return True


def compare(left: Sequence[Item], right: Sequence[Item]) -> int | None:
    """Order of two singletons: -1, 0, 1 or None; FHIRPathError where they have none."""
    one, other = singleton(left), singleton(right)
    if one is None or other is None:
        return None
    one, other = _pair(one, other)
    if one is None or other is None:
        return None
    kinds = (type(one), type(other))
    if kinds == (str, str):
        times = parse_temporal(one), parse_temporal(other)
        if times[0] is not None and times[1] is not None:
            return compare_temporal(times[0], times[1])
    elif kinds == (Temporal, Temporal):
        if (one.kind == "Time") != (other.kind == "Time"):
            raise FHIRPathError(f"FHIRPath: a {one.kind} has no order with a {other.kind}")
        return compare_temporal(one, other)
    elif kinds == (Quantity, Quantity):
        values = comparable(one, other)
        if values is None:
            return None
        one, other = values
    elif not set(kinds) <= {int, Decimal}:
        raise FHIRPathError("FHIRPath: these values have no order between them")
    return (one > other) - (one < other)


def contains(collection: Sequence[Item], items: Sequence[Item]) -> bool | None:
    """``items in collection``; empty item gives None."""
    item = singleton(items)
    if item is None:
        return None
    return any(item_equal(one, item) is True for one in collection)


def distinct(items: Sequence[Item]) -> list[Item]:
    """Items without repeats, the first of each kept."""
    kept: list[Item] = []
    seen: set[str] = set()
    for item in items:
        value = item.value if type(item) is Node else item
        if type(value) is str and (type(item) is not Node or item.type not in _TEMPORAL_TYPES):
            if value not in seen:
                seen.add(value)
                kept.append(item)
        elif not any(item_equal(item, other) is True for other in kept):
            kept.append(item)
    return kept


Arithmetic = Callable[[Decimal, Decimal], Decimal]


def _exact(value: Decimal, one: Item, other: Item) -> Item:
    return int(value) if type(one) is int and type(other) is int and value == int(value) else value


def arithmetic(operator: str, left: Sequence[Item], right: Sequence[Item]) -> list[Item]:
    """``+ - * / div mod &`` of two singletons."""
    if operator == "&":
        return [text_or_empty(left) + text_or_empty(right)]
    one, other = singleton(left), singleton(right)
    if one is None or other is None:
        return []
    one, other = system(one), system(other)
    if type(one) is str and type(other) is str and operator == "+":
        return [one + other]
    if type(other) is Quantity and operator in "+-":
        if type(one) is str:
            one = parse_temporal(one) or one
        if type(one) is Temporal:
            if other.duration_unit() is None or other.unit in ("a", "mo"):
                raise FHIRPathError(f"FHIRPath: {other} is no calendar duration")
            moved = shift(one, other, 1 if operator == "+" else -1)
            return [] if moved is None else [moved]
    if type(one) is Quantity or type(other) is Quantity:
        return _quantity_arithmetic(operator, one, other)
    if type(one) not in (int, Decimal) or type(other) not in (int, Decimal):
        raise FHIRPathError(f"FHIRPath: {operator!r} does not apply to these values")
    try:
        return [_calculate(operator, one, other)]
    except (DivisionByZero, InvalidOperation, ZeroDivisionError, Overflow):
        return []


def _calculate(operator: str, one: Item, other: Item) -> Item:
    left, right = Decimal(one), Decimal(other)
    if operator == "+":
        return _exact(left + right, one, other)
    if operator == "-":
        return _exact(left - right, one, other)
    if operator == "*":
        return _exact(left * right, one, other)
    if operator == "/":
        return left / right
    if operator == "div":
        return int(left / right)
    return _exact(left % right, one, other)


def _quantity_arithmetic(operator: str, one: Item, other: Item) -> list[Item]:
    left = one if type(one) is Quantity else Quantity(number(one), "1") if type(one) in (int, Decimal) else None
    right = (
        other if type(other) is Quantity else Quantity(number(other), "1") if type(other) in (int, Decimal) else None
    )
    if left is None or right is None:
        raise FHIRPathError(f"FHIRPath: {operator!r} does not apply to these values")
    if operator in "+-":
        values = (left.value, right.value) if left.unit == right.unit else None
        if values is None:
            return []
        sum_of = values[0] + values[1] if operator == "+" else values[0] - values[1]
        return [Quantity(sum_of, left.unit, left.calendar)]
    if operator == "*":
        if left.unit != right.unit and "1" not in (left.unit, right.unit):
            values, base = comparable(left, right), canonical_unit(left)
            if values is not None and base is not None:
                return [Quantity(values[0] * values[1], f"{base}2")]
        units = [unit for unit in (left.unit, right.unit) if unit != "1"]
        square = f"{units[0]}2" if len(units) == 2 and units[0] == units[1] else ".".join(units) or "1"
        return [Quantity(left.value * right.value, square)]
    if operator == "/":
        if right.value == 0:
            return []
        if right.unit == "1":
            return [Quantity(left.value / right.value, left.unit)]
        values = comparable(left, right)
        if values is not None:
            return [Quantity(values[0] / values[1], "1")]
        return [Quantity(left.value / right.value, f"{left.unit}/{right.unit}")]
    raise FHIRPathError(f"FHIRPath: {operator!r} does not apply to quantities")


def text_or_empty(items: Sequence[Item]) -> str:
    """The text of a singleton, '' of nothing."""
    item = singleton(items)
    return "" if item is None else as_text(item) or ""


def as_text(item: Item) -> str | None:
    """toString() of one item; None for a complex element."""
    value = system(item)
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is Decimal:
        if type(item) is Node:
            return str(item.value)
        return f"{value:f}"
    if value is None or type(value) is Node:
        return None
    return str(value)
