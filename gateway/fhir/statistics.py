"""Observations as numbers: the newest of each kind, and statistics over a set of values.

Owns which observations are of one kind, which of their values can be counted, and the statistics of HL7's code system;
refuses to mix units. Decimals are computed as decimals. https://hl7.org/fhir/R4/observation-operation-stats.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException, localcontext
from types import MappingProxyType
from typing import Any

from gateway.fhir.resource import DECIMAL, Resource

SYSTEM = "http://terminology.hl7.org/CodeSystem/observation-statistics"
_MAGNITUDE_MAX = 300
"""Exponents beyond it are taken for no valid result."""
_DIGITS = 17
Kind = frozenset[str]


def kind_of(concept: Any) -> Kind:
    """The codings of a code as ``system|code``; its text where it has none. Two codes that share one are one kind."""
    if not isinstance(concept, dict):
        return frozenset()
    codings = [one for one in concept.get("coding") or () if isinstance(one, dict) and isinstance(one.get("code"), str)]
    if codings:
        return frozenset(f"{one.get('system', '')}|{one['code']}" for one in codings)
    text = concept.get("text")
    return frozenset({f"text|{text.casefold()}"}) if isinstance(text, str) else frozenset()


def newest(kinds: Sequence[Kind], most: int) -> list[int]:
    """The places of the first ``most`` of each kind, in order; ``kinds`` are those of observations, newest first.

    Kinds that share a code are one, also through a third: LOINC and a local code for the same thing.
    """
    leader: dict[str, str] = {}

    def find(code: str) -> str:
        while leader.setdefault(code, code) != code:
            leader[code] = leader[leader[code]]
            code = leader[code]
        return code

    for kind in kinds:
        codes = iter(sorted(kind))
        first = next(codes, None)
        for code in codes:
            leader[find(code)] = find(str(first))
    counted: Counter[str] = Counter()
    taken = []
    for place, kind in enumerate(kinds):
        group = find(min(kind)) if kind else ""
        counted[group] += 1
        if counted[group] <= most:
            taken.append(place)
    return taken


@dataclass(frozen=True, slots=True)
class Amount:
    """One value with its unit: ``(system, code or unit)``."""

    value: Decimal
    unit: tuple[str, str]


def amounts(observation: Resource, wanted: Kind) -> Iterator[Amount | None]:
    """The values of ``observation`` for the code ``wanted``, its own and its components'; None for one without a
    number that can be counted."""
    for part in (observation, *(observation.get("component") or ())):
        if isinstance(part, dict) and kind_of(part.get("code")) & wanted:
            yield _amount(part)


def _amount(part: Mapping[str, Any]) -> Amount | None:
    quantity = part.get("valueQuantity")
    number: Any = part.get("valueInteger")
    unit = ("", "")
    if isinstance(quantity, dict) and "comparator" not in quantity:
        number = quantity.get("value")
        unit = (str(quantity.get("system", "")), str(quantity.get("code") or quantity.get("unit") or ""))
    if type(number) is int or type(number) is DECIMAL:
        value = Decimal(str(number))
        if abs(value.adjusted()) <= _MAGNITUDE_MAX:
            return Amount(value, unit)
    return None


def _percentile(values: Sequence[Decimal], part: Decimal) -> Decimal:
    """Linear between the two nearest of the sorted values."""
    place = (len(values) - 1) * part
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def _mean(values: Sequence[Decimal]) -> Decimal:
    return sum(values, Decimal(0)) / len(values)


def _moment(values: Sequence[Decimal], power: int) -> Decimal:
    mean = _mean(values)
    return sum(((value - mean) ** power for value in values), Decimal(0))


def _variance(values: Sequence[Decimal]) -> Decimal:
    """Of a sample: over N - 1."""
    return _moment(values, 2) / (len(values) - 1)


def _standardised(values: Sequence[Decimal], power: int) -> Decimal:
    count = len(values)
    return (_moment(values, power) / count) / (_moment(values, 2) / count).sqrt() ** power


def _cut(part: str) -> Callable[[Sequence[Decimal]], Decimal]:
    return lambda values: _percentile(values, Decimal(part))


_OF_SORTED: Mapping[str, Callable[[Sequence[Decimal]], Decimal]] = MappingProxyType({
    "average": _mean, "maximum": lambda values: values[-1], "minimum": lambda values: values[0],
    "median": _cut("0.5"), "std-dev": lambda values: _variance(values).sqrt(),
    "sum": lambda values: sum(values, Decimal(0)), "variance": _variance, "20-percent": _cut("0.2"),
    "80-percent": _cut("0.8"), "4-lower": _cut("0.25"), "4-upper": _cut("0.75"),
    "4-dev": lambda values: (_percentile(values, Decimal("0.75")) - _percentile(values, Decimal("0.25"))) / 2,
    "5-1": _cut("0.2"), "5-2": _cut("0.4"), "5-3": _cut("0.6"), "5-4": _cut("0.8"),
    "skew": lambda values: _standardised(values, 3), "kurtosis": lambda values: _standardised(values, 4)})
_DIMENSIONLESS = frozenset({"skew", "kurtosis"})
COUNTS = frozenset({"count", "total-count"})
OFFERED = frozenset(_OF_SORTED) | COUNTS
"""Every code of the system but ``regression``, whose two results have no place in one component."""


def statistic(code: str, values: Iterable[Decimal]) -> Decimal | None:
    """One statistic but the counts; None where these values have none (no value, or a spread of one)."""
    ordered = sorted(values)
    if not ordered:
        return None
    with localcontext(Context(prec=50)):
        try:
            return _OF_SORTED[code](ordered)
        except (DecimalException, ZeroDivisionError):
            return None


def decimal_text(value: Decimal) -> str:
    """As FHIR writes a decimal, at most 17 digits."""
    if value == value.to_integral_value() and abs(value) < Decimal(10) ** _DIGITS:
        return str(int(value))
    rounded = Context(prec=_DIGITS).plus(value)
    return str(rounded.normalize(Context(prec=_DIGITS))).replace("E+", "E")


def component(code: str, value: Decimal | int | None, unit: tuple[str, str]) -> dict[str, Any]:
    """One statistic as a component of the Observation that ``$stats`` gives."""
    found: dict[str, Any] = {"code": {"coding": [{"system": SYSTEM, "code": code}]}}
    if value is None:
        found["dataAbsentReason"] = {"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "not-applicable"}]}
        return found
    quantity: dict[str, Any] = {
        "value": value if isinstance(value, int) else DECIMAL(decimal_text(value).encode())}
    system, name = unit
    if code in COUNTS or code in _DIMENSIONLESS:
        quantity |= {"unit": "1", "system": "http://unitsofmeasure.org", "code": "1"}
    elif name:
        quantity |= {"unit": name, **({"system": system, "code": name} if system else {})}
    found["valueQuantity"] = quantity
    return found
