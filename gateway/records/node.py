"""One process's view of this hospital's node: the parts the interactions work with, made once at start.

Owns nothing but the bundle of parts; refuses to pick adapters (``app.py`` does).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import apsw

from gateway.config import Settings
from gateway.crypto.keys import KeyRing
from gateway.errors import Conflict, StoreBusy
from gateway.fhir.definitions import Definitions
from gateway.fhir.search import SearchExtractor
from gateway.fhir.validate import Validator
from gateway.records.gate import Caller, Gate
from gateway.records.paging import PageLinks
from gateway.records.versions import Versions
from gateway.store import journal
from gateway.store.index import Index
from gateway.store.sql import Database, GroupCommit

T = TypeVar("T")
_ATTEMPTS = 8


class Moved(Conflict):
    """A revocation or another write was committed between decision and commit: decide again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything an interaction needs."""

    settings: Settings
    definitions: Definitions
    validator: Validator
    extractor: SearchExtractor
    ring: KeyRing
    database: Database
    commits: GroupCommit
    index: Index
    versions: Versions
    gate: Gate
    pages: PageLinks

    async def decided(self, caller: Caller, attempt: Callable[[Caller], Awaitable[T]]) -> T:
        """Run ``attempt``, which decides and commits; again, with the caller read anew, each time the world moved.

        Raises StoreBusy when it keeps moving.
        """
        for _ in range(_ATTEMPTS):
            try:
                return await attempt(caller)
            except Moved:
                caller = caller.again()
        raise StoreBusy("the record keeps changing; try again")


def still(connection: apsw.Connection, caller: Caller) -> None:
    """Inside the commit: no revocation came since the decision. Raises Moved."""
    if journal.decision_seq(connection) != caller.seq:
        raise Moved("a consent changed")
