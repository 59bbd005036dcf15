"""The System values of FHIRPath that Python lacks: partial dates and times, quantities.

Owns their parsing, comparison and arithmetic; refuses rounding. A comparison whose answer hangs on
digits that are not written gives None (empty). http://hl7.org/fhirpath/N1/#datetime
"""

from __future__ import annotations

import calendar as _calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal as OneOf

Kind = OneOf["Date", "DateTime", "Time"]

_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?"
    r"(T(?:(\d\d)(?::(\d\d)(?::(\d\d)(\.\d+)?)?)?(Z|[+-]\d\d:\d\d)?)?)?\Z"
)
_TIME = re.compile(r"T?(\d\d)(?::(\d\d)(?::(\d\d)(\.\d+)?)?)?\Z")


@dataclass(frozen=True, slots=True)
class Temporal:
    """A date, dateTime or time to the precision written.

    ``fields`` is year, month, day, hour, minute, second as far as written (a Time starts at hour);
    seconds carry their fraction. ``offset_min`` is the zone in minutes, None when none is written.
    """

    kind: Kind
    fields: tuple[int | Decimal, ...]
    offset_min: int | None
    text: str

    def __str__(self) -> str:
        return self.text


def _zone(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "Z":
        return 0
    minutes = int(text[1:3]) * 60 + int(text[4:6])
    return -minutes if text[0] == "-" else minutes


def parse_temporal(text: str, *, literal: bool = False) -> Temporal | None:
    """A Temporal of FHIR or FHIRPath text, or None. ``literal`` text starts a time with ``T``."""
    match = _DATE.match(text)
    if match is not None:
        year, month, day, clock, hour, minute, second, fraction, zone = match.groups()
        fields: list[int | Decimal] = [int(part) for part in (year, month, day) if part is not None]
        if month is not None and not 1 <= int(month) <= 12:
            return None
        if day is not None and not 1 <= int(day) <= _calendar.monthrange(max(int(year), 1), int(month))[1]:
            return None
        if hour is not None:
            if day is None or int(hour) > 23:
                return None
            fields.append(int(hour))
            if not _clock(fields, minute, second, fraction):
                return None
        return Temporal("Date" if clock is None else "DateTime", tuple(fields), _zone(zone), text)
    match = _TIME.match(text)
    if match is not None and text.startswith("T") == literal:
        hour, minute, second, fraction = match.groups()
        if int(hour) > 23:
            return None
        fields = [int(hour)]
        if _clock(fields, minute, second, fraction):
            return Temporal("Time", tuple(fields), None, text.removeprefix("T"))
    return None


def _clock(fields: list[int | Decimal], minute: str | None, second: str | None, fraction: str | None) -> bool:
    if minute is not None:
        if int(minute) > 59:
            return False
        fields.append(int(minute))
    if second is not None:
        if int(second) > 60:
            return False
        fields.append(Decimal(second + (fraction or "")))
    return True


def of_instant(now: datetime, *, day_only: bool) -> Temporal:
    """``now()`` or ``today()`` of the moment given."""
    if day_only:
        return Temporal("Date", (now.year, now.month, now.day), None, now.date().isoformat())
    text = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found = parse_temporal(text)
    assert found is not None  # noqa: S101 - isoformat always gives what the pattern takes
    return found


def _utc_fields(value: Temporal) -> tuple[int | Decimal, ...]:
    """Fields moved to UTC; only for values with a zone and at least minutes."""
    year, month, day, hour, *rest = value.fields
    minute = rest[0] if rest else 0
    moment = datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=UTC)
    try:
        moment -= timedelta(minutes=value.offset_min or 0)
    except OverflowError:
        return value.fields
    moved: tuple[int | Decimal, ...] = (moment.year, moment.month, moment.day, moment.hour, moment.minute)
    return moved[: len(value.fields)] + tuple(rest[1:])


def compare_temporal(left: Temporal, right: Temporal) -> int | None:
    """-1, 0, 1, or None where the shorter value leaves it open."""
    if (left.kind == "Time") != (right.kind == "Time"):
        return None
    ours, theirs = left.fields, right.fields
    if left.kind != "Time" and len(ours) > 3 and len(theirs) > 3:
        if (left.offset_min is None) != (right.offset_min is None):
            return _compare_across_zones(left, right)
        if left.offset_min is not None and left.offset_min != right.offset_min:
            ours, theirs = _utc_fields(left), _utc_fields(right)
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return -1 if one < other else 1
    return 0 if len(ours) == len(theirs) else None


def _compare_across_zones(left: Temporal, right: Temporal) -> int | None:
    """One value has no zone: decided only when no zone on earth could change the answer."""
    zoneless = left if left.offset_min is None else right
    low = Temporal("DateTime", zoneless.fields, 14 * 60, zoneless.text)
    high = Temporal("DateTime", zoneless.fields, -12 * 60, zoneless.text)
    if zoneless is left:
        first, last = compare_temporal(low, right), compare_temporal(high, right)
    else:
        first, last = compare_temporal(left, low), compare_temporal(left, high)
    return first if first == last else None


_SECONDS = {
    "week": Decimal(604800), "day": Decimal(86400), "hour": Decimal(3600), "minute": Decimal(60),
    "second": Decimal(1), "millisecond": Decimal("0.001"),
}
_UCUM_TIME = {
    "a": "year", "mo": "month", "wk": "week", "d": "day", "h": "hour", "min": "minute", "s": "second",
    "ms": "millisecond",
}
CALENDAR_UNITS = frozenset({"year", "month", *_SECONDS})


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a UCUM unit, or a calendar duration (``calendar``)."""

    value: Decimal
    unit: str
    calendar: bool = False

    def __str__(self) -> str:
        return f"{self.value} {self.unit}" if self.calendar else f"{self.value} '{self.unit}'"

    def duration_unit(self) -> str | None:
        """The calendar word of this unit, or None when it does not measure time."""
        if self.unit.removesuffix("s") in CALENDAR_UNITS:
            return self.unit.removesuffix("s")
        return _UCUM_TIME.get(self.unit)


def comparable(left: Quantity, right: Quantity) -> tuple[Decimal, Decimal] | None:
    """Both values in one unit, or None. Time units, mass and length with metric prefixes convert."""
    if left.unit == right.unit:
        return left.value, right.value
    one, other = _canonical(left), _canonical(right)
    if one is None or other is None or one[1] != other[1]:
        return None
    return one[0], other[0]


def canonical_unit(quantity: Quantity) -> str | None:
    """The unit ``comparable`` converts to, None where it converts nothing."""
    found = _canonical(quantity)
    return None if found is None else found[1]


_METRIC = {
    "k": Decimal(1000), "h": Decimal(100), "da": Decimal(10), "d": Decimal("0.1"), "c": Decimal("0.01"),
    "m": Decimal("0.001"), "u": Decimal("0.000001"), "n": Decimal("0.000000001"), "": Decimal(1),
}
_BASES = ("mol", "g", "m", "L", "l")


def _canonical(quantity: Quantity) -> tuple[Decimal, str] | None:
    duration = quantity.duration_unit()
    if duration in _SECONDS:
        return quantity.value * _SECONDS[duration], "s"
    if duration is not None:
        return quantity.value * (12 if duration == "year" else 1), "mo"
    if quantity.unit == "[lb_av]":
        return quantity.value * Decimal("453.59237"), "g"
    if quantity.unit == "[in_i]":
        return quantity.value * Decimal("0.0254"), "m"
    for base in _BASES:
        factor = _METRIC.get(quantity.unit.removesuffix(base)) if quantity.unit.endswith(base) else None
        if factor is not None:
            return quantity.value * factor, base.upper() if base == "l" else base
    return None


def shift(value: Temporal, amount: Quantity, sign: int) -> Temporal | None:
    """``value`` plus or minus a duration, at the precision of ``value``; None for a unit that is not time."""
    unit = amount.duration_unit()
    if unit is None:
        return None
    count = amount.value * sign
    if unit not in ("second", "millisecond"):
        count = Decimal(int(count))
    fields = list(value.fields)
    if value.kind == "Time":
        return _shift_time(value, unit, count)
    if unit in ("year", "month"):
        months = int(count) * (12 if unit == "year" else 1)
        total = int(fields[0]) * 12 + (int(fields[1]) - 1 if len(fields) > 1 else 0)
        total += months if len(fields) > 1 else (months // 12 if months >= 0 else -(-months // 12)) * 12
        year, month = divmod(total, 12)
        if not 1 <= year <= 9999:
            return None
        fields[0] = year
        if len(fields) > 1:
            fields[1] = month + 1
        if len(fields) > 2:
            fields[2] = min(int(fields[2]), _calendar.monthrange(year, month + 1)[1])
        return written(value, tuple(fields))
    if len(fields) < 3:
        days = int(count * _SECONDS[unit] / 86400)
        whole = days // 30 if len(fields) == 2 else days // 365
        return shift(value, Quantity(Decimal(whole), "month" if len(fields) == 2 else "year"), 1)
    second = Decimal(fields[5]) if len(fields) > 5 else Decimal(0)
    try:
        year, month, day, hour, minute = (int(part) for part in [*fields[:5], 0, 0][:5])
        moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
        step = count * _SECONDS[unit]
        if len(fields) == 3:
            step = Decimal(int(step / 86400)) * 86400
        total_second = second + step
        whole_s = int(total_second // 1)
        moment += timedelta(seconds=whole_s - whole_s % 60)
    except OverflowError:
        return None
    left_over = total_second - (whole_s - whole_s % 60)
    moved: tuple[int | Decimal, ...] = (
        moment.year, moment.month, moment.day, moment.hour, moment.minute, left_over,
    )
    return written(value, moved[: len(fields)])


def _shift_time(value: Temporal, unit: str, count: Decimal) -> Temporal | None:
    if unit not in _SECONDS:
        return None
    parts = [Decimal(part) for part in value.fields] + [Decimal(0)] * (3 - len(value.fields))
    total = (parts[0] * 3600 + parts[1] * 60 + parts[2] + count * _SECONDS[unit]) % 86400
    if total < 0:
        total += 86400
    moved: tuple[int | Decimal, ...] = (int(total // 3600), int(total % 3600 // 60), total % 60)
    return written(value, moved[: len(value.fields)])


def written(like: Temporal, fields: tuple[int | Decimal, ...]) -> Temporal:
    """``fields`` as a Temporal of the kind and zone of ``like``."""
    date = [] if like.kind == "Time" else [f"{int(fields[0]):04}", *(f"{int(part):02}" for part in fields[1:3])]
    clock = fields if like.kind == "Time" else fields[3:]
    parts = [f"{int(part):02}" for part in clock[:2]]
    if len(clock) > 2:
        whole, _, fraction = f"{Decimal(clock[2]):f}".partition(".")
        parts.append(f"{int(whole):02}" + (f".{fraction}" if fraction else ""))
    text = "-".join(date)
    if like.kind == "DateTime":
        text += "T"
    text += ":".join(parts)
    if like.offset_min is not None:
        zone = re.search(r"(Z|[+-]\d\d:\d\d)\Z", like.text)
        text += zone.group() if zone else ""
    return Temporal(like.kind, fields, like.offset_min, text)
