"""Referential integrity: what a written resource refers to is here, and stays while it is referred to.

Owns which references are checked and against what; refuses alike a reference to what does not exist and to what the
caller may not see (invariant 4). https://hl7.org/fhir/R4/references.html

- Checked are literal references to this server that a write adds: relative, or under its own base; a versioned one to
  that version. A resource may keep what it referred to before. Not checked: references inside a stored Bundle, whose
  entries answer them; an AuditEvent's, which may tell of what never was; the grantees of a Consent, which are people
  and organizations of the registry.
- The caller's own person and this hospital are known to them without a resource, and whose record it is was decided
  already. This hospital's feed may refer to all that is here.
- A deletion is refused while something the caller may see refers to the resource. What they may not see cannot hold it
  up, or the refusal would tell of it; its reference then leads to a deletion, whose past versions stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from gateway.access.bound import is_feed
from gateway.access.decision import Deny
from gateway.access.marks import AUTHOR
from gateway.config import Settings
from gateway.errors import Issue, Moved
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import HashFact
from gateway.fhir.resource import ReferenceTarget, Resource, reference_target, references
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.versions import Draft
from gateway.store import journal
from gateway.store.journal import VersionRow

_UNCHECKED: Final = frozenset({"Bundle", "AuditEvent", "Parameters"})
_REFERRERS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Target:
    """What one reference names on this server; ``vid`` None: the present version. ``path``: where it stands."""

    path: str
    type: str
    id: str
    vid: int | None

    @property
    def name(self) -> str:
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What a write's references may lead to besides what is stored, and what they may not.

    ``checked`` False: an import, which brings records in any order. ``written``, ``deleted``: what the same
    transaction writes and takes away, as ``Type/id``.
    """

    checked: bool = True
    written: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    _known: dict[tuple[str, int | None], tuple[bool, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unknown:
    """References that lead nowhere for this caller: the issues, and the patients of what they may not see."""

    issues: tuple[Issue, ...]
    patients: tuple[str, ...]


def checked_types(settings: Settings, definitions: Definitions) -> frozenset[str]:
    """The types whose references are checked."""
    if settings.reference_integrity == "off":
        return frozenset()
    wanted = (definitions.resource_types if settings.reference_integrity == "on"
              else frozenset(settings.reference_integrity.split(",")) & definitions.resource_types)
    return wanted - _UNCHECKED


def targets(resource: Resource, base: str) -> Iterator[Target]:
    """Every literal reference of a resource that leads to this server."""
    for path, found in references(resource):
        if resource["resourceType"] == "Consent" and ".actor" in path:
            continue
        target = reference_target(found["reference"])
        if _is_here(target, base) and target.type is not None and target.id is not None:
            version = target.version
            yield Target(path, target.type, target.id, None if version is None else (
                int(version) if version.isdecimal() and len(version) < 16 else 0))


def _is_here(target: ReferenceTarget, base: str) -> bool:
    return target.kind == "relative" or (target.kind == "absolute" and target.base is not None
                                         and target.base.rstrip("/") == base)


def added(node: Node, caller: Caller, made: Draft, old: Resource | None, links: Links) -> list[Target]:
    """The references of a write that are to be checked."""
    type_ = made.access.type
    if not links.checked or not _checks(node, type_):
        return []
    base = node.settings.base_url
    kept = set() if old is None else {(one.name, one.vid) for one in targets(old, base)}
    given = {f"{type_}/{made.access.id}", *links.written}
    granted = {caller.grant.user, node.settings.hospital_reference}
    return [one for one in targets(made.resource, base) if one.name in links.deleted or not (
        (one.name, one.vid) in kept or one.name in given or (one.name in granted and one.vid is None))]


def _checks(node: Node, type_: str) -> bool:
    setting = node.settings.reference_integrity
    return setting != "off" and type_ not in _UNCHECKED and (setting == "on" or type_ in setting.split(","))


def unknown(node: Node, caller: Caller, connection: apsw.Connection, made: Draft, found: list[Target],
            links: Links) -> Unknown | None:
    """Those that lead nowhere for this caller; None: each leads to something they may refer to."""
    issues: list[Issue] = []
    patients: list[str] = []
    for one in found:
        if one.name in links.deleted:
            issues.append(Issue("error", "not-found", f"{one.name} is deleted in the same transaction", one.path))
            continue
        key = (one.name, one.vid)
        if key not in links._known:
            links._known[key] = _may_refer(node, caller, connection, one, made.access.home_patients)
        known, whose = links._known[key]
        if not known:
            patients += whose
            issues.append(Issue("error", "not-found", f"{one.name} is not known", one.path))
    return Unknown(tuple(issues), tuple(dict.fromkeys(patients))) if issues else None


def _may_refer(node: Node, caller: Caller, connection: apsw.Connection, target: Target,
               homes: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
    row = (journal.current(connection, target.type, target.id) if target.vid is None
           else journal.version(connection, target.type, target.id, target.vid))
    if row is None or row.deleted:
        return False, ()
    if is_feed(caller.grant) or target.name in homes or may_see(node, caller, connection, row):
        return True, ()
    return False, node.gate.patients(connection, row)


def may_see(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow) -> bool:
    """Whether the caller may read or find a version: then its being there is nothing new to them."""
    return any(not isinstance(node.gate.decide_version(connection, caller, letter, row), Deny) for letter in "rs")


def require_there(connection: apsw.Connection, found: tuple[Target, ...]) -> None:
    """Inside the commit: what a write refers to was not deleted meanwhile. Raises Moved."""
    for one in found:
        row = (journal.current(connection, one.type, one.id) if one.vid is None
               else journal.version(connection, one.type, one.id, one.vid))
        if row is None or row.deleted:
            raise Moved("a reference leads nowhere any more")


def referrers(node: Node, caller: Caller, connection: apsw.Connection, type_: str, id_: str, links: Links) -> int:
    """How many resources the caller may see refer to this one, at most ``_REFERRERS_MAX``; what this hospital says of
    it (a task, a signature) holds up nothing."""
    if not links.checked or node.settings.reference_integrity == "off":
        return 0
    own = f"{type_}/{id_}"
    facts = [HashFact(f"{name}.{code}", own) for name, code in _parameters(node, type_)]
    rows = node.index.current_with(connection, facts, limit=_REFERRERS_MAX)
    apart = links.written | links.deleted | {own}
    return sum(f"{row.type}/{row.id}" not in apart and row.client != AUTHOR and may_see(node, caller, connection, row)
               for row in rows)


def _parameters(node: Node, target: str) -> Iterator[tuple[str, str]]:
    """Every search parameter under which a checked type may refer to a ``target``."""
    for name in node.definitions.resource_types:
        if _checks(node, name):
            for code, parameter in node.definitions.search_parameters(name).items():
                if parameter.type == "reference" and (not parameter.targets or target in parameter.targets):
                    yield name, code


class Dangling:
    """What an import's references lead to that is not here: gathered as it goes on, asked again at its end."""

    _MOST: Final = 100_000

    def __init__(self) -> None:
        self._missing: dict[str, int] = {}

    def note(self, node: Node, resource: Mapping[str, Any]) -> None:
        """Take in one resource as it was sent."""
        if not _checks(node, str(resource.get("resourceType"))):
            return
        reader = node.database.reader
        for one in targets(dict(resource), node.settings.base_url):
            if one.name in self._missing:
                self._missing[one.name] += 1
            elif len(self._missing) < self._MOST and not _stored(reader, one.name):
                self._missing[one.name] = 1

    def found(self, node: Node) -> dict[str, int]:
        """Each target that is not here now, with how many references lead to it."""
        return missing(node, self._missing)


def missing(node: Node, names: Mapping[str, int]) -> dict[str, int]:
    """Those of ``names`` (``Type/id``) that are not here now."""
    return {name: count for name, count in names.items() if not _stored(node.database.reader, name)}


def _stored(connection: apsw.Connection, name: str) -> bool:
    type_, _, id_ = name.partition("/")
    row = journal.current(connection, type_, id_)
    return row is not None and not row.deleted
