"""``Prefer`` and the conditions of a read: how much of an answer a client wants.

Owns ``return`` of writes, Preference-Applied, If-None-Match and If-Modified-Since; ignores preferences it does not
know, as RFC 7240 asks. https://hl7.org/fhir/R4/http.html#ops https://hl7.org/fhir/R4/http.html#cread
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime

from gateway.errors import Issue
from gateway.fhir.outcome import operation_outcome
from gateway.records.answer import Answer

_DONE = {200: "done", 201: "created", 204: "deleted"}


def as_preferred(answer: Answer, wanted: str | None) -> Answer:
    """A write's answer as ``return`` wants it."""
    if answer.status not in _DONE or wanted not in ("minimal", "representation", "OperationOutcome"):
        return answer
    headers = {**answer.headers, "Preference-Applied": f"return={wanted}"}
    if wanted == "minimal":
        return replace(answer, body=b"", headers=headers)
    if wanted == "OperationOutcome":
        issue = Issue("information", "informational", _DONE[answer.status])
        return replace(answer, status=200 if answer.status == 204 else answer.status, headers=headers,
                       body=operation_outcome((issue,)), is_outcome=True)
    return replace(answer, headers=headers) if answer.body else answer


def unless_known(answer: Answer, headers: Mapping[str, str]) -> Answer:
    """304 where the client has what was read. If-None-Match goes before If-Modified-Since (RFC 9110 13.2.2)."""
    known = headers.get("if-none-match")
    if known is not None:
        tags = {part.strip().removeprefix("W/") for part in known.split(",")}
        held = "*" in tags or answer.headers.get("ETag", "").removeprefix("W/") in tags
    else:
        held = _unmodified(headers.get("if-modified-since"), answer.updated_ms)
    return replace(answer, status=304, body=b"") if held else answer


def _unmodified(since: str | None, updated_ms: int | None) -> bool:
    if since is None or updated_ms is None:
        return False
    try:
        moment_s = parsedate_to_datetime(since).timestamp()
    except (ValueError, OverflowError):
        return False
    return updated_ms // 1000 <= moment_s
