"""What operations gather: permitted current versions, decided one by one, opened, audited, and bundled.

Owns the walk over a query's permitted matches, the following of references, and the audit of what was gathered; refuses
to pass anything on that ``decide`` did not let through (invariants 4, 8). Everything here but ``disclosed`` may fetch
and open blocks: it belongs into a thread, or keeps to a ``Pace``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apsw

from gateway.access.decision import Decision, Deny
from gateway.audit import Disclosure, SealedRow
from gateway.errors import TooCostly
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, format_instant, parse, reference_target, references
from gateway.records import pace
from gateway.records.gate import Caller, Viewing
from gateway.records.node import Node
from gateway.records.pace import Elsewhere, Pace
from gateway.records.searchset import spliced
from gateway.store import journal
from gateway.store.index import Cursor
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Permitted:
    """A version the caller may see, not opened yet; ``cursor`` is its place in the walk that found it."""

    row: VersionRow
    decision: Decision
    cursor: Cursor

    @property
    def reference(self) -> str:
        return f"{self.row.type}/{self.row.id}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A permitted version and its exact stored bytes; with a ``fragment``, a resource it contains instead."""

    found: Permitted
    stored: bytes
    fragment: str = ""

    @property
    def resource(self) -> Resource:
        """The resource, parsed anew."""
        return parse(self.stored)


def walk(node: Node, caller: Caller, connection: apsw.Connection, query: Query, *, snapshot: int,
         after: Cursor | None = None) -> Iterator[Permitted]:
    """Every permitted match of ``query`` at ``snapshot`` in its order. Raises Forbidden outside the token's scopes."""
    bound = node.gate.bound(connection, caller, query.type)
    viewing = node.gate.viewing(connection, caller, query.type)
    end = time.perf_counter() + pace.STATEMENTS_S
    while True:
        with pace.until(connection, end):
            batch = node.index.search(connection, query, bound, snapshot=snapshot, limit=_BATCH, after=after)
        for match in batch:
            decision = decided(node, caller, connection, viewing, match.row)
            if not isinstance(decision, Deny):
                yield Permitted(match.row, decision, match.cursor)
        if len(batch) < _BATCH:
            return
        after = batch[-1].cursor


def decided(node: Node, caller: Caller, connection: apsw.Connection, viewing: Viewing, row: VersionRow) -> Decision:
    """Whether a match may be seen; on a page of an earlier snapshot it may be superseded by now."""
    if row.superseded is None:
        return viewing.decide(node.gate.facts(connection, row), row.seq)
    return node.gate.decide_version(connection, caller, "s", row)


def at_most(found: Iterable[Permitted], limit: int, what: str) -> list[Permitted]:
    """All of ``found``. Raises TooCostly when there are more than ``limit``."""
    taken: list[Permitted] = []
    for one in found:
        if len(taken) == limit:
            raise TooCostly(f"{what} would open more than {limit} resources; narrow it", code="too-costly")
        taken.append(one)
    return taken


def open_all(node: Node, connection: apsw.Connection, found: Sequence[Permitted],
             at: Pace | None = None) -> list[Opened]:
    """The bytes of each that was not erased since, in order.

    Raises BlobUnavailable and what a broken block raises; Elsewhere on the event loop where a block must be fetched, or
    more is to be unsealed than it bears.
    """
    if not found:
        return []
    opened = node.versions.open_kept(connection, [one.row for one in found], most=at.room if at is not None else None)
    if opened is None:
        raise Elsewhere
    if at is not None:
        at.unseal(sum(len(one.stored) for one in opened.values()))
    return [Opened(one, opened[one.row.seq].stored) for one in found if one.row.seq in opened]


class Follower:
    """Follows references to current versions that may be seen; each is given once."""

    def __init__(self, node: Node, caller: Caller, connection: apsw.Connection, *, types: frozenset[str],
                 known: Iterable[str], at: Pace | None = None) -> None:
        self._at = at
        self._node = node
        self._caller = caller
        self._connection = connection
        self._types = types
        self._seen = set(known)
        self._viewing: dict[str, Viewing] = {}

    def follow(self, resources: Iterable[Resource], *, limit: int) -> list[Opened]:
        """What ``resources`` name, of the wanted types, as far as it may be seen; at most ``limit``."""
        found: list[Permitted] = []
        for resource in resources:
            for type_, id_ in self._targets(resource):
                if len(found) < limit and (one := self._permitted(type_, id_)) is not None:
                    found.append(one)
                    if self._at is not None:
                        self._at.open(1)
        return open_all(self._node, self._connection, found, self._at)

    def _targets(self, resource: Resource) -> Iterator[tuple[str, str]]:
        base = self._node.settings.base_url.rstrip("/")
        for _, node in references(resource):
            target = reference_target(node["reference"])
            if (target.type is None or target.id is None or target.type not in self._types
                    or (target.base is not None and target.base.rstrip("/") != base)):
                continue
            name = f"{target.type}/{target.id}"
            if name not in self._seen:
                self._seen.add(name)
                yield target.type, target.id

    def _permitted(self, type_: str, id_: str) -> Permitted | None:
        row = journal.current(self._connection, type_, id_)
        if row is None or row.deleted:
            return None
        viewing = self._viewing.get(type_)
        if viewing is None:
            viewing = self._viewing[type_] = self._node.gate.viewing(self._connection, self._caller, type_)
        decision = viewing.decide(self._node.gate.facts(self._connection, row), row.seq)
        return None if isinstance(decision, Deny) else Permitted(row, decision, Cursor(None, row.seq))


def audit_rows(node: Node, caller: Caller, connection: apsw.Connection, name: str, found: Iterable[Permitted], *,
               query: str, about: str) -> tuple[SealedRow, ...]:
    """One row for each patient and basis; where nothing was found, one that says what was asked about."""
    groups: dict[tuple[tuple[str, ...], Decision], list[str]] = defaultdict(list)
    for one in found:
        row = one.row
        groups[node.gate.patients(connection, row), one.decision].append(f"{one.reference}/_history/{row.vid}")
    rows = [row for (patients, decision), what in groups.items()
            for row in node.gate.entries(caller, "s", name, decision, what=what, patients=patients, query=query)]
    return tuple(rows) or node.gate.entries(caller, "s", name, None, what=(about,), patients=(), outcome="0",
                                            query=query)


async def disclosed(node: Node, caller: Caller, rows: tuple[SealedRow, ...]) -> None:
    """Make the audit durable before anything leaves. Raises Moved when a revocation came meanwhile."""
    await node.disclosures.join(Disclosure(caller.seq, rows))


def searchset(node: Node, links: Sequence[Mapping[str, str]], entries: Iterable[tuple[Opened, bytes]],
              *, total: int | None = None) -> bytes:
    """A searchset Bundle of stored bytes; each entry comes with the JSON of its ``search``."""
    head: dict[str, object] = {"resourceType": "Bundle", "type": "searchset", "meta": {
        "lastUpdated": format_instant(now_ms())}}
    if total is not None:
        head["total"] = total
    if links:
        head["link"] = list(links)
    return spliced(node.settings.base_url, head, (
        (one.found.reference, one.stored, search) for one, search in entries))
