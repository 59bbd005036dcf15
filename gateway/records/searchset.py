"""The searchset Bundle as bytes: stored bytes are spliced in, not written again.

Owns the Bundle's links, total and modes; refuses nothing. https://hl7.org/fhir/R4/bundle.html#searchset
"""

from __future__ import annotations

from collections.abc import Sequence
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
    root = base.encode()
    entries = [b'{"fullUrl":"%s/%s","resource":%s,"search":{"mode":"match"}}' % (root, place.encode(), stored)
               for place, stored in matches]
    entries += [b'{"fullUrl":"%s/%s","resource":%s,"search":{"mode":"include"}}' % (root, place.encode(), stored)
                for place, stored in included]
    if issues:
        entries.append(b'{"resource":%s,"search":{"mode":"outcome"}}' % operation_outcome(tuple(issues)))
    body = orjson.dumps(head)
    return b'%s,"entry":[%s]}' % (body[:-1], b",".join(entries)) if entries else body


def _url(base: str, path: str) -> str:
    return f"{base}/{path}" if path else base
