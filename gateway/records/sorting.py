"""Pages in an order that no index keeps: a bounded candidate set is opened and sorted by the resources' own values.

Owns the bound on candidates and the order among equals; refuses a search with more than it opens.
https://hl7.org/fhir/R4/search.html#sort
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import apsw

from gateway.access.decision import Deny
from gateway.errors import TooCostly
from gateway.fhir.query import Query, SortKey
from gateway.fhir.search import SortValue, sort_value
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, Permitted, open_all
from gateway.records.node import Node
from gateway.store.index import Cursor, Match, Sight
from gateway.store.journal import VersionRow

_Reader = Callable[[VersionRow, Mapping[str, Any]], SortValue | None]

MOST = 2_000
"""Most resources opened to be sorted."""


def needs_values(query: Query) -> bool:
    """Whether a key of the order is none that the index keeps: a text, which it holds as keyed hashes alone."""
    return any(key.kind == "string" or key.joined for key in query.sort)


def sorted_page(node: Node, caller: Caller, connection: apsw.Connection, queries: Sequence[Query], *, snapshot: int,
                after: Cursor | None, sight: Sight) -> tuple[list[Opened], Cursor | None]:
    """One page in the order asked, and where the next begins. Opens blocks: not for the event loop's thread.

    ``queries`` are of different types, with the same number of keys. Resources without a value come last whichever way
    a key goes; equals stand in commit order. Raises TooCostly, Forbidden.
    """
    found: list[Match] = []
    for query in queries:
        bound = node.gate.bound(connection, caller, query.type)
        found += node.index.search(connection, replace(query, sort=()), bound, snapshot=snapshot,
                                   limit=MOST + 1 - len(found), sight=sight)
        if len(found) > MOST:
            raise TooCostly(f"more than {MOST} resources would be opened to sort by values; narrow the search",
                            code="too-costly", expression="http._sort")
    permitted: list[Permitted] = []
    for match in sorted(found, key=lambda one: one.row.seq):
        decision = node.gate.decide_version(connection, caller, "s", match.row)
        if not isinstance(decision, Deny):
            permitted.append(Permitted(match.row, decision, match.cursor))
    ordered = open_all(node, connection, permitted)
    resources = {one.found.row.seq: one.resource for one in ordered}
    for place in reversed(range(len(queries[0].sort))):
        readers = {query.type: _reader(node, query.type, query.sort[place]) for query in queries}
        ordered = _by(ordered, resources, queries[0].sort[place].descending, readers)
    start = after.offset if after else 0
    end = start + queries[0].count
    return ordered[start:end], Cursor(None, 0, end) if end < len(ordered) else None


def _reader(node: Node, type_: str, key: SortKey) -> _Reader:
    if key.kind == "id":
        return lambda row, _: row.id
    if key.kind == "updated":
        return lambda row, _: row.updated_ms
    read = sort_value(node.extractor.plans, type_, key)
    return lambda _, resource: read(resource)


def _by(ordered: list[Opened], resources: Mapping[int, Mapping[str, Any]], descending: bool,
        readers: Mapping[str, _Reader]) -> list[Opened]:
    """Stable, so that the keys after this one keep their order among equals."""
    known: list[tuple[Any, Opened]] = []  # Any: one key's values are all texts or all numbers
    unknown: list[Opened] = []
    for one in ordered:
        row = one.found.row
        value = readers[row.type](row, resources[row.seq])
        if value is None:
            unknown.append(one)
        else:
            known.append((value, one))
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return [one for _, one in known] + unknown
