"""``_include`` and ``_revinclude``: what the resources of a page refer to, and what refers to them.

Owns following links both ways at the page's snapshot, each included resource decided on its own; refuses to tell a
target that may not be seen from one that is not there, and to open more than a page bears.
https://hl7.org/fhir/R4/search.html#include

Everything here opens blocks: it keeps to the ``Pace`` of where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import apsw

from gateway.access.decision import Decision, Deny
from gateway.errors import BadSearch, Forbidden, Issue, TooCostly
from gateway.fhir.query import Criterion, Predicate, Query
from gateway.fhir.search_links import Canonical, Links, Literal
from gateway.fhir.search_results import Include
from gateway.records.gate import Caller, Viewing
from gateway.records.gathering import Opened, Permitted, open_all
from gateway.records.node import Node
from gateway.records.pace import Pace
from gateway.store import journal
from gateway.store.index import Cursor
from gateway.store.journal import VERSION_COLUMNS, VersionRow

MOST: Final = 1_000
"""Most resources included on one page."""
ROUNDS: Final = 32
"""Most steps away from a match that ``:iterate`` goes."""
REFERENCES_MAX: Final = 60_000
"""Most references that ``_revinclude`` asks the index for on one page."""
_AT_ONCE: Final = 5_000
_IDS_AT_ONCE: Final = 500
_CANONICALS_MAX: Final = 50
_OWN: Final = "AuditEvent"


@dataclass(slots=True)
class _Round:
    """What is being followed: the newest resources and the includes that apply to them."""

    frontier: Sequence[Opened]
    includes: Sequence[Include]
    wanted: dict[int, Permitted] = field(default_factory=dict)


def check(includes: Iterable[Include]) -> None:
    """Refuse what no include can answer: the audit's own events are in no index. Raises BadSearch."""
    if any(include.reverse and include.type == _OWN for include in includes):
        raise BadSearch("AuditEvents are not included: search AuditEvent?entity=", code="not-supported",
                        expression="http._revinclude")


class Including:
    """Follows the includes of one page."""

    def __init__(self, node: Node, caller: Caller, connection: apsw.Connection, snapshot: int, at: Pace) -> None:
        self._at = at
        self._node = node
        self._caller = caller
        self._connection = connection
        self._snapshot = snapshot
        self._links = Links(node.extractor.plans, node.settings.base_url)
        self._viewing: dict[str, Viewing] = {}
        self._seen: set[int] = set()
        self._left = MOST
        self._references = 0
        self.issues: list[Issue] = []

    def of(self, matches: Sequence[Opened], includes: Sequence[Include]) -> list[Opened]:
        """What the page includes besides its matches, each resource once, in the order found. Raises TooCostly."""
        self._seen = {one.found.row.seq for one in matches}
        found: list[Opened] = []
        frontier, applying = matches, includes
        for _ in range(ROUNDS):
            step = _Round(frontier, applying)
            self._forward(step)
            self._reverse(step)
            wanted = list(step.wanted.values())
            frontier = open_all(self._node, self._connection, wanted, self._at)
            found += frontier
            applying = [include for include in includes if include.iterate]
            if not frontier or not applying or self._left <= 0:
                return found
        self._warn(f"resources more than {ROUNDS} steps away are not included")
        return found

    def _warn(self, text: str) -> None:
        issue = Issue("warning", "too-costly", text)
        if issue not in self.issues:
            self.issues.append(issue)

    def _take(self, step: _Round, row: VersionRow) -> bool:
        """Include a version if it may be seen; False when the page is full."""
        if row.seq in self._seen:
            return True
        decision = self._decided(row)
        if isinstance(decision, Deny):
            return True
        if self._left <= 0:
            self._warn(f"more than {MOST} resources are to be included; this page holds that many: ask for a smaller "
                       "_count, or search for them")
            return False
        self._at.open(1)
        self._left -= 1
        self._seen.add(row.seq)
        step.wanted[row.seq] = Permitted(row, decision, Cursor(None, row.seq))
        return True

    def _decided(self, row: VersionRow) -> Decision:
        if row.superseded is not None:
            return self._node.gate.decide_version(self._connection, self._caller, "s", row)
        viewing = self._viewing.get(row.type)
        if viewing is None:
            viewing = self._viewing[row.type] = self._node.gate.viewing(self._connection, self._caller, row.type)
        return viewing.decide(self._node.gate.facts(self._connection, row), row.seq)

    def _forward(self, step: _Round) -> None:
        includes = [include for include in step.includes if not include.reverse]
        if not includes:
            return
        targets: dict[Literal | Canonical, None] = {}
        for one in step.frontier:
            if any(include.type in (None, one.found.row.type) for include in includes):
                self._at.parse(len(one.stored))
                targets.update(dict.fromkeys(self._links.forward(one.resource, includes)))
        for row in self._rows(targets):
            if not self._take(step, row):
                return

    def _rows(self, targets: Iterable[Literal | Canonical]) -> Iterator[VersionRow]:
        by_type: dict[str, list[str]] = {}
        versioned: list[Literal] = []
        canonicals: list[Canonical] = []
        for target in targets:
            if isinstance(target, Canonical):
                canonicals.append(target)
            elif target.version is not None:
                versioned.append(target)
            else:
                by_type.setdefault(target.type, []).append(target.id)
        for type_, ids in by_type.items():
            yield from self._present(type_, ids)
        for target in versioned:
            yield from self._version(target)
        if len(canonicals) > _CANONICALS_MAX:
            self._warn(f"more than {_CANONICALS_MAX} canonical urls are not followed on one page")
        for canonical in canonicals[:_CANONICALS_MAX]:
            yield from self._canonical(canonical)

    def _present(self, type_: str, ids: Sequence[str]) -> Iterator[VersionRow]:
        """The versions of these ids at the snapshot, in their order."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start:start + _IDS_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = {str(row[2]): VersionRow(*row) for row in self._connection.execute(
                f"SELECT {VERSION_COLUMNS} FROM version v INDEXED BY version_place "  # noqa: S608
                f"WHERE v.type=? AND v.id IN ({marks}) AND v.seq<=? "
                "AND (v.superseded IS NULL OR v.superseded>?) AND v.deleted=0",
                (type_, *some, self._snapshot, self._snapshot))}
            yield from (rows[id_] for id_ in some if id_ in rows)

    def _version(self, target: Literal) -> Iterator[VersionRow]:
        text = target.version or ""
        vid = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
        row = journal.version(self._connection, target.type, target.id, vid)
        if row is not None and row.seq <= self._snapshot and not row.deleted:
            yield row

    def _canonical(self, canonical: Canonical) -> Iterator[VersionRow]:
        """What a canonical names: the latest stored of what may be seen, of any type it may have."""
        for type_ in canonical.types:
            found = list(self._permitted(type_, self._links.canonical_criteria(type_, canonical), 100))
            yield from found[-1:]

    def _permitted(self, type_: str, criteria: tuple[Criterion, ...], limit: int) -> Iterator[VersionRow]:
        """What may be seen of a type at the snapshot; nothing of one outside the token's scopes."""
        try:
            bound = self._node.gate.bound(self._connection, self._caller, type_)
        except Forbidden:
            return
        query = Query(type=type_, criteria=criteria)
        for match in self._node.index.search(self._connection, query, bound, snapshot=self._snapshot, limit=limit):
            yield match.row

    def _reverse(self, step: _Round) -> None:
        includes = [include for include in step.includes if include.reverse]
        if not includes:
            return
        references: dict[str, list[str]] = {}
        for one in step.frontier:
            references.setdefault(one.found.row.type, []).append(one.found.reference)
        for type_, predicates in self._pointing(includes, references).items():
            for start in range(0, len(predicates), _AT_ONCE):
                criteria = (Criterion(tuple(predicates[start:start + _AT_ONCE])),)
                # What is here already is found again: so many more are asked for than the page has room for.
                for row in self._permitted(type_, criteria, self._left + len(self._seen) + 1):
                    if not self._take(step, row):
                        return

    def _pointing(self, includes: Sequence[Include],
                  references: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[Predicate]]:
        """For each type that may refer to the frontier: any of these facts."""
        found: dict[str, dict[Predicate, None]] = {}
        for include in includes:
            targets = [reference for type_, some in references.items() if include.target in (None, type_)
                       for reference in some]
            types = [include.type] if include.type is not None else self._others()
            for type_ in types if targets else ():
                predicates = self._links.pointing(type_, include.code, targets)
                self._references += len(predicates)
                if self._references > REFERENCES_MAX:
                    raise TooCostly(f"_revinclude would look for more than {REFERENCES_MAX} references; ask for a "
                                    "smaller _count or name the parameters", code="too-costly",
                                    expression="http._revinclude")
                found.setdefault(type_, {}).update(dict.fromkeys(predicates))
        return {type_: list(predicates) for type_, predicates in found.items()}

    def _others(self) -> Sequence[str]:
        """The types that may hold references: those stored, but the audit's."""
        return [type_ for type_ in stored_types(self._node, self._connection) if type_ != _OWN]


def stored_types(node: Node, connection: apsw.Connection) -> list[str]:
    """Resource types of which anything was ever stored."""
    return [type_ for type_ in sorted(node.definitions.resource_types) if connection.execute(
        "SELECT 1 FROM version WHERE type=? LIMIT 1", (type_,)).get is not None]
