"""FHIR dates and Periods as half-open ranges of epoch milliseconds.

Owns how a partial date spreads (``2024`` is the whole year) and what an open end means; refuses text that is no
date. A date without zone is read as UTC. https://hl7.org/fhir/R4/datatypes.html#Period
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

MIN_MS = -62_135_596_800_000
"""The start of year 1: an open start."""
MAX_MS = 253_402_300_800_000
"""The end of year 9999: an open end."""

Range = tuple[int, int]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII)


def date_range(text: str) -> Range:
    """``[low_ms, high_ms)`` of a date, dateTime or instant. Raises ValueError."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("not a FHIR date")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    if month is None:
        return _ms(datetime(int(year), 1, 1, tzinfo=UTC)), _year_start(int(year) + 1)
    if day is None:
        low = datetime(int(year), int(month), 1, tzinfo=UTC)
        high = _year_start(int(year) + 1) if int(month) == 12 else _ms(low.replace(month=int(month) + 1))
        return _ms(low), high
    low = datetime(int(year), int(month), int(day), tzinfo=UTC)
    if hour is None:
        return _ms(low), _ms(low) + 86_400_000
    seconds = int(second or 0)
    clock = datetime(int(year), int(month), int(day), int(hour), int(minute), min(seconds, 59), tzinfo=_zone(zone))
    start = _ms(clock) + 1000 * (seconds - min(seconds, 59))
    if second is None:
        return start, start + 60_000
    if fraction is None:
        return start, start + 1000
    scale = 10 ** min(len(fraction), 3)
    return (start + int(fraction[:3]) * 1000 // scale, start + int(fraction[:3]) * 1000 // scale + 1000 // scale)


def _zone(text: str | None) -> timezone:
    if text is None or text == "Z":
        return UTC
    return timezone((1 if text[0] == "+" else -1) * timedelta(hours=int(text[1:3]), minutes=int(text[4:])))


def _year_start(year: int) -> int:
    return MAX_MS if year > 9999 else _ms(datetime(year, 1, 1, tzinfo=UTC))


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def period_range(period: Mapping[str, Any]) -> Range:
    """``[low_ms, high_ms)`` of a Period, its end inclusive as FHIR has it. Raises ValueError."""
    start, end = period.get("start"), period.get("end")
    low = date_range(start)[0] if start is not None else MIN_MS
    high = date_range(end)[1] if end is not None else MAX_MS
    if low >= high:
        raise ValueError("the period ends before it starts")
    return low, high


def instant_text(ms: int) -> str:
    """A moment as people and FHIR both read it, in UTC, milliseconds only where there are any."""
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + (f".{ms % 1000:03d}Z" if ms % 1000 else "Z")
