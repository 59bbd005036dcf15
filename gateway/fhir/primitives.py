"""The R4 primitive types: which JSON value each takes, by HL7's regular expressions and the real calendar.

Owns one check per primitive: ``None`` for a valid value, else why not, without repeating the value (it may be a
birth date). Refuses coercion: "1" is no integer, 1 no string. https://hl7.org/fhir/R4/datatypes.html#primitive
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gateway.fhir.resource import DECIMAL
from gateway.fhir.xhtml import narrative_problem

Check = Callable[[Any], str | None]

MAX_STRING = 1024 * 1024

_YEAR = r"(?!0000)(\d{4})"
_DAY = r"-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
_ZONE = r"(?:Z|[+-](?:(?:0\d|1[0-3]):[0-5]\d|14:00))"
_FLAGS = re.ASCII

_DATE = re.compile(rf"{_YEAR}(?:{_DAY}|-(?:0[1-9]|1[0-2]))?", _FLAGS)
_DATE_TIME = re.compile(rf"{_YEAR}(?:{_DAY}(?:T{_TIME}{_ZONE})?|-(?:0[1-9]|1[0-2]))?", _FLAGS)
_INSTANT = re.compile(rf"{_YEAR}{_DAY}T{_TIME}{_ZONE}", _FLAGS)
_CLOCK = re.compile(_TIME, _FLAGS)
# R4's own expressions let control characters pass, which 2.24.0.1 then keeps out of all strings.
_CODE = re.compile(r"[^\s\x00-\x1f]+(\s[^\s\x00-\x1f]+)*")
_NO_SPACE = re.compile(r"[^\s\x00-\x1f]+")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_OID = re.compile(r"urn:oid:[0-2](\.(0|[1-9][0-9]*))+")
_UUID = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_LARGEST = 2**31 - 1


def _calendar(match: re.Match[str]) -> str | None:
    day = match[3]
    if day is None or day <= "28":
        return None
    year, month = int(match[1]), int(match[2])
    days = _DAYS[month - 1]
    if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        days = 29
    return None if int(day) <= days else "no such day in the calendar"


def _dated(pattern: re.Pattern[str], what: str) -> Check:
    fullmatch = pattern.fullmatch
    problem = f"not {what}"

    def check(value: Any) -> str | None:
        if type(value) is not str:
            return "must be a JSON string"
        match = fullmatch(value)
        return problem if match is None else _calendar(match)
    return check


def _matching(pattern: re.Pattern[str], what: str) -> Check:
    fullmatch = pattern.fullmatch
    problem = f"not {what}"

    def check(value: Any) -> str | None:
        if type(value) is not str:
            return "must be a JSON string"
        return problem if fullmatch(value) is None else None
    return check


def _string(value: Any) -> str | None:
    if type(value) is not str:
        return "must be a JSON string"
    if not value:
        return "must not be empty"
    if len(value) > MAX_STRING:
        return "longer than 1 MB"
    if not value.isprintable() and _CONTROL.search(value):
        return "holds a control character other than tab, line feed and carriage return"
    return None


def _boolean(value: Any) -> str | None:
    return None if type(value) is bool else "must be true or false"


def _whole(lowest: int, what: str) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is not int:
            return f"must be a JSON number without fraction or exponent, {what}"
        return None if lowest <= value <= _LARGEST else f"out of range: {what}"
    return check


def _decimal(value: Any) -> str | None:
    # The JSON grammar is the R4 regular expression; what the parser let through is a decimal.
    return None if type(value) is int or type(value) is DECIMAL else "must be a JSON number"


def _base64(value: Any) -> str | None:
    if type(value) is not str:
        return "must be a JSON string"
    # R4's own expression backtracks without end on white space; this is the same language in one pass.
    packed = "".join(value.split())
    if not packed:
        return "must not be empty"
    return None if len(packed) % 4 == 0 and _BASE64.fullmatch(packed) else "not base64"


PRIMITIVES: Mapping[str, Check] = MappingProxyType({
    "base64Binary": _base64,
    "boolean": _boolean,
    "canonical": _matching(_NO_SPACE, "a canonical URL: empty, with white space or control characters"),
    "code": _matching(_CODE, "a code: empty, control characters, or white space at an end or doubled"),
    "date": _dated(_DATE, "a date: YYYY, YYYY-MM or YYYY-MM-DD"),
    "dateTime": _dated(_DATE_TIME, "a dateTime: YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss+zz:zz"),
    "decimal": _decimal,
    "id": _matching(_ID, "an id: 1 to 64 of A-Z a-z 0-9 - ."),
    "instant": _dated(_INSTANT, "an instant: YYYY-MM-DDThh:mm:ss.sss+zz:zz"),
    "integer": _whole(-_LARGEST - 1, "-2147483648 to 2147483647"),
    "markdown": _string,
    "oid": _matching(_OID, "an OID as urn:oid:"),
    "positiveInt": _whole(1, "1 to 2147483647"),
    "string": _string,
    "time": _matching(_CLOCK, "a time: hh:mm:ss"),
    "unsignedInt": _whole(0, "0 to 2147483647"),
    "uri": _matching(_NO_SPACE, "a URI: empty, with white space or control characters"),
    "url": _matching(_NO_SPACE, "a URL: empty, with white space or control characters"),
    "uuid": _matching(_UUID, "a UUID as urn:uuid: in lower case"),
    "xhtml": narrative_problem,
})
"""Type name -> check, for every primitive of R4."""
