"""The SearchParameter resources one process searches by.

Owns when a process learns of one, and the plans made of it; refuses to search by one that the index does not hold yet,
so that a part is never taken for the whole. https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import apsw

from gateway.crypto.job_part import unseal
from gateway.crypto.keys import KeyRing
from gateway.errors import GatewayError
from gateway.fhir import search_custom
from gateway.fhir.definitions import Definitions
from gateway.fhir.resource import parse
from gateway.fhir.search import SearchExtractor
from gateway.fhir.search_custom import Custom
from gateway.fhir.search_plan import OPENED, Plan
from gateway.store import journal
from gateway.store import search_parameters as stored
from gateway.store.search_parameters import ParameterRow
from gateway.store.sql import Database

LOG = logging.getLogger("gateway.search")


@dataclass(frozen=True, slots=True)
class InUse:
    """One parameter as this process knows it."""

    id: str
    made: int
    ready: bool
    custom: Custom


class Parameters:
    """What one process has adopted into its plans; ``generation`` is the one these are of."""

    def __init__(self, *, database: Database, extractor: SearchExtractor, definitions: Definitions,
                 ring: KeyRing) -> None:
        self._database = database
        self._extractor = extractor
        self._definitions = definitions
        self._ring = ring
        self._seen = -1
        self._lock = threading.Lock()
        self.generation = 0
        self.known: tuple[InUse, ...] = ()

    def follow(self, seq: int) -> None:
        """Be at least as new as ``decision_seq`` says; costs a comparison where nothing moved."""
        if seq != self._seen:
            with self._lock:
                self._read(self._database.reader)

    def _read(self, connection: apsw.Connection) -> None:
        """All of one moment; of the moment of a snapshot, where this thread holds one."""
        within = contextlib.nullcontext(connection) if connection.in_transaction else self._database.snapshot()
        with within:
            seen, now = journal.decision_seq(connection), stored.generation(connection)
            if now != self.generation:
                worded = self._extractor.plans.worded
                held = stored.words(connection) & self._extractor.kinds
                worded -= worded - held
                worded |= held & OPENED
                lacking = self._extractor.plans.lacking
                lacking |= self._extractor.kinds - held
                lacking -= held
                self._adopt(now, stored.rows(connection))
        self._seen = seen

    def _adopt(self, now: int, rows: Sequence[ParameterRow]) -> None:
        before = {(one.id, one.made): one for one in self.known}
        found = []
        for row in rows:
            known = before.get((row.id, row.made))
            try:
                custom = known.custom if known is not None else search_custom.read(
                    self._definitions, parse(unseal(self._ring, row.id, "search parameter", row.body)))
            except GatewayError:
                # Without it a search by it is refused; raising here would refuse every request there is.
                LOG.exception("a search parameter cannot be used")
                continue
            found.append(InUse(row.id, row.made, row.ready, custom))
        plans: dict[str, dict[str, Plan]] = {}
        for one in found:
            for type_, plan in one.custom.plans.items():
                plans.setdefault(type_, {})[one.custom.code] = plan if one.ready else replace(
                    plan, pending=True, refused=f"{one.custom.code} is still being indexed")
        self._extractor.plans.adopt(plans)
        self.known = tuple(found)
        self.generation = now

    @property
    def whole(self) -> bool:
        """Whether the index holds what every parameter finds."""
        return all(one.ready for one in self.known)
