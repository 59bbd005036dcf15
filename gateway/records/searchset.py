"""The searchset Bundle as bytes: stored bytes are spliced in, not written again.

Owns the Bundle's links, total and modes; refuses nothing. https://hl7.org/fhir/R4/bundle.html#searchset
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

import orjson

from gateway.errors import Issue
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import format_instant
from gateway.store.sql import now_ms


def self_link(base: str, path: str, used: Sequence[tuple[str, str]]) -> str:
    """The URL that says what was really used."""
    asked = urlencode(used, quote_via=quote, safe="|:,$/*")
    return f"{_url(base, path)}?{asked}".rstrip("?")


def page_link(base: str, path: str, token: str) -> str:
    """The URL of a page."""
    return f"{_url(base, path)}?_page={token}"


def searchset(base: str, links: Sequence[tuple[str, str]], matches: Sequence[tuple[str, bytes]],
              included: Sequence[tuple[str, bytes]], issues: Sequence[Issue], *, total: int | None) -> bytes:
    """The Bundle; ``links`` are (relation, url), resources are ("Type/id", JSON)."""
    head: dict[str, object] = {"resourceType": "Bundle", "type": "searchset", "meta": {
        "lastUpdated": format_instant(now_ms())}}
    if total is not None:
        head["total"] = total
    head["link"] = [{"relation": relation, "url": url} for relation, url in links]
    entries = [(place, stored, b'{"mode":"match"}') for place, stored in matches]
    entries += [(place, stored, b'{"mode":"include"}') for place, stored in included]
    if issues:
        entries.append(("", operation_outcome(tuple(issues)), b'{"mode":"outcome"}'))
    return spliced(base, head, entries)


def spliced(base: str, head: Mapping[str, object], entries: Iterable[tuple[str, bytes, bytes]]) -> bytes:
    """A Bundle of (its place below the base or none, JSON, the JSON of its ``search``): all is copied once, for a page
    may hold many megabytes, and the event loop waits for the copy."""
    parts, before = [orjson.dumps(head)[:-1]], b',"entry":[{'
    for place, stored, search in entries:
        parts += (before, f'"fullUrl":"{base}/{place}",'.encode() if place else b"", b'"resource":', stored,
                  b',"search":', search)
        before = b"},{"
    parts.append(b"}" if len(parts) == 1 else b"}]}")
    return b"".join(parts)


def _url(base: str, path: str) -> str:
    return f"{base}/{path}" if path else base
