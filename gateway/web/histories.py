"""The history interactions: of an instance, a type, the whole system.

Owns their parameters, pages and Bundle; refuses a page link that was altered or given to someone else.
https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

import orjson

from gateway.access.period import date_range
from gateway.errors import BadSearch
from gateway.fhir.resource import format_instant
from gateway.fhir.search_results import Results
from gateway.records import aside, history
from gateway.records.answer import Answer
from gateway.records.history import Page
from gateway.records.paging import PageLink
from gateway.records.read import Reading
from gateway.store.index import Cursor
from gateway.store.journal import Window
from gateway.store.sql import now_ms
from gateway.web import subsets
from gateway.web.ask import Ask
from gateway.web.door import Door, Route

_PAGE: Final = 20
_CUTS: Final = ("_summary", "_elements")
_KNOWN: Final = frozenset({"_count", "_page", "_since", "_at", *_CUTS})
_NEWEST: Final = 2**62


async def instance(door: Door, ask: Ask) -> Answer:
    """GET of an id's versions. Its pages go by version id, which says nothing the versions do not."""
    ask.only_known(_KNOWN, "history")
    count, below = _count(ask), ask.number("_page", _NEWEST)
    page = await history.instance(door.node, ask.caller, ask.type, ask.id, _window(ask), count=count, below=below)
    given = "".join(f"{urlencode([pair])}&" for pair in _given(ask))
    following = None if page.below is None else f"{given}_count={count}&_page={page.below}"
    return await _bundle(door, f"{ask.type}/{ask.id}/_history", page, following, given, whole=below == _NEWEST,
                         results=subsets.of_history(door, ask, _given(ask)))


async def of_type(door: Door, ask: Ask) -> Answer:
    """GET of a type's versions."""
    return await _walked(door, ask, f"{ask.type}/_history")


async def of_all(door: Door, ask: Ask) -> Answer:
    """GET of every version."""
    return await _walked(door, ask, "_history")


async def _walked(door: Door, ask: Ask, place: str) -> Answer:
    ask.only_known(_KNOWN, "history")
    link, expires_ms = None, now_ms() + ask.settings.page_link_ttl_s * 1000
    token = ask.one("_page")
    if token is not None:
        link = door.node.pages.open(token, ask.caller.holder, now_ms())
        if link.type != place or link.cursor is None:
            raise BadSearch("the page link is of another place", code="value", expression="http._page")
        expires_ms = link.expires_ms
    given = _given(ask) if link is None else list(link.pairs)
    results = subsets.of_history(door, ask, given)
    window, count = _window_of(dict(given)), _count(ask) if link is None else int(dict(link.pairs)["_count"])
    below = link.cursor.seq if link is not None and link.cursor is not None else _NEWEST
    if place == "_history":
        page = await history.of_all(door.node, ask.caller, window, count=count, below=below)
    else:
        page = await history.of_type(door.node, ask.caller, ask.type, window, count=count, below=below)
    following = None
    if page.below is not None:
        pairs = (*((name, value) for name, value in given if name != "_count"), ("_count", str(count)))
        following = "_page=" + door.node.pages.seal(PageLink(
            type=place, pairs=pairs, strict=True, snapshot=0, cursor=Cursor(None, page.below),
            expires_ms=expires_ms), ask.caller.holder)
    shown = "".join(f"{urlencode([pair])}&" for pair in given if pair[0] != "_count")
    return await _bundle(door, place, page, following, shown, whole=link is None, results=results)


def _given(ask: Ask) -> list[tuple[str, str]]:
    return [(name, value) for name in ("_since", "_at", *_CUTS) if (value := ask.one(name)) is not None]


def _count(ask: Ask) -> int:
    return min(max(1, ask.number("_count", _PAGE)), ask.settings.max_page)


def _window(ask: Ask) -> Window:
    return _window_of(dict(_given(ask)))


def _window_of(given: dict[str, str]) -> Window:
    ranges: dict[str, tuple[int, int]] = {}
    for name in ("_since", "_at"):
        if name in given:
            try:
                ranges[name] = date_range(given[name])
            except (ValueError, OverflowError) as error:
                raise BadSearch(f"{name} is no date or instant", code="value", expression=f"http.{name}") from error
    return Window(since_ms=ranges["_since"][0] if "_since" in ranges else None, at=ranges.get("_at"))


async def _bundle(door: Door, place: str, page: Page, following: str | None, given: str, *, whole: bool,
                  results: Results) -> Answer:
    """``whole``: this is the first page; the total is told where it is also the last. ``results``: what is left out."""
    url = f"{door.base}/{place}"
    links = [{"relation": "self", "url": f"{url}?{given}".rstrip("?&")}]
    if following is not None:
        links.append({"relation": "next", "url": f"{url}?{following}"})
    readings = page.readings
    if results.subset:
        size = sum(len(reading.stored) for reading in readings)
        readings = await aside.done(size > aside.BYTES, lambda: [
            replace(reading, stored=subsets.of_version(door, results, reading.row.type, reading.stored))
            for reading in readings])
    entries = [_entry(door.base, reading) for reading in readings]
    return Answer(200, orjson.dumps({"resourceType": "Bundle", "type": "history", "link": links,
                                     **({"total": len(entries)} if whole and following is None else {}),
                                     **({"entry": entries} if entries else {})}))


def _entry(base: str, reading: Reading) -> dict[str, object]:
    row = reading.row
    place = f"{row.type}/{row.id}"
    method = "DELETE" if row.deleted else "POST" if row.vid == 1 else "PUT"
    entry: dict[str, object] = {"fullUrl": f"{base}/{place}"}
    if reading.stored:
        entry["resource"] = orjson.Fragment(reading.stored)
    entry["request"] = {"method": method, "url": row.type if method == "POST" else place}
    entry["response"] = {"status": "204" if row.deleted else "201" if row.vid == 1 else "200",
                         "etag": f'W/"{row.vid}"', "lastModified": format_instant(row.updated_ms)}
    return entry


ROUTES = (
    Route(method="GET", shape="T/I/_history", name="history-instance", handler=instance),
    Route(method="GET", shape="T/_history", name="history-type", handler=of_type),
    Route(method="GET", shape="_history", name="history-system", handler=of_all),
)
