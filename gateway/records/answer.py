"""What an interaction answers, before any door renders it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from time import gmtime
from typing import Final

import orjson

from gateway.fhir.resource import format_instant

FHIR_JSON = "application/fhir+json; charset=utf-8"
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, exact body bytes and headers; ``media_type`` says what the bytes are, where there are any.

    ``stream`` gives the bytes where there are too many to hold; ``updated_ms`` is the Last-Modified of what was read or
    written; ``is_outcome``: the body only tells how it went.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = FHIR_JSON
    updated_ms: int | None = None
    is_outcome: bool = False
    stream: AsyncIterator[bytes] | None = None

    @property
    def last_modified(self) -> str | None:
        """The HTTP date of ``updated_ms``."""
        return None if self.updated_ms is None else _http_date(self.updated_ms // 1000)

    @property
    def instant(self) -> str | None:
        """The FHIR instant of ``updated_ms``."""
        return None if self.updated_ms is None else format_instant(self.updated_ms)


def _http_date(seconds: int) -> str:
    """RFC 9110 section 5.6.7."""
    year, month, day, hour, minute, second, weekday, _, _ = gmtime(seconds)
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


def version_answer(status: int, stored: bytes, vid: int, updated_ms: int, *, location: str | None = None) -> Answer:
    """A version's bytes with its ETag, and its Location where it was just written."""
    headers = {"ETag": f'W/"{vid}"'}
    if location is not None:
        headers["Location"] = location
    return Answer(status, stored, headers, updated_ms=updated_ms)


def response_entry(answer: Answer) -> bytes:
    """The answer as one entry of a response Bundle. https://hl7.org/fhir/R4/http.html#transaction-response"""
    response: dict[str, object] = {"status": f"{answer.status} {HTTPStatus(answer.status).phrase}"}
    for name, header in (("location", "Location"), ("etag", "ETag")):
        if header in answer.headers:
            response[name] = answer.headers[header]
    if answer.instant is not None:
        response["lastModified"] = answer.instant
    entry: dict[str, object] = {"response": response}
    if answer.body and answer.status < 300 and not answer.is_outcome:
        entry = {"resource": orjson.Fragment(answer.body), **entry}
    elif answer.body:
        response["outcome"] = orjson.Fragment(answer.body)
    return orjson.dumps(entry)
