"""Dates in search: texts to ranges of milliseconds, and the ladder for dates that name a person.

Owns precision, time zones and the cover of a range by years, months and days; refuses clocks: ``now_ms`` is
an argument. A time without a zone is UTC. https://hl7.org/fhir/R4/search.html#date

A birth or death date is kept only as hashes of its decade, year, month and day (and of the precision it
was written to), so that the index does not hold it. A question about it becomes the few rungs that cover
its answer between LADDER_FIRST and LADDER_LAST.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from datetime import date
from typing import Any

from gateway.fhir.query import Comparator, DateFact, holds

MIN_MS = -62_135_596_800_000
"""0001-01-01, the low end of a range that is open there."""
MAX_MS = 253_402_300_800_000
"""10000-01-01, the high end of a range that is open there."""
LADDER_FIRST, LADDER_LAST = 1800, 2199

_DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_LAST_DAY = date.max.toordinal()
_TEXT = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?(?:(Z)|([+\- ])(\d\d):(\d\d))?)?)?)?\Z"
)

Range = tuple[int, int]
"""Half-open, epoch milliseconds UTC."""


def _day_ms(year: int, month: int, day: int) -> int:
    return (date(year, month, day).toordinal() - _EPOCH_DAY) * _DAY_MS


def _month_end_ms(year: int, month: int) -> int:
    return _day_ms(year, month, monthrange(year, month)[1]) + _DAY_MS


def date_range(text: str) -> Range | None:
    """The range a date, dateTime, instant or search value stands for, by its precision; None where it is none."""
    match = _TEXT.match(text)
    if match is None:
        return None
    year_text, month_text, day_text, hour, minute, second, fraction, _, sign, zone_hour, zone_minute = match.groups()
    year = int(year_text)
    try:
        if month_text is None:
            return _day_ms(year, 1, 1), _month_end_ms(year, 12)
        month = int(month_text)
        if day_text is None:
            return _day_ms(year, month, 1), _month_end_ms(year, month)
        low = _day_ms(year, month, int(day_text))
    except ValueError:
        return None
    if hour is None:
        return low, low + _DAY_MS
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if hours > 24 or minutes > 59 or seconds > 60 or (hours == 24 and (minutes or seconds)):
        return None
    low += (hours * 60 + minutes) * 60_000 + seconds * 1000
    if sign is not None:
        offset = (int(zone_hour) * 60 + int(zone_minute)) * 60_000
        low += offset if sign == "-" else -offset  # a '+' that arrived unescaped in a URL is a space
    if second is None:
        return low, low + 60_000
    if fraction is None:
        return low, low + 1000
    low += int(fraction[1:4].ljust(3, "0"))
    return low, low + 10 ** max(0, 4 - len(fraction))


def period_range(period: dict[str, Any]) -> Range | None:
    """The range of a Period; an end that is not given is open. None without any date."""
    start, end = period.get("start"), period.get("end")
    low = date_range(start) if type(start) is str else None
    high = date_range(end) if type(end) is str else None
    if low is None and high is None:
        return None
    return (MIN_MS if low is None else low[0]), (MAX_MS if high is None else high[1])


def timing_range(timing: dict[str, Any]) -> Range | None:
    """The outer limits of a Timing: its events and the bounds of its repetition."""
    events = timing.get("event")
    ranges = [found for one in (events if type(events) is list else ())
              if type(one) is str and (found := date_range(one))]
    repeat = timing.get("repeat")
    bounds = repeat.get("boundsPeriod") if type(repeat) is dict else None
    if type(bounds) is dict and (found := period_range(bounds)) is not None:
        ranges.append(found)
    if not ranges:
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def element_range(value: Any) -> Range | None:
    """The range of any dated element by its shape: text, Period or Timing."""
    if type(value) is str:
        return date_range(value)
    if type(value) is not dict:
        return None
    return period_range(value) if "start" in value or "end" in value else timing_range(value)


def around(low_ms: int, high_ms: int, now_ms: int) -> Range:
    """``ap``: widened by a tenth of the distance to now (R4 3.1.1.4.5)."""
    slack = abs(now_ms - low_ms) // 10
    return low_ms - slack, high_ms + slack


def ladder_texts(text: str) -> tuple[str, ...]:
    """The rungs of a date: decade, year, month, day; capitals say that it was written no finer."""
    written = text[:10]
    if date_range(written) is None:
        return ()
    if len(written) == 4:
        return "t" + written[:3], "y" + written, "Y" + written
    if len(written) == 7:
        return "t" + written[:3], "y" + written[:4], "m" + written, "M" + written
    return "t" + written[:3], "y" + written[:4], "m" + written[:7], "d" + written


def ladder_cover(comparator: Comparator, low_ms: int, high_ms: int) -> list[str]:
    """The rungs that together hold exactly the dates of which the comparison is true."""
    if comparator == "eq":
        return _equal(low_ms, high_ms)
    rungs: list[str] = []
    for decade in range(LADDER_FIRST // 10, LADDER_LAST // 10 + 1):
        first, last = _day_ms(decade * 10, 1, 1), _month_end_ms(decade * 10 + 9, 12)
        answer = _whole(comparator, first, last, low_ms, high_ms)
        if answer is True:
            rungs.append(f"t{decade:03}")
        elif answer is None:
            for year in range(decade * 10, decade * 10 + 10):
                rungs.extend(_year(comparator, year, low_ms, high_ms))
    return rungs


def _equal(low_ms: int, high_ms: int) -> list[str]:
    """``eq`` asks for what lies inside one year, month or day: no clipping is needed."""
    start = date.fromordinal(min(max(1, low_ms // _DAY_MS + _EPOCH_DAY), _LAST_DAY))
    if (low_ms, high_ms) == date_range(f"{start.year:04}"):
        return [f"y{start.year:04}"]
    for size, rung in ((7, "m"), (10, "d")):
        written = start.isoformat()[:size]
        if (low_ms, high_ms) == date_range(written):
            return [rung + written]
    return []


def _whole(comparator: Comparator, first: int, last: int, low_ms: int, high_ms: int) -> bool | None:
    """The answer for every date within [first, last), None where they differ or may differ."""
    if first >= high_ms:
        return comparator in ("ne", "gt", "ge", "sa")
    if last <= low_ms:
        return comparator in ("ne", "lt", "le", "eb")
    if first >= low_ms and last <= high_ms:
        return comparator in ("eq", "ge", "le", "ap")
    return None


def _year(comparator: Comparator, year: int, low_ms: int, high_ms: int) -> Iterator[str]:
    first, last = _day_ms(year, 1, 1), _month_end_ms(year, 12)
    answer = _whole(comparator, first, last, low_ms, high_ms)
    if answer is True:
        yield f"y{year:04}"
    if answer is not None:
        return
    if holds(comparator, first, last, low_ms, high_ms):
        yield f"Y{year:04}"
    for month in range(1, 13):
        yield from _month(comparator, year, month, low_ms, high_ms)


def _month(comparator: Comparator, year: int, month: int, low_ms: int, high_ms: int) -> Iterator[str]:
    first, last = _day_ms(year, month, 1), _month_end_ms(year, month)
    answer = _whole(comparator, first, last, low_ms, high_ms)
    if answer is True:
        yield f"m{year:04}-{month:02}"
    if answer is not None:
        return
    if holds(comparator, first, last, low_ms, high_ms):
        yield f"M{year:04}-{month:02}"
    for start in range(first, last, _DAY_MS):
        if holds(comparator, start, start + _DAY_MS, low_ms, high_ms):
            yield f"d{year:04}-{month:02}-{(start - first) // _DAY_MS + 1:02}"


def date_fact(key: str, found: Range) -> DateFact:
    """The fact of a range."""
    return DateFact(key, *found)
