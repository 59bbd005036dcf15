"""Search: a query and the caller's bound become one statement; every match is decided again when opened.

Owns pages, their links and snapshots, and the searchset's bytes (stored bytes are never parsed again);
refuses to count or link to what may not be seen. https://hl7.org/fhir/R4/http.html#search
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

import apsw
import orjson

from gateway.access.decision import Decision, Deny
from gateway.audit import Disclosure, SealedRow
from gateway.crypto.envelope import Opened
from gateway.errors import BadSearch, Issue
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.query import HashIs, IdIs, Query
from gateway.fhir.resource import format_instant
from gateway.records import sorting
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.paging import PageLink
from gateway.store import journal
from gateway.store.index import Cursor, Match, SqlBound
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

PAGE = "_page"


@dataclass(frozen=True, slots=True)
class _Found:
    """One page: the matches let through with their decisions, and where the next page begins."""

    matches: list[Match]
    decisions: list[Decision]
    following: Cursor | None


async def search(node: Node, caller: Caller, type_: str, pairs: Sequence[tuple[str, str]], *, strict: bool) -> bytes:
    """The searchset Bundle's bytes. Raises BadSearch, Forbidden, TooCostly, Gone (an old page link)."""
    page = None
    if any(name == PAGE for name, _ in pairs):
        if len(pairs) != 1:
            raise BadSearch("a page link stands alone", code="invalid", expression=f"http.{PAGE}")
        page = node.pages.open(pairs[0][1], caller.holder, now_ms())
        if page.type != type_:
            raise BadSearch("the page link is of another type", code="value", expression=f"http.{PAGE}")
        pairs, strict = page.pairs, page.strict
    query = node.query(type_, pairs, strict=strict)
    if query.summary_count:
        return await node.decided(caller, lambda now: _counted(node, now, query))
    return await node.decided(caller, lambda now: _page(node, now, query, pairs, strict, page))


def matching(node: Node, caller: Caller, connection: apsw.Connection, query: Query, *, limit: int) -> list[VersionRow]:
    """Permitted current versions that match: what a condition may see. Nothing is disclosed."""
    bound = node.gate.bound(connection, caller, query.type)
    return [match.row for match in node.index.search(connection, query, bound, limit=limit,
                                                     snapshot=journal.head_seq(connection))]


async def _counted(node: Node, caller: Caller, query: Query) -> bytes:
    with node.database.snapshot() as connection:
        bound = node.gate.bound(connection, caller, query.type)
        total = node.index.count(connection, query, bound, snapshot=journal.head_seq(connection))
    await _commit(node, caller, node.gate.entries(caller, "s", "search-type", None, what=(query.type,), patients=(),
                                                  outcome="0", query=urlencode(query.used)))
    return _bundle(query, node, [], None, total=total)


async def _page(node: Node, caller: Caller, query: Query, pairs: Sequence[tuple[str, str]], strict: bool,
                page: PageLink | None) -> bytes:
    after = page.cursor if page else None
    if sorting.needs_values(query):
        snapshot, found, opened, entries = await asyncio.to_thread(_by_values, node, caller, query, page)
        rows = [match.row for match in found.matches]
    else:
        with node.database.snapshot() as connection:
            snapshot = page.snapshot if page else journal.head_seq(connection)
            found = _find(node, caller, connection, query, snapshot, after)
            rows = [match.row for match in found.matches]
            local = node.versions.open_local_many(connection, rows)
            entries = _entries(node, caller, connection, query, rows, found.decisions)
        opened = local if local is not None else await asyncio.to_thread(
            lambda: node.versions.open_many(node.database.reader, rows))
    await _commit(node, caller, entries)
    link = None
    if found.following is not None:
        link = node.pages.seal(PageLink(
            type=query.type, pairs=tuple(pairs), strict=strict, snapshot=snapshot, cursor=found.following,
            expires_ms=page.expires_ms if page else now_ms() + node.settings.page_link_ttl_s * 1000), caller.holder)
    total = len(rows) if page is None and found.following is None else None
    return _bundle(query, node, [(row, one.stored) for row, one in zip(rows, opened, strict=True)], link, total=total)


def _by_values(node: Node, caller: Caller, query: Query, page: PageLink | None) -> tuple[
        int, _Found, list[Opened], tuple[SealedRow, ...]]:
    """A page sorted by texts; runs in a thread."""
    with node.database.snapshot() as connection:
        snapshot = page.snapshot if page else journal.head_seq(connection)
        candidates, following = sorting.sorted_page(node, caller, connection, query, snapshot=snapshot,
                                                    after=page.cursor if page else None)
        found = _Found([one.match for one in candidates], [one.decision for one in candidates], following)
        entries = _entries(node, caller, connection, query, [one.match.row for one in candidates], found.decisions)
    return snapshot, found, [one.opened for one in candidates], entries


def _find(node: Node, caller: Caller, connection: apsw.Connection, query: Query, snapshot: int,
          after: Cursor | None) -> _Found:
    bound = node.gate.bound(connection, caller, query.type)
    if query.count == 0:
        return _Found([], [], None)
    wanted = query.count + 1
    matches: list[Match] = []
    decisions: list[Decision] = []
    viewing = node.gate.viewing(connection, caller, query.type)
    while True:
        limit = wanted - len(matches)
        batch = node.index.search(connection, query, bound, snapshot=snapshot, limit=limit, after=after)
        for match in batch:
            if match.row.superseded is None:
                decision = viewing.decide(node.gate.facts(connection, match.row), match.row.seq)
            else:  # on a page of an earlier snapshot
                decision = node.gate.decide_version(connection, caller, "s", match.row)
            if not isinstance(decision, Deny):
                matches.append(match)
                decisions.append(decision)
        if len(batch) < limit or len(matches) >= wanted:
            break
        after = batch[-1].cursor
    following = matches[query.count - 1].cursor if len(matches) > query.count else None
    return _Found(matches[:query.count], decisions[:query.count], following)


def _entries(node: Node, caller: Caller, connection: apsw.Connection, query: Query, rows: Sequence[VersionRow],
             decisions: Sequence[Decision]) -> tuple[SealedRow, ...]:
    """One audit row for each patient disclosed; for a search that named a patient and was refused, theirs."""
    asked = urlencode(query.used)
    groups: dict[tuple[tuple[str, ...], Decision], list[str]] = defaultdict(list)
    for row, decision in zip(rows, decisions, strict=True):
        patients = node.gate.patients(connection, row)
        groups[patients, decision].append(f"{row.type}/{row.id}/_history/{row.vid}")
    sealed: list[SealedRow] = []
    for (patients, decision), what in groups.items():
        sealed.extend(node.gate.entries(caller, "s", "search-type", decision, what=what, patients=patients,
                                        query=asked))
    if not rows:
        sealed.extend(_refused(node, caller, connection, query, asked)
                      or node.gate.entries(caller, "s", "search-type", None, what=(query.type,), patients=(),
                                           outcome="0", query=asked))
    return tuple(sealed)


def _refused(node: Node, caller: Caller, connection: apsw.Connection, query: Query,
             asked: str) -> tuple[SealedRow, ...]:
    """The patient's own audit shows a search that asked for them and was let see nothing."""
    if not any(isinstance(predicate, HashIs | IdIs) for criterion in query.criteria for predicate in criterion.any_of):
        return ()
    # Any match will do: an order could be refused here over resources that may not be seen.
    hidden = node.index.search(connection, replace(query, sort=()), SqlBound("1"),
                               snapshot=journal.head_seq(connection), limit=1)
    for match in hidden:
        facts = node.gate.facts(connection, match.row)
        decision = node.gate.decide(connection, caller, "s", stored=facts,
                                    stored_matcher=node.gate.stored_matcher(connection, match.row.seq))
        if isinstance(decision, Deny):
            return node.gate.entries(caller, "s", "search-type", decision, what=(query.type,),
                                     patients=facts.home_patients, query=asked)
    return ()


async def _commit(node: Node, caller: Caller, sealed: tuple[SealedRow, ...]) -> None:
    await node.commits.join(Disclosure(caller.seq, sealed))


def _bundle(query: Query, node: Node, found: Sequence[tuple[VersionRow, bytes]], link: str | None, *,
            total: int | None) -> bytes:
    base = f"{node.settings.base_url}/{query.type}"
    links = [{"relation": "self", "url": f"{base}?{urlencode(query.used, quote_via=quote, safe='|:,$/')}".rstrip("?")}]
    if link is not None:
        links.append({"relation": "next", "url": f"{base}?{PAGE}={link}"})
    head: dict[str, object] = {"resourceType": "Bundle", "type": "searchset", "meta": {
        "lastUpdated": format_instant(now_ms())}}
    if total is not None:
        head["total"] = total
    head["link"] = links
    entries = [b'{"fullUrl":"%s/%s","resource":%s,"search":{"mode":"match"}}' % (
        base.encode(), row.id.encode(), stored) for row, stored in found]
    if query.ignored:
        outcome = operation_outcome(tuple(Issue("warning", "not-supported", text) for text in query.ignored))
        entries.append(b'{"resource":%s,"search":{"mode":"outcome"}}' % outcome)
    body = orjson.dumps(head)
    if not entries:
        return body
    return b'%s,"entry":[%s]}' % (body[:-1], b",".join(entries))
