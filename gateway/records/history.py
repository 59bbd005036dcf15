"""Histories: the versions of one resource, of a type, of everything, newest first.

Owns which versions belong to a history and the walk past those that may not be seen; refuses to count them, and to tell
what may not be seen from what is not there. Every version is decided, audited and only then given.
https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from gateway.access.decision import Decision, Deny
from gateway.audit import Disclosure, SealedRow
from gateway.errors import Forbidden
from gateway.records import pace, read
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.read import Reading
from gateway.store import journal
from gateway.store.index import SqlBound
from gateway.store.journal import VersionRow, Window

_AT_ONCE: Final = 200
"""Versions of a type fetched at a time."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page, newest first; ``below``: where the next begins (a version id, or a ``seq``), None at the end."""

    readings: list[Reading]
    below: int | None


async def instance(node: Node, caller: Caller, type_: str, id_: str, window: Window, *, count: int,
                   below: int) -> Page:
    """Permitted versions of one resource with a version id under ``below``. Raises NotFound, Forbidden."""
    async def attempt(caller: Caller) -> Page:
        connection = node.database.reader
        current = journal.current(connection, type_, id_)
        decision = await read.permitted(node, caller, connection, current, type_, id_, "history-instance")
        page = await asyncio.to_thread(_page_of_one, node, caller, type_, id_, window, count, below)
        await read.audited(node, caller, [one.row for one in page.readings], decision, "history-instance")
        return page
    return await node.decided(caller, attempt)


def _page_of_one(node: Node, caller: Caller, type_: str, id_: str, window: Window, count: int, below: int) -> Page:
    """Decided and opened from one snapshot; runs in a thread."""
    with node.database.snapshot() as connection:
        rows = _versions(node, caller, connection, type_, id_, window, below, count + 1)
        more, rows = len(rows) > count, rows[:count]
        return Page(_readings(node, connection, rows), rows[-1].vid if more else None)


def _readings(node: Node, connection: apsw.Connection, rows: Sequence[VersionRow]) -> list[Reading]:
    there = [row for row in rows if not row.deleted]
    opened = (node.versions.open_kept(connection, there) or {}) if there else {}
    return [Reading(row, b"" if row.deleted else opened[row.seq].stored) for row in rows
            if row.deleted or row.seq in opened]


def _versions(node: Node, caller: Caller, connection: apsw.Connection, type_: str, id_: str, window: Window,
              below: int, count: int) -> list[VersionRow]:
    """The newest ``count`` that may be read: labels and home patients differ by version."""
    found: list[VersionRow] = []
    while len(found) < count:
        rows = journal.history(connection, type_, id_, below=below, limit=count, window=window)
        found += [row for row in rows
                  if not isinstance(node.gate.decide_version(connection, caller, "r", row), Deny)]
        if len(rows) < count:
            break
        below = rows[-1].vid
    return found[:count]


async def of_type(node: Node, caller: Caller, type_: str, window: Window, *, count: int, below: int) -> Page:
    """Versions of a type that may be found, with a ``seq`` under ``below``. Raises Forbidden outside the scopes."""
    return await _walked(node, caller, "history-type", (type_,), window, count, below)


async def of_all(node: Node, caller: Caller, window: Window, *, count: int, below: int) -> Page:
    """The same over every type of the token's scopes. Raises Forbidden where there is none."""
    return await _walked(node, caller, "history-system", (), window, count, below)


async def _walked(node: Node, caller: Caller, name: str, types: tuple[str, ...], window: Window, count: int,
                  below: int) -> Page:
    async def attempt(caller: Caller) -> Page:
        page, sealed = await asyncio.to_thread(_page, node, caller, name, types, window, count, below)
        await node.disclosures.join(Disclosure(caller.seq, sealed))
        return page
    return await node.decided(caller, attempt)


def _page(node: Node, caller: Caller, name: str, types: tuple[str, ...], window: Window, count: int,
          below: int) -> tuple[Page, tuple[SealedRow, ...]]:
    """A page and its audit rows, from one snapshot; runs in a thread."""
    rows: list[VersionRow] = []
    decisions: list[Decision] = []
    with node.database.snapshot() as connection:
        walks = [_walk(node, caller, connection, type_, window, below)
                 for type_ in types or _types(node, caller, connection)]
        for row, decision in heapq.merge(*walks, key=lambda one: -one[0].seq):
            rows.append(row)
            decisions.append(decision)
            if len(rows) > count:
                break
        more, rows = len(rows) > count, rows[:count]
        readings = _readings(node, connection, rows)
        sealed = _entries(node, caller, connection, name, types, rows, decisions)
    return Page(readings, rows[-1].seq if more else None), sealed


def _types(node: Node, caller: Caller, connection: apsw.Connection) -> list[str]:
    """The types that are stored and within the token's scopes."""
    allowed = set()
    for type_ in node.definitions.resource_types:
        try:
            node.gate.require_scope(caller, type_, "s")
        except Forbidden:
            continue
        allowed.add(type_)
    if not allowed:
        raise Forbidden("searching is outside the token's scopes")
    return [type_ for type_ in journal.types(connection) if type_ in allowed]


def _walk(node: Node, caller: Caller, connection: apsw.Connection, type_: str, window: Window,
          below: int) -> Iterator[tuple[VersionRow, Decision]]:
    """Every version of a type that may be found, newest first: bounded in SQL, and each decided."""
    bound: SqlBound = node.gate.bound(connection, caller, type_)
    end = time.perf_counter() + pace.STATEMENTS_S
    while True:
        with pace.until(connection, end):
            rows = journal.history_of_type(connection, type_, below=below, limit=_AT_ONCE, window=window,
                                           condition=bound.condition, parameters=bound.parameters)
        for row in rows:
            decision = node.gate.decide_version(connection, caller, "s", row)
            if not isinstance(decision, Deny):
                yield row, decision
        if len(rows) < _AT_ONCE:
            return
        below = rows[-1].seq


def _entries(node: Node, caller: Caller, connection: apsw.Connection, name: str, types: tuple[str, ...],
             rows: Sequence[VersionRow], decisions: Sequence[Decision]) -> tuple[SealedRow, ...]:
    """One audit row for each patient disclosed; one of the custodian's own where nothing was."""
    groups: dict[tuple[tuple[str, ...], Decision], list[str]] = defaultdict(list)
    for row, decision in zip(rows, decisions, strict=False):
        groups[node.gate.patients(connection, row), decision].append(f"{row.type}/{row.id}/_history/{row.vid}")
    sealed: list[SealedRow] = []
    for (patients, decision), what in groups.items():
        sealed += node.gate.entries(caller, "s", name, decision, what=what, patients=patients)
    return tuple(sealed) or node.gate.entries(caller, "s", name, None, what=types, patients=(), outcome="0")
