"""Reads and searches of one ``$graphql`` query, counted.

Owns what was read already; refuses more than ``FETCHES_MAX``. Each goes through ``read`` or ``search``, decided and
audited there. https://hl7.org/fhir/R4/graphql.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from gateway.errors import Forbidden, Gone, NotFound, TooCostly
from gateway.fhir.graphql_query import PLACE
from gateway.fhir.resource import Resource, parse
from gateway.records import audit_events, search
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.read import read

FETCHES_MAX: Final = 100
"""Most reads and searches of one query; a resource named twice is read once."""
OWN: Final = "AuditEvent"
"""The type whose resources are made when asked for."""
_THREAD_BYTES: Final = 65_536
_UNSEEN: Final = (NotFound, Gone, Forbidden)


class Fetches:
    """What one caller's query has read so far."""

    def __init__(self, node: Node, caller: Caller) -> None:
        self._node = node
        self._caller = caller
        self._left = FETCHES_MAX
        self._read: dict[tuple[str, str, int | None], Resource | None] = {}

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooCostly(f"$graphql: a query reads and searches {FETCHES_MAX} times at most", code="too-costly",
                            expression=PLACE)

    async def read(self, type_: str, id_: str, vid: int | None = None) -> Resource:
        """A resource the caller may read. Raises NotFound, Gone, Forbidden."""
        self._count()
        if type_ == OWN and audit_events.is_ours(id_):
            stored = await audit_events.read(self._node, self._caller, id_, vid)
        else:
            stored = (await read(self._node, self._caller, type_, id_, vid)).stored
        return parse(stored)

    async def known(self, type_: str, id_: str, vid: int | None = None) -> Resource | None:
        """The same, None where it may not be seen or is not there."""
        key = (type_, id_, vid)
        if key not in self._read:
            try:
                self._read[key] = await self.read(type_, id_, vid)
            except _UNSEEN:
                self._read[key] = None
        return self._read[key]

    async def searched(self, type_: str, pairs: Sequence[tuple[str, str]]) -> Resource:
        """The searchset of a type. Raises BadSearch, Forbidden, TooCostly."""
        self._count()
        if type_ == OWN:
            bundle = await audit_events.search(self._node, self._caller, pairs, strict=True)
        else:
            bundle = await search.search(self._node, self._caller, type_, pairs, strict=True)
        return parse(bundle) if len(bundle) < _THREAD_BYTES else await asyncio.to_thread(parse, bundle)
