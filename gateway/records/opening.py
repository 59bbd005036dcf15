"""Predicates that only opened resources answer: the few candidates of a search are opened, and asked.

Owns the opening, each resource once; refuses one that may not be seen, as if it were not there (invariant 4). Opens
blocks: not for the event loop's thread. https://hl7.org/fhir/R4/search.html#string
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw

from gateway.access.decision import Deny
from gateway.fhir.query import OpenedIs
from gateway.fhir.resource import parse
from gateway.fhir.search_opened import Opened
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.store.journal import PLACES, VersionRow

_AT_ONCE = 500


class Opening:
    """The resources opened for one search."""

    def __init__(self, node: Node, caller: Caller, connection: apsw.Connection) -> None:
        self._node = node
        self._caller = caller
        self._connection = connection
        self._opened = Opened(node.extractor.plans)
        self._known: dict[int, Mapping[str, Any] | None] = {}

    def answer(self, rows: Sequence[VersionRow], asked: OpenedIs) -> Iterable[int]:
        """The ``seq`` of those that meet the predicate; of what they contain, the number it stands under in the index.

        Raises as ``Versions.open_many`` does.
        """
        reads = self._opened.reader(asked)
        missing = [row for row in rows if row.seq not in self._known]
        for start in range(0, len(missing), _AT_ONCE):
            self._open(missing[start:start + _AT_ONCE])
        known = [(row.seq, found) for row in rows if (found := self._known[row.seq]) is not None]
        if asked.contained:
            return [-(seq * PLACES + place) for seq, found in known
                    for place, one in enumerate(found.get("contained", ()), 1)
                    if one.get("resourceType") == asked.type and reads(one)]
        return [seq for seq, found in known if reads(found)]

    def _open(self, rows: Sequence[VersionRow]) -> None:
        gate = self._node.gate
        seen = [row for row in rows if not isinstance(
            gate.decide_version(self._connection, self._caller, "s", row), Deny)]
        self._known.update(dict.fromkeys([row.seq for row in rows]))
        opened = (self._node.versions.open_kept(self._connection, seen) or {}) if seen else {}
        self._known.update((seq, parse(one.stored)) for seq, one in opened.items())
