"""Pages in an order that no index keeps: a bounded candidate set is opened and sorted by the resources' own values.

Owns the bound on candidates and the order among equals; refuses a search with more than it opens.
https://hl7.org/fhir/R4/search.html#sort
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import apsw

from gateway.access.decision import Decision, Deny
from gateway.crypto.envelope import Opened
from gateway.errors import TooCostly
from gateway.fhir.query import Query, SortKey
from gateway.fhir.resource import parse
from gateway.fhir.search import SortValue, sort_value
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.store.index import Cursor, Match

MOST = 2_000
"""Most resources opened to be sorted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One permitted match, opened."""

    match: Match
    decision: Decision
    opened: Opened


def needs_values(query: Query) -> bool:
    """Whether a key of the order is a text, which the index holds as keyed hashes alone."""
    return any(key.kind == "string" for key in query.sort)


def sorted_page(node: Node, caller: Caller, connection: apsw.Connection, query: Query, *, snapshot: int,
                after: Cursor | None) -> tuple[list[Candidate], Cursor | None]:
    """One page in the order asked, and where the next begins. Opens blocks: not for the event loop's thread.

    Resources without a value come last whichever way a key goes; equals stand in commit order. Raises TooCostly.
    """
    bound = node.gate.bound(connection, caller, query.type)
    found = node.index.search(connection, replace(query, sort=()), bound, snapshot=snapshot, limit=MOST + 1)
    if len(found) > MOST:
        raise TooCostly(f"more than {MOST} resources would be opened to sort by a text; narrow the search",
                        code="too-costly", expression="http._sort")
    permitted: list[tuple[Match, Decision]] = []
    for match in found:
        decision = node.gate.decide_version(connection, caller, "s", match.row)
        if not isinstance(decision, Deny):
            permitted.append((match, decision))
    opened = node.versions.open_many(connection, [match.row for match, _ in permitted])
    ordered = [Candidate(match, decision, one) for (match, decision), one in zip(permitted, opened, strict=True)]
    resources = {one.match.row.seq: parse(one.opened.stored) for one in ordered}
    for key in reversed(query.sort):
        ordered = _by(ordered, resources, key, _reader(node, query.type, key))
    start = after.offset if after else 0
    end = start + query.count
    return ordered[start:end], Cursor(None, 0, end) if end < len(ordered) else None


def _reader(node: Node, type_: str, key: SortKey) -> Callable[[Match, Mapping[str, Any]], SortValue | None]:
    if key.kind == "id":
        return lambda match, _: match.row.id
    if key.kind == "updated":
        return lambda match, _: match.row.updated_ms
    read = sort_value(node.extractor.plans, type_, key)
    return lambda _, resource: read(resource)


def _by(candidates: list[Candidate], resources: Mapping[int, Mapping[str, Any]], key: SortKey,
        read: Callable[[Match, Mapping[str, Any]], SortValue | None]) -> list[Candidate]:
    """Stable, so that the keys after this one keep their order among equals."""
    known: list[tuple[Any, Candidate]] = []  # Any: one key's values are all texts or all numbers
    unknown: list[Candidate] = []
    for candidate in candidates:
        value = read(candidate.match, resources[candidate.match.row.seq])
        if value is None:
            unknown.append(candidate)
        else:
            known.append((value, candidate))
    known.sort(key=lambda pair: pair[0], reverse=key.descending)
    return [candidate for _, candidate in known] + unknown
