"""One process's view of this hospital's node: the parts the interactions work with, made once at start.

Owns nothing but the bundle of parts; refuses to pick adapters (``app.py`` does).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import apsw

from gateway.access.typed_data import Domain
from gateway.audit import Disclosures
from gateway.config import Settings
from gateway.crypto.keys import KeyRing
from gateway.errors import Moved, StoreBusy
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource
from gateway.fhir.search import SearchExtractor, parse_query
from gateway.fhir.search_codes import Codes
from gateway.fhir.terminology_core import Library
from gateway.fhir.validate import Validator
from gateway.ledger.receipts import Proofs
from gateway.records import addresses
from gateway.records.gate import Caller, Gate
from gateway.records.paging import PageLinks
from gateway.records.parameters import Parameters
from gateway.records.versions import Versions
from gateway.store import journal
from gateway.store.index import Index
from gateway.store.journal import VersionRow
from gateway.store.sql import Database, GroupCommit, now_ms

T = TypeVar("T")
_ATTEMPTS = 32
"""Everyone of as many writers of one resource gets a turn: each round one of them wins."""


Hook = Callable[[apsw.Connection], None]
"""Work that belongs into the same commit as a version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeRules:
    """What writing one type must obey beyond R4: a Consent has a life of its own.

    ``check_write(node, caller, stored or None, proposed)`` raises what refuses it, or gives the work that belongs
    into its commit; ``check_deletion(node, connection, row)`` does so for a deletion. ``settle`` gives what is
    stored in place of what was sent, where one element follows from another; it refuses nothing.
    """

    check_write: Callable[[Node, Caller, Resource | None, Resource], Hook | None]
    check_deletion: Callable[[Node, apsw.Connection, VersionRow], Hook | None]
    settle: Callable[[Node, Caller, Resource | None, Resource], Resource] | None = None


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
    disclosures: Disclosures
    index: Index
    versions: Versions
    gate: Gate
    pages: PageLinks
    domain: Domain
    rules: Mapping[str, TypeRules]
    proofs: Proofs
    parameters: Parameters
    library: Library = field(default_factory=Library)
    codes: Codes | None = None
    """What ``:in`` and ``:below`` are answered from, where one caller's search has gathered it."""

    def query(self, type_: str, pairs: Sequence[tuple[str, str]], *, strict: bool, inside: bool = False) -> Query:
        """Read a type-level search; ``inside``: also of what others contain. Raises BadSearch."""
        rest, ours = addresses.parted(type_, pairs)
        query = parse_query(self.extractor.plans, type_, rest, strict=strict, own_bases=(self.settings.base_url,),
                            max_count=self.settings.max_page, now_ms=now_ms(), codes=self.codes, inside=inside)
        return addresses.narrowed(self.database.reader, query, pairs, ours) if ours else query

    def query_alone(self, type_: str, pairs: Sequence[tuple[str, str]]) -> Query:
        """Read criteria that one resource alone must tell. Raises BadSearch."""
        return parse_query(self.extractor.plans, type_, pairs, strict=True, own_bases=(self.settings.base_url,),
                           max_count=1, now_ms=now_ms(), alone=True)

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
