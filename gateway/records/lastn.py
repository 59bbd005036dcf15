"""``$lastn`` and ``$stats`` of Observation over what may be seen.

Owns the bound on what is opened for them, and the result's form; refuses to count what is not permitted.
https://hl7.org/fhir/R4/observation-operation-lastn.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import apsw

from gateway.access.period import MAX_MS, MIN_MS
from gateway.errors import Issue, TooCostly, Unprocessable
from gateway.fhir import statistics
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, format_instant, serialise
from gateway.fhir.search_dates import Range
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, at_most, audit_rows, disclosed, open_all, searchset, walk
from gateway.records.node import Node
from gateway.store import journal

MOST = 5_000
"""Most observations opened for one answer."""
_NEWEST = "-date"


async def lastn(node: Node, caller: Caller, pairs: Sequence[tuple[str, str]], most: int, *, strict: bool) -> bytes:
    """The newest ``most`` permitted observations of each code among the matches, newest first.

    Raises BadSearch, TooCostly, Forbidden.
    """
    query = _query(node, pairs, strict=strict)

    async def attempt(caller: Caller) -> bytes:
        found, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        used = urlencode([("max", str(most)), *query.used])
        return searchset(node, [{"relation": "self", "url": f"{node.settings.base_url}/Observation/$lastn?{used}"}],
                         [(one, b'{"mode":"match"}') for one in found], total=len(found))

    def work(caller: Caller) -> tuple[list[Opened], Any]:
        with node.database.snapshot() as connection:
            opened = _opened(node, caller, connection, query, "$lastn")
            kinds = [statistics.kind_of(one.resource.get("code")) for one in opened]
            found = [opened[place] for place in statistics.newest(kinds, most)]
            return found, audit_rows(node, caller, connection, "lastn", [one.found for one in found],
                                     query=urlencode(query.used), about="Observation")

    return await node.decided(caller, attempt)


def _query(node: Node, pairs: Sequence[tuple[str, str]], *, strict: bool) -> Query:
    wanted = [*pairs, *([] if any(name == "_sort" for name, _ in pairs) else [("_sort", _NEWEST)])]
    query = node.query("Observation", wanted, strict=strict)
    return replace(query, used=tuple(pair for pair in query.used if pair != ("_sort", _NEWEST)))


def _opened(node: Node, caller: Caller, connection: apsw.Connection, query: Query, name: str) -> list[Opened]:
    found = at_most(walk(node, caller, connection, query, snapshot=journal.head_seq(connection)), MOST, name)
    return open_all(node, connection, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What ``$stats`` is asked: ``codes`` are codings; ``period`` epoch milliseconds."""

    subject: str
    codes: tuple[tuple[str | None, str], ...]
    statistics: tuple[str, ...]
    period: Range | None
    include: bool
    limit: int


async def stats(node: Node, caller: Caller, asked: Stats) -> bytes:
    """A Parameters resource: one Observation of statistics for each code, and the sources where they were asked for.

    Raises BadSearch, Unprocessable (several units), TooCostly, Forbidden.
    """
    queries = [_stats_query(node, asked, system, code) for system, code in asked.codes]

    async def attempt(caller: Caller) -> bytes:
        body, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        return body

    def work(caller: Caller) -> tuple[bytes, Any]:
        results: list[dict[str, Any]] = []
        used: dict[str, Opened] = {}
        with node.database.snapshot() as connection:
            for (system, code), query in zip(asked.codes, queries, strict=True):
                opened = _opened(node, caller, connection, query, "$stats")
                if asked.period is not None:
                    opened = [one for one in opened if _within(one, asked.period)]
                used |= {one.found.reference: one for one in opened}
                if len(used) > MOST:
                    raise TooCostly(f"$stats would open more than {MOST} resources; narrow it", code="too-costly")
                results.append({"name": "statistics", "resource": _statistics(asked, system, code, opened)})
            sources = list(used.values())[:asked.limit] if asked.include else []
            rows = audit_rows(node, caller, connection, "stats", [one.found for one in used.values()],
                              query=urlencode({"subject": asked.subject}), about="Observation")
        body = serialise({"resourceType": "Parameters", "parameter": [
            *results, *({"name": "source", "resource": one.resource} for one in sources)]})
        return body, rows

    return await node.decided(caller, attempt)


def _stats_query(node: Node, asked: Stats, system: str | None, code: str) -> Query:
    value = code if system is None else f"{system}|{code}"
    escaped = value.replace("\\", "\\\\").replace(",", "\\,").replace("$", "\\$")
    return node.query("Observation", [("subject", asked.subject), ("combo-code", escaped), ("_sort", _NEWEST)],
                      strict=True)


def _within(one: Opened, period: Range) -> bool:
    row = one.found.row
    return row.low_ms is not None and row.high_ms is not None and row.low_ms < period[1] and row.high_ms > period[0]


def _statistics(asked: Stats, system: str | None, code: str, opened: Sequence[Opened]) -> Resource:
    values: list[Decimal] = []
    units: set[tuple[str, str]] = set()
    total = 0
    for one in opened:
        resource = one.resource
        if resource.get("status") in ("entered-in-error", "cancelled"):
            continue
        for amount in statistics.amounts(resource, _wanted(resource, system, code)):
            total += 1
            if amount is not None:
                values.append(amount.value)
                units.add(amount.unit)
    if len(units) > 1:
        raise Unprocessable(Issue("error", "business-rule", "the values of one code are in several units", "http.code"))
    unit = next(iter(units), ("", ""))
    counts = {"count": len(values), "total-count": total}
    periods = [(one.found.row.low_ms, one.found.row.high_ms) for one in opened
               if one.found.row.low_ms is not None and one.found.row.high_ms is not None]
    low, high = asked.period or (min((low for low, _ in periods), default=None),
                                 max((high for _, high in periods), default=None))
    ends = {"start": _instant(low), "end": _instant(high)}
    return {
        "resourceType": "Observation", "status": "final",
        "code": {"coding": [{**({"system": system} if system else {}), "code": code}]},
        "subject": {"reference": asked.subject},
        **({"effectivePeriod": {name: text for name, text in ends.items() if text}} if any(ends.values()) else {}),
        "component": [statistics.component(name, counts[name] if name in counts else statistics.statistic(name, values),
                                           unit) for name in asked.statistics]}


def _instant(ms: int | None) -> str | None:
    """An end of a period; None where it is open."""
    return format_instant(ms) if ms is not None and MIN_MS < ms < MAX_MS else None


def _wanted(resource: Resource, system: str | None, code: str) -> statistics.Kind:
    """The kinds meant by a code; without a system, by that code in any."""
    if system is not None:
        return frozenset({f"{system}|{code}"})
    parts = (resource, *(resource.get("component") or ()))
    return frozenset(kind for part in parts if isinstance(part, dict) for kind in statistics.kind_of(part.get("code"))
                     if kind.rpartition("|")[2] == code)
