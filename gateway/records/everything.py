"""``$everything``: a patient's or an encounter's record in pages, each resource decided by itself.

Owns what belongs to it (HL7's compartment tables, and what its records name), the order and the place where a page
ends; refuses to show, count or follow what may not be seen. https://hl7.org/fhir/R4/patient-operation-everything.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from urllib.parse import urlencode

import apsw

from gateway.audit import SealedRow
from gateway.errors import BadSearch, Forbidden
from gateway.fhir.query import Criterion, HashIs, IdIs, Query
from gateway.fhir.resource import Resource
from gateway.fhir.search import Plans, parse_query
from gateway.fhir.search_dates import Range
from gateway.records import read
from gateway.records.gate import Caller
from gateway.records.gathering import Follower, Opened, Permitted, audit_rows, disclosed, open_all, searchset, walk
from gateway.records.node import Node
from gateway.records.pace import Pace, short_first
from gateway.records.paging import PageLink
from gateway.store import journal
from gateway.store.index import Cursor
from gateway.store.sql import now_ms

PAGE = "_page"
_ITSELF = "{def}"
"""How the tables say that the resource itself belongs to its compartment."""
_INCLUDES_MAX = 2_000
"""Most resources named by those of one page that are shown with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of the record is wanted; ``pairs`` are the parameters as given. ``period`` is about care, ``since_ms`` about
    changes. ``types`` none: every type."""

    compartment: str
    id: str | None
    pairs: tuple[tuple[str, str], ...]
    types: frozenset[str] = frozenset()
    since_ms: int | None = None
    period: Range | None = None
    count: int

    @property
    def path(self) -> str:
        return f"{self.compartment}/{self.id}/$everything" if self.id else f"{self.compartment}/$everything"


async def everything(node: Node, caller: Caller, asked: Asked, page: PageLink | None) -> bytes:
    """One page of the record. Raises NotFound, Gone, Forbidden, as a read of the patient or encounter does."""
    if asked.id is not None:
        await read.read(node, caller, asked.compartment, asked.id)
        caller = caller.again()

    async def attempt(caller: Caller) -> bytes:
        gathered = await short_first(lambda at: _gather(node, caller, asked, page, at), short=asked.id is not None)
        await disclosed(node, caller, gathered.audit)
        return _bundle(node, caller, asked, page, gathered)
    return await node.decided(caller, attempt)


def opened_link(node: Node, caller: Caller, token: str, path: str) -> PageLink:
    """The page behind a link. Raises BadSearch, Gone."""
    page = node.pages.open(token, caller.holder, now_ms())
    if page.type != path:
        raise BadSearch("the page link is of another request", code="value", expression=f"http.{PAGE}")
    return page


@dataclass(frozen=True, slots=True)
class _Gathered:
    matches: Sequence[Opened]
    includes: Sequence[Opened]
    snapshot: int
    following: Cursor | None
    audit: tuple[SealedRow, ...]


def _gather(node: Node, caller: Caller, asked: Asked, page: PageLink | None, at: Pace) -> _Gathered:
    with node.database.snapshot() as connection, at.statements(connection):
        snapshot = page.snapshot if page else journal.head_seq(connection)
        found = []
        for one in islice(_members(node, caller, connection, asked, snapshot, page.cursor if page else None),
                          asked.count + 1):
            at.open(1)
            found.append(one)
        following = found[asked.count - 1].cursor if len(found) > asked.count else None
        matches = open_all(node, connection, found[:asked.count], at)
        includes = _named(node, caller, connection, asked, matches, at)
        audit = audit_rows(node, caller, connection, "everything", [one.found for one in (*matches, *includes)],
                           query=urlencode(asked.pairs), about=asked.path)
    return _Gathered(matches, includes, snapshot, following, audit)


def _members(node: Node, caller: Caller, connection: apsw.Connection, asked: Asked, snapshot: int,
             after: Cursor | None) -> Iterator[Permitted]:
    """The record's own resources after a place; a place is (index of the type, seq)."""
    start, seq = (int(after.value or 0), after.seq) if after else (0, 0)
    queries = [(place, query) for place, type_ in enumerate(_types(node, asked)) if place >= start
               and _in_scope(node, caller, asked, type_) and (query := _membership(node, asked, type_)) is not None]
    # Of some seventy types most records have a few: which, is one statement, where a search of each takes its own.
    present = {query.type for query in node.index.present(connection, [query for _, query in queries])}
    for place, query in queries:
        if query.type not in present:
            continue
        beyond = Cursor(None, seq) if place == start and seq else None
        for one in walk(node, caller, connection, query, snapshot=snapshot, after=beyond):
            if _wanted(asked, one):
                yield Permitted(one.row, one.decision, Cursor(place, one.row.seq))


def _types(node: Node, asked: Asked) -> Sequence[str]:
    """The types of the record that are wanted, in the order that page links count by."""
    members = node.definitions.compartment_types(asked.compartment)
    return [name for name in members if name in asked.types] if asked.types else members


def _in_scope(node: Node, caller: Caller, asked: Asked, type_: str) -> bool:
    """Whether the token speaks of the type at all. Raises Forbidden where it was asked for by name."""
    try:
        node.gate.require_scope(caller, type_, "s")
    except Forbidden:
        if type_ in asked.types:
            raise
        return False
    return True


def _membership(node: Node, asked: Asked, type_: str) -> Query | None:
    """The type's members as a query; at type level whatever is about some patient, which ``_wanted`` sees to."""
    if asked.id is None:
        return Query(type=type_)
    found = _naming(node.extractor.plans, node.parameters.generation, asked.compartment, type_)
    named = tuple(HashIs(one.key, f"{asked.compartment}/{asked.id}") for one in found)
    itself = (IdIs(asked.id),) if type_ == asked.compartment else ()
    return Query(type=type_, criteria=(Criterion((*named, *itself)),)) if named or itself else None


@lru_cache(maxsize=256)
def _naming(plans: Plans, generation: int, compartment: str, type_: str) -> tuple[HashIs, ...]:
    """What of ``type_`` says that it belongs to the compartment, by search parameters as of ``generation``."""
    return tuple(dict.fromkeys(
        predicate for code in plans.definitions.compartment(compartment, type_) if code != _ITSELF
        for criterion in parse_query(plans, type_, [(code, f"{compartment}/0")], strict=True, own_bases=(),
                                     max_count=1, now_ms=0).criteria
        for predicate in criterion.any_of if type(predicate) is HashIs))


def _wanted(asked: Asked, one: Permitted) -> bool:
    row = one.row
    if asked.id is None and row.patient is None:
        return False
    if asked.since_ms is not None and row.updated_ms <= asked.since_ms:
        return False
    if asked.period is None or row.type == asked.compartment or row.low_ms is None or row.high_ms is None:
        return True
    return row.low_ms < asked.period[1] and row.high_ms > asked.period[0]


def _named(node: Node, caller: Caller, connection: apsw.Connection, asked: Asked,
           matches: Sequence[Opened], at: Pace) -> list[Opened]:
    """Who and what the page's resources name: practitioners, organisations, medications, places, and those named by
    them. Never another patient's records."""
    named = node.definitions.resource_types.difference(node.definitions.compartment_types("Patient"))
    if asked.compartment == "Encounter":
        named |= {"Patient"}
    types = named & asked.types if asked.types else named
    follower = Follower(node, caller, connection, types=types, known=[one.found.reference for one in matches], at=at)
    first = follower.follow(_parsed(matches, at), limit=_INCLUDES_MAX)
    return first + follower.follow(_parsed(first, at), limit=_INCLUDES_MAX - len(first))


def _parsed(opened: Sequence[Opened], at: Pace) -> Iterator[Resource]:
    for one in opened:
        at.parse(len(one.stored))
        yield one.resource


def _bundle(node: Node, caller: Caller, asked: Asked, page: PageLink | None, gathered: _Gathered) -> bytes:
    url = f"{node.settings.base_url}/{asked.path}"
    asked_for = urlencode(asked.pairs)
    links = [{"relation": "self", "url": f"{url}?{asked_for}" if asked_for else url}]
    if gathered.following is not None:
        token = node.pages.seal(PageLink(
            type=asked.path, pairs=asked.pairs, strict=True, snapshot=gathered.snapshot, cursor=gathered.following,
            expires_ms=page.expires_ms if page else now_ms() + node.settings.page_link_ttl_s * 1000), caller.holder)
        links.append({"relation": "next", "url": f"{url}?{PAGE}={token}"})
    entries = [*((one, b'{"mode":"match"}') for one in gathered.matches),
               *((one, b'{"mode":"include"}') for one in gathered.includes)]
    whole = page is None and gathered.following is None
    return searchset(node, links, entries, total=len(gathered.matches) if whole else None)
