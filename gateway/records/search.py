"""Search: queries and the caller's bound become statements; every match is decided again when opened.

Owns pages, their links and snapshots; refuses to count or link to what may not be seen.
https://hl7.org/fhir/R4/http.html#search
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

import apsw

from gateway.access.decision import Decision, Deny
from gateway.audit import SealedRow
from gateway.errors import BadSearch, Issue
from gateway.fhir.query import AllOf, HashIs, IdIs, Query
from gateway.fhir.resource import parse, serialise
from gateway.fhir.subset import Subset
from gateway.records import contained, including, searchset, sorting, terminology
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, Permitted, audit_rows, decided, disclosed, open_all
from gateway.records.including import Including
from gateway.records.node import Node
from gateway.records.opening import Opening
from gateway.records.pace import INLINE_MATCHES, Pace, short_first
from gateway.records.paging import PageLink
from gateway.records.searched import Place, Search, named_types, queries, read_search
from gateway.store import journal
from gateway.store.index import Cursor, Match, Sight, SqlBound
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

PAGE: Final = "_page"


@dataclass(frozen=True, slots=True)
class _Found:
    """One page, decided, opened and ready to be told."""

    snapshot: int
    matches: Sequence[Opened]
    included: Sequence[Opened]
    following: Cursor | None
    total: int | None
    issues: Sequence[Issue]
    audit: tuple[SealedRow, ...]


async def search(node: Node, caller: Caller, type_: str, pairs: Sequence[tuple[str, str]], *, strict: bool) -> bytes:
    """The searchset of a type-level search. Raises as ``search_place`` does."""
    return await search_place(node, caller, Place(type_), pairs, strict=strict)


async def search_place(node: Node, caller: Caller, place: Place, pairs: Sequence[tuple[str, str]], *,
                       strict: bool) -> bytes:
    """The searchset Bundle's bytes. Raises BadSearch, Forbidden, TooCostly, Gone (an old page link)."""
    page = None
    if any(name == PAGE for name, _ in pairs):
        if len(pairs) != 1:
            raise BadSearch("a page link stands alone", code="invalid", expression=f"http.{PAGE}")
        page = node.pages.open(pairs[0][1], caller.holder, now_ms())
        if page.type != place.path:
            raise BadSearch("the page link is of another search", code="value", expression=f"http.{PAGE}")
        pairs, strict = page.pairs, page.strict
    node = await terminology.asking(node, caller, named_types(place, pairs), pairs)
    asked = read_search(node, place, pairs, strict=strict)
    including.check(asked.head.results.includes)
    return await node.decided(caller, lambda now: _page(node, now, asked, page))


def matching(node: Node, caller: Caller, connection: apsw.Connection, query: Query, *, limit: int) -> list[VersionRow]:
    """Permitted current versions that match: what a condition may see. Nothing is disclosed."""
    bound = node.gate.bound(connection, caller, query.type)
    return [match.row for match in node.index.search(connection, query, bound, limit=limit,
                                                     snapshot=journal.head_seq(connection),
                                                     sight=sight(node, caller, connection, opens=False))]


def sight(node: Node, caller: Caller, connection: apsw.Connection, *, opens: bool = True) -> Sight:
    """What a search's links to other types may reach; ``opens``: resources may be opened to answer it."""
    return Sight(bound=lambda type_: node.gate.bound(connection, caller, type_),
                 answer=Opening(node, caller, connection).answer if opens else None)


async def _page(node: Node, caller: Caller, asked: Search, page: PageLink | None) -> bytes:
    found = await short_first(lambda at: _gather(node, caller, asked, page, at), short=_short(asked))
    await disclosed(node, caller, found.audit)
    base, path = node.settings.base_url, asked.place.path
    links = [("self", searchset.self_link(base, path, asked.used)), *_links(node, caller, asked, page, found)]
    return searchset.searchset(base, links, _resources(found.matches), _resources(found.included), found.issues,
                               total=found.total)


def _resources(found: Sequence[Opened]) -> list[tuple[str, bytes]]:
    return [(one.found.reference + one.fragment, one.stored) for one in found]


def _links(node: Node, caller: Caller, asked: Search, page: PageLink | None, found: _Found) -> Iterator[
        tuple[str, str]]:
    """``next``, ``previous`` and ``first``, each at this page's snapshot."""
    if asked.head.summary_count or (page is None and found.following is None):
        return
    expires_ms = page.expires_ms if page else now_ms() + node.settings.page_link_ttl_s * 1000
    here = PageLink(type=asked.place.path, pairs=asked.pairs, strict=asked.strict, snapshot=found.snapshot,
                    cursor=page.cursor if page else None, expires_ms=expires_ms, trail=page.trail if page else (),
                    total=found.total, total_seq=caller.seq)

    def link(relation: str, to: PageLink) -> tuple[str, str]:
        token = node.pages.seal(to, caller.holder)
        return relation, searchset.page_link(node.settings.base_url, asked.place.path, token)

    if found.following is not None:
        yield link("next", replace(here, cursor=found.following, trail=(*here.trail, here.cursor)))
    if page is not None and page.cursor is not None:
        if page.trail:
            yield link("previous", replace(here, cursor=page.trail[-1], trail=page.trail[:-1]))
        yield link("first", replace(here, cursor=None, trail=()))


def _short(asked: Search) -> bool:
    """Whether the event loop may try: one type, few matches, nothing written anew, includes that are named."""
    query, results = asked.head, asked.head.results
    return (asked.types is not None and len(asked.types) == 1 and query.count <= INLINE_MATCHES
            and results.contained == "false" and not (results.subset or asked.lists or query.opens)
            and all(include.type and include.code and not include.iterate for include in results.includes)
            and not sorting.needs_values(query))


def _gather(node: Node, caller: Caller, asked: Search, page: PageLink | None, at: Pace) -> _Found:
    """Everything of one page but its bytes. On the event loop raises Elsewhere where it takes too long for it."""
    with node.database.snapshot() as connection, at.statements(connection):
        snapshot = page.snapshot if page else journal.head_seq(connection)
        asking = queries(node, caller, connection, asked, snapshot)
        results = asked.head.results
        total: int | None
        if asked.head.summary_count:
            total = _count(node, caller, connection, asking, snapshot)
            return _Found(snapshot, (), (), None, total, asked.issues,
                          _audit(node, caller, connection, asked, asking, (), counted=True))
        matches, following = _matches(node, caller, connection, asking, snapshot, page, at)
        issues = list(asked.issues)
        included: list[Opened] = []
        if results.includes:
            at.open(len(matches))
            walk = Including(node, caller, connection, snapshot, at)
            included = walk.of(matches, results.includes)
            issues += walk.issues
        if results.total in ("accurate", "estimate") and page is None:
            total = len(matches) if following is None else _count(node, caller, connection, asking, snapshot)
        elif page is None and following is None and results.total is None:
            total = len(matches)
        else:
            # What was told once is told again only while no revocation came.
            total = page.total if page and page.total_seq == caller.seq and results.total != "none" else None
        told = [one.found for one in (*matches, *included)]
        audit = _audit(node, caller, connection, asked, asking, told, counted=False)
    if results.subset:
        subset = Subset(node.definitions, results, frozenset((asked.head.type, *(query.type for query in asking))))
        matches, included = _cut(subset, matches), _cut(subset, included)
    return _Found(snapshot, matches, included, following, total, issues, audit)


def _cut(subset: Subset, found: Sequence[Opened]) -> list[Opened]:
    return [replace(one, stored=serialise(subset.of(parse(one.stored)))) for one in found]


def _count(node: Node, caller: Caller, connection: apsw.Connection, asking: Sequence[Query], snapshot: int) -> int:
    """How many may be seen."""
    return sum(node.index.count(connection, query, node.gate.bound(connection, caller, query.type), snapshot=snapshot,
                                sight=sight(node, caller, connection)) for query in asking)


def _matches(node: Node, caller: Caller, connection: apsw.Connection, asking: Sequence[Query], snapshot: int,
             page: PageLink | None, at: Pace) -> tuple[list[Opened], Cursor | None]:
    """One page of matches in order, opened, and where the next begins."""
    after = page.cursor if page else None
    if not asking:
        return [], None
    if sorting.needs_values(asking[0]) or (len(asking) > 1 and len(asking[0].sort) > 1):
        return sorting.sorted_page(node, caller, connection, asking, snapshot=snapshot, after=after,
                                   sight=sight(node, caller, connection))
    count = asking[0].count
    found = [one for query in asking for one in permitted(node, caller, connection, query, snapshot, after, count + 1)]
    if len(asking) > 1:
        found = _merged(found, asking[0])
    parts = None
    if asking[0].results.inner:
        parts = contained.places(node, caller, connection, asking, found, snapshot, sight(node, caller, connection))
        count = contained.taken(found, parts, count)
    following = found[count - 1].cursor if len(found) > count else None
    found = found[:count]
    told = open_all(node, connection, found, at)
    return told if parts is None else contained.told(told, parts), following


def _merged(found: list[Permitted], query: Query) -> list[Permitted]:
    """Matches of several types in the order that each type's came in."""
    down = bool(query.sort) and query.sort[0].descending
    if not query.sort:
        return sorted(found, key=lambda one: one.row.seq)
    known = [one for one in found if one.cursor.value is not None]
    unknown = [one for one in found if one.cursor.value is None]
    known.sort(key=lambda one: (one.cursor.value, one.row.seq), reverse=down)
    return known + sorted(unknown, key=lambda one: one.row.seq, reverse=down)


def permitted(node: Node, caller: Caller, connection: apsw.Connection, query: Query, snapshot: int,
              after: Cursor | None, wanted: int) -> list[Permitted]:
    """At most ``wanted`` matches of one type after a place, decided one by one. Raises Forbidden, TooCostly."""
    bound = node.gate.bound(connection, caller, query.type)
    viewing = node.gate.viewing(connection, caller, query.type)
    others = sight(node, caller, connection)
    found: list[Permitted] = []
    while True:
        limit = wanted - len(found)
        batch = node.index.search(connection, query, bound, snapshot=snapshot, limit=limit, after=after, sight=others)
        for match in batch:
            decision = decided(node, caller, connection, viewing, match.row)
            if not isinstance(decision, Deny):
                found.append(Permitted(match.row, decision, match.cursor))
        if len(batch) < limit or len(found) >= wanted:
            return found
        after = batch[-1].cursor


def _audit(node: Node, caller: Caller, connection: apsw.Connection, asked: Search, asking: Sequence[Query],
           told: Sequence[Permitted], *, counted: bool) -> tuple[SealedRow, ...]:
    """One audit row for each patient disclosed; for a search that named a patient and was refused, theirs."""
    query, name = urlencode(asked.used), "search-type" if asked.place.type else "search-system"
    if not told and not counted:
        for one in asking:
            refused = _refused(node, caller, connection, one, name, query)
            if refused:
                return refused
    return audit_rows(node, caller, connection, name, told, query=query, about=asked.place.path or "*")


def _refused(node: Node, caller: Caller, connection: apsw.Connection, query: Query, name: str,
             asked: str) -> tuple[SealedRow, ...]:
    """The patient's own audit shows a search that asked for them and was let see nothing."""
    if query.links or not any(isinstance(predicate, HashIs | IdIs | AllOf) for criterion in query.criteria
                              for predicate in criterion.any_of) or query.opens:
        return ()
    # Any match will do: an order could be refused here over resources that may not be seen.
    hidden: list[Match] = node.index.search(connection, replace(query, sort=()), SqlBound("1"),
                                            snapshot=journal.head_seq(connection), limit=1)
    if not hidden:
        node.gate.decide_absent(connection, caller, "s", query.type, "")  # as it is decided on what is hidden
    for match in hidden:
        facts = node.gate.facts(connection, match.row)
        decision: Decision = node.gate.decide(connection, caller, "s", stored=facts,
                                              stored_matcher=node.gate.stored_matcher(connection, match.row.seq))
        if isinstance(decision, Deny):
            return node.gate.entries(caller, "s", name, decision, what=(query.type,), patients=facts.home_patients,
                                     query=asked)
    return ()
