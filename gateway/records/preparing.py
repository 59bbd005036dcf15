"""A write decided and sealed, ready for its commit, and the commit of one.

Owns the order of a create, an update and a deletion once the resource is drafted: the rules of its type, the decision
on what is stored and on what would be, preconditions, references, sealing. Refuses by ``refusals.py``, so that whoever
carries the write out makes it durable in the audit. https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import apsw

from gateway import audit
from gateway.access import verification
from gateway.access.decision import Decision, Deny, Permit
from gateway.access.facts import ResourceFacts
from gateway.access.marks import NOTICE
from gateway.audit import SealedRow
from gateway.errors import (
    Conflict,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    Moved,
    PreconditionFailed,
    Unavailable,
    Unprocessable,
)
from gateway.fhir.resource import Resource, canonical, copy, parse, reference_target, references, stamp
from gateway.records import references as integrity
from gateway.records.drafting import draft
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node
from gateway.records.preconditions import require_match
from gateway.records.references import Links, Target
from gateway.records.refusals import Answered, Refused
from gateway.records.versions import Draft
from gateway.store import journal
from gateway.store.journal import NewVersion, VersionRow
from gateway.store.sql import now_ms

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write: the version now current, its exact bytes, and whether anything was stored."""

    type: str
    id: str
    vid: int
    updated_ms: int
    stored: bytes
    created: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """A write ready for its commit; ``hook`` is what its type wants done in the same transaction.

    ``new`` None: nothing to store, ``rows`` alone. ``written`` None: as if there had been nothing. ``targets``: what it
    refers to, which must still be there.
    """

    new: NewVersion | None
    written: Written | None
    rows: tuple[SealedRow, ...]
    hook: Hook | None = None
    targets: tuple[Target, ...] = ()


def prepare_create(node: Node, caller: Caller, connection: apsw.Connection, made: Draft, id_: str, *,
                   links: Links | None = None) -> Prepared:
    """Decide and seal a new resource. Raises Refused (not permitted; a reference to what is not known)."""
    time = now_ms()
    made = _settled(node, caller, None, made, id_)
    decision = node.gate.decide(connection, caller, "c", proposed=made.access,
                                proposed_matcher=node.gate.proposed_matcher(made.search, id_, time))
    if isinstance(decision, Deny):
        raise Refused(decision, made.access, made.resource["resourceType"])
    return _sealed(node, caller, made, id_, 1, time, decision, "create", created=True,
                   hook=_type_hook(node, caller, None, made, id_),
                   targets=_known_targets(node, caller, connection, None, made, links))


def _known_targets(node: Node, caller: Caller, connection: apsw.Connection, old: Resource | None, made: Draft,
                   links: Links | None) -> tuple[Target, ...]:
    """What a permitted write refers to. Raises Answered naming the references that lead nowhere for the caller."""
    links = links or Links()
    found = integrity.added(node, caller, made, old, links)
    nowhere = integrity.unknown(node, caller, connection, made, found, links) if found else None
    if nowhere is None:
        return tuple(found)
    raise Answered("a reference leads to what is not known", made.access, Unprocessable(nowhere.issues),
                   others=nowhere.patients)


def _settled(node: Node, caller: Caller, old: Resource | None, made: Draft, id_: str) -> Draft:
    """``made`` with the marks that are this hospital's to give, and as the rules of its type complete it."""
    resource = verification.settled(made.resource, old, caller.grant, node.settings.verified_types)
    rules = node.rules.get(made.access.type)
    if rules is not None and rules.settle is not None:
        resource = rules.settle(node, caller, old, resource)
    return made if resource is made.resource else draft(node, caller, resource, id_)


def _type_hook(node: Node, caller: Caller, old: Resource | None, made: Draft, id_: str, *,
               before: tuple[str, ...] = ()) -> Hook | None:
    """What the rules of the type want done in the commit. What they refuse, then or there, is audited as a refusal."""
    rules = node.rules.get(made.access.type)
    if rules is None:
        return None
    hook = _ruled(made.access, before, lambda: rules.check_write(node, caller, old, {**made.resource, "id": id_}))
    return None if hook is None else lambda tx: _ruled(made.access, before, lambda: hook(tx))


def _ruled(facts: ResourceFacts, others: tuple[str, ...], work: Callable[[], T]) -> T:
    """Do ``work`` of a type's rules. Raises Answered in place of what it refuses."""
    try:
        return work()
    except (Moved, Unavailable):
        raise
    except GatewayError as error:
        raise Answered("the rules of its type", facts, error, others=others) from error


def prepare_update(node: Node, caller: Caller, connection: apsw.Connection, made: Draft, id_: str,
                   row: VersionRow | None, expected: tuple[int, ...] | None, *, only_new: bool = False,
                   links: Links | None = None) -> Prepared:
    """Decide and seal the next version of ``row``, or the first (``only_new``: no other). Raises as preconditions say.

    SMART: the update scope also covers an update that creates, so existence decides nothing about scopes.
    """
    type_ = made.resource["resourceType"]
    time = now_ms()
    if row is None:
        absent = _absent(node, type_, id_, expected)
        made = _settled(node, caller, None, made, id_)
        decision = node.gate.decide(connection, caller, "u", proposed=made.access,
                                    proposed_matcher=node.gate.proposed_matcher(made.search, id_, time))
        if absent is not None and not isinstance(decision, Deny):
            decision = Deny("permission", "there is nothing to update")
        elif isinstance(decision, Permit) and decision.basis != "feed":
            # An id that is taken by what the caller may not see cannot be given twice. Were a free one taken, the
            # answers would tell which ids there are: they look the same, and only the feed chooses ids.
            decision = Deny("permission", "an id of one's own choosing is for the feed alone")
        if isinstance(decision, Deny):
            raise Refused(decision, made.access, type_, placed=f"{type_}/{id_}", absent=absent)
        return _sealed(node, caller, made, id_, 1, time, decision, "update", created=True,
                       hook=_type_hook(node, caller, None, made, id_),
                       targets=_known_targets(node, caller, connection, None, made, links))
    before = node.gate.facts(connection, row)
    stored = None if row.deleted else node.versions.open(connection, row).stored
    old = None if stored is None else parse(stored)
    made = _settled(node, caller, old, made, id_)
    only_labels = old is not None and _content(old, "security") == _content(
        stamp(made.resource, id_, row.vid, row.updated_ms), "security")
    only_move = old is not None and _only_moved(before, made, old, id_, node.settings.base_url)
    decision = node.gate.decide(
        connection, caller, "u", stored=before, proposed=made.access,
        stored_matcher=node.gate.stored_matcher(connection, row.seq),
        proposed_matcher=node.gate.proposed_matcher(made.search, id_, time), only_labels=only_labels,
        only_move=only_move)
    if isinstance(decision, Deny):
        raise Refused(decision, before, type_, placed=f"{type_}/{id_}", absent=_absent(node, type_, id_, expected),
                      visible=_visible(node, caller, connection, row, before), others=made.access.home_patients)
    require_match(row, expected)
    if only_new and not row.deleted:
        raise PreconditionFailed(f"If-None-Match: {type_}/{id_} exists")
    if old is not None and stored is not None and _content(old) == _content(stamp(made.resource, id_, 0, 0)):
        return Prepared(None, Written(type_, id_, row.vid, row.updated_ms, stored, False, False),
                        node.gate.entries(caller, "u", "update", decision, patients=before.home_patients,
                                          what=(f"{type_}/{id_}/_history/{row.vid}",)))
    return _sealed(node, caller, made, id_, row.vid + 1, time, decision, "update", created=row.deleted,
                   hook=_type_hook(node, caller, old, made, id_, before=before.home_patients),
                   before=before.home_patients,
                   # Who labels or moves a record does not become its author, and so allowed to change it.
                   author=(row.client, row.user) if only_labels or only_move or before.labels & NOTICE else None,
                   targets=_known_targets(node, caller, connection, old, made, links))


def prepare_delete(node: Node, caller: Caller, connection: apsw.Connection, type_: str, id_: str,
                   row: VersionRow | None, expected: tuple[int, ...] | None, *, links: Links | None = None) -> Prepared:
    """Decide and seal a deletion; its audit alone when there is nothing (left) to delete. Raises Forbidden.

    Deleting what is not there is no error (https://hl7.org/fhir/R4/http.html#delete), and neither is deleting what
    the requester cannot see: it is audited, and stays.
    """
    place = f"{type_}/{id_}"
    if row is None:
        # The same durable row as for what is not permitted, so that time tells nothing either.
        try:
            node.gate.require_scope(caller, type_, "d")
        except Forbidden as error:
            nowhere = ResourceFacts(type=type_, id=id_, home_patients=(), author_client="", author_user=None)
            raise Refused(Deny("scope", str(error)), nowhere, type_, placed=place) from error
        return Prepared(None, None, node.gate.entries(caller, "d", "delete", None, what=(place,), patients=(),
                                                      outcome="4"))
    before = node.gate.facts(connection, row)
    decision = node.gate.decide(connection, caller, "d", stored=before,
                                stored_matcher=node.gate.stored_matcher(connection, row.seq))
    if isinstance(decision, Deny):
        if decision.kind != "permission" or _visible(node, caller, connection, row, before):
            raise Refused(decision, before, type_, placed=place, visible=True)
        return Prepared(None, None, node.gate.entries(caller, "d", "delete", decision, patients=before.home_patients,
                                                      what=(place,)))
    if row.deleted:
        return Prepared(None, None, node.gate.entries(caller, "d", "delete", decision, patients=before.home_patients,
                                                      what=(f"{place}/_history/{row.vid}",)))
    require_match(row, expected)
    rules, hook = node.rules.get(type_), None
    if rules is not None:
        deletion = rules.check_deletion
        hook = _ruled(before, (), lambda: deletion(node, connection, row))
    among = links or Links()
    count = integrity.referrers(node, caller, connection, type_, id_, among)
    if count:
        raise Answered("it is referred to", before, Conflict(
            f"{place} is referred to by {count} resource{'s' if count > 1 else ''}: delete or change them first"))

    def unreferenced(tx: apsw.Connection) -> None:
        if integrity.referrers(node, caller, tx, type_, id_, among):
            raise Moved("a reference to what is deleted was written meanwhile")
        if hook is not None:
            hook(tx)

    new = node.versions.seal_deletion(before, vid=row.vid + 1, updated_ms=now_ms(), client=caller.grant.client_id,
                                      user=caller.grant.user)
    entries = node.gate.entries(caller, "d", "delete", decision, patients=before.home_patients,
                                what=(f"{type_}/{id_}/_history/{new.vid}",))
    return Prepared(new, Written(type_, id_, new.vid, new.updated_ms, b"", False, True), entries, unreferenced)


def _absent(node: Node, type_: str, id_: str, expected: tuple[int, ...] | None) -> Exception | None:
    """What an update of an id never used is answered, whatever it holds; None: it may create."""
    if expected is not None:
        return PreconditionFailed(f"If-Match: {type_}/{id_} does not exist")
    if not node.settings.update_creates:
        return MethodNotAllowed(f"{type_}/{id_} does not exist, and this server gives out ids itself")
    return None


def _visible(node: Node, caller: Caller, connection: apsw.Connection, row: VersionRow, facts: ResourceFacts) -> bool:
    """Whether the requester may read what they may not change: then a refusal can be called one."""
    return not isinstance(node.gate.decide(connection, caller, "r", stored=facts,
                                           stored_matcher=node.gate.stored_matcher(connection, row.seq)), Deny)


def _sealed(node: Node, caller: Caller, made: Draft, id_: str, vid: int, time: int, decision: Decision, name: str, *,
            created: bool, hook: Hook | None, targets: tuple[Target, ...], before: tuple[str, ...] = (),
            author: tuple[str, str | None] | None = None) -> Prepared:
    """``before``: the home patients of the version replaced, who are told even when it is no longer theirs.

    ``author``: whose the content is, where that is not the caller.
    """
    if made.generation != node.parameters.generation:
        made = replace(made, search=node.extractor.facts({**made.resource, "id": id_}))
    client, user = author or (caller.grant.client_id, caller.grant.user)
    new, stored = node.versions.seal(made, id_=id_, vid=vid, updated_ms=time, client=client, user=user)
    entries = node.gate.entries(caller, "c" if created else "u", name, decision,
                                patients=tuple(dict.fromkeys((*before, *made.access.home_patients))),
                                what=(f"{new.type}/{id_}/_history/{vid}",))
    return Prepared(new, Written(new.type, id_, vid, time, stored, created, True), entries, hook, targets)


def _only_moved(before: ResourceFacts, made: Draft, old: Resource, id_: str, base: str) -> bool:
    """Whether the update changes nothing but which patients the record is about."""
    homes = {*before.home_patients, *made.access.home_patients}
    if set(before.home_patients) == set(made.access.home_patients) or made.access.type == "Patient":
        return False

    def without_patient(resource: Resource) -> Resource:
        found: Resource = copy(resource)
        for _, reference in references(found):
            target = reference_target(reference["reference"])
            here = target.kind == "relative" or (target.base or "").rstrip("/") == base
            if here and f"{target.type}/{target.id}" in homes:
                reference["reference"] = "Patient"
        return found
    return _content(without_patient(old)) == _content(stamp(without_patient(made.resource), id_, 0, 0))


def _content(resource: Resource, *beside: str) -> bytes:
    """What two versions are compared by: the resource without the server's stamp (and the meta ``beside``)."""
    meta = {key: value for key, value in resource.get("meta", {}).items()
            if key not in ("versionId", "lastUpdated", *beside)}
    return canonical({**resource, "meta": meta})


def commit_prepared(connection: apsw.Connection, prepared: Prepared, hook: Hook | None = None) -> None:
    """Append one prepared write and its audit rows inside the open transaction. Raises Moved."""
    integrity.require_there(connection, prepared.targets)
    if prepared.new is not None:
        try:
            journal.append(connection, prepared.new)
        except Conflict as error:
            raise Moved(str(error)) from error
    for work in (prepared.hook, hook):
        if work is not None:
            work(connection)
    audit.append(connection, prepared.rows)
