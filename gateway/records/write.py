"""create, update and delete: validated, decided, sealed, and committed in one durable step.

Owns the order of ``paths.md`` Write and what a precondition means; refuses to acknowledge before the commit.
https://hl7.org/fhir/R4/http.html#create
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import apsw

from gateway import audit
from gateway.access import verification
from gateway.access.decision import Decision, Deny, Permit
from gateway.access.facts import ResourceFacts, facts_of
from gateway.access.marks import NOTICE
from gateway.audit import SealedRow
from gateway.errors import (
    Conflict,
    Forbidden,
    GatewayError,
    Invalid,
    Issue,
    Malformed,
    MethodNotAllowed,
    Moved,
    NotFound,
    PreconditionFailed,
    Unavailable,
    Unprocessable,
)
from gateway.fhir.home import home_patients
from gateway.fhir.resource import Resource, canonical, copy, parse, reference_target, references, stamp
from gateway.records import aside
from gateway.records import references as integrity
from gateway.records.gate import Caller, refusal
from gateway.records.node import Hook, Node, still
from gateway.records.references import Links, Target
from gateway.records.versions import Draft
from gateway.store import journal
from gateway.store.journal import NewVersion, VersionRow
from gateway.store.sql import now_ms

T = TypeVar("T")
_ETAG = re.compile(r'(?:W/)?"([^"]*)"')

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


def expected_versions(header: str | None) -> tuple[int, ...] | None:
    """Version ids of an If-Match header (weak or strong ETags, a list); none for ``*`` (any); None without a header.

    Raises Malformed on anything else.
    """
    if header is None:
        return None
    if header.strip() == "*":
        return ()
    found = []
    for part in header.split(","):
        match = _ETAG.fullmatch(part.strip())
        if match is None:
            raise Malformed(f"If-Match {header!r} is not an ETag", code="value", expression="http.If-Match")
        # No version has an id of 16 digits; int() refuses a text of thousands.
        found.append(int(match[1]) if match[1].isdecimal() and len(match[1]) < 16 else 0)
    return tuple(found)


def validated(node: Node, resource: Resource, type_: str | None, expression: str | None = None) -> None:
    """Refuse a resource that breaks R4, or whose references dangle. Raises Invalid, Unprocessable."""
    issues = [issue for issue in node.validator.validate(resource, expected_type=type_)
              if issue.severity in ("error", "fatal")]
    if issues:
        raise Invalid([_below(issue, resource, expression) for issue in issues])
    inside = _full_urls(resource)
    dangling = []
    for path, target in references(resource):
        text = target["reference"]
        if text.startswith("urn:uuid:") and text not in inside:
            dangling.append(Issue("error", "not-found", f"{text} can be resolved in a bundle only",
                                  f"{path}.reference"))
        elif "?" in text and reference_target(text).kind == "query":
            # Stored as it stands it would name no patient, and so ask none (R4: a server resolves it, or refuses).
            dangling.append(Issue("error", "not-supported", "a conditional reference is resolved in a transaction only",
                                  f"{path}.reference"))
    if dangling:
        raise Unprocessable([_below(issue, resource, expression) for issue in dangling])


def _full_urls(resource: Resource) -> frozenset[str]:
    """What references inside a stored Bundle, a document say, may name: the fullUrls of its entries."""
    if resource["resourceType"] != "Bundle":
        return frozenset()
    return frozenset(entry["fullUrl"] for entry in resource.get("entry", ()) if "fullUrl" in entry)


def _below(issue: Issue, resource: Resource, expression: str | None) -> Issue:
    if expression is None:
        return issue
    tail = (issue.expression or "").removeprefix(str(resource.get("resourceType")))
    return replace(issue, expression=f"{expression}.resource{tail}")


def draft(node: Node, caller: Caller, resource: Resource, id_: str) -> Draft:
    """Facts for deciding and indexing, of a validated resource that is to live under ``id_``."""
    return drafted(node, resource, id_, client=caller.grant.client_id, user=caller.grant.user)


def drafted(node: Node, resource: Resource, id_: str, *, client: str, user: str | None) -> Draft:
    """The same for an author by name."""
    placed = {**resource, "id": id_}
    homes = home_patients(placed, node.definitions.home_paths, base=node.settings.base_url)
    access = facts_of(placed, homes, author_client=client, author_user=user, base=node.settings.base_url)
    hashed = frozenset(str(node.index.category(token)) for token in access.categories)
    generation = node.parameters.generation  # read before the facts are: they may be newer, never older
    return Draft(resource=resource, access=replace(access, categories=hashed), search=node.extractor.facts(placed),
                 generation=generation)


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


def require_match(row: VersionRow, expected: tuple[int, ...] | None) -> None:
    """Raises PreconditionFailed when the stored version is none of those expected."""
    if expected is not None and (row.vid not in expected if expected else row.deleted):
        raise PreconditionFailed(f"If-Match: {row.type}/{row.id} is at version {row.vid}")


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


class Refused(Exception):  # control flow: becomes the requester's answer once it is audited
    """A denial on its way to the audit and then to the requester."""

    def __init__(self, decision: Deny, facts: ResourceFacts, type_: str, *, placed: str | None = None,
                 absent: Exception | None = None, visible: bool = False, others: tuple[str, ...] = ()) -> None:
        self.patients = tuple(dict.fromkeys((*facts.home_patients, *others)))
        self.decision = decision
        self.facts = facts
        self.type = type_
        self.placed = placed
        self.absent = absent
        self.visible = visible

    def answer(self) -> Exception:
        """What absent would look like: an unknown reference for a create, 404 for a known place."""
        if self.decision.kind != "permission":
            return refusal(self.decision, self.type)
        if self.visible:
            return Forbidden(f"{self.placed} may be read, not changed, with this token")
        if self.placed is not None:
            return self.absent or NotFound(f"{self.placed} is not known")
        if not self.facts.home_patients:
            return Forbidden(f"this role may not write {self.type}")
        return Unprocessable([Issue("error", "not-found", f"{reference} is not known", self.type)
                              for reference in self.facts.home_patients])


class Answered(Refused):
    """A refusal of what was permitted, with an answer of its own: what it tells of a record is audited first."""

    def __init__(self, reason: str, facts: ResourceFacts, told: Exception, *, others: tuple[str, ...] = ()) -> None:
        super().__init__(Deny("permission", reason), facts, facts.type, others=others,
                         placed=f"{facts.type}/{facts.id}" if facts.id else None)
        self._told = told

    def answer(self) -> Exception:
        """See Refused."""
        return self._told


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


async def audited_refusal(node: Node, caller: Caller, refused: Refused, interaction: str, name: str) -> Exception:
    """Make the refusal durable in the audit; the answer to raise.

    A patient nobody here knows gets no keys for it: naming many would fill the key store, and the time would tell.
    """
    known = [reference for reference in refused.patients
             if journal.patient_pk(node.database.reader, reference.removeprefix("Patient/")) is not None]
    rows = node.gate.entries(caller, interaction, name, refused.decision, patients=known,
                             what=(refused.placed or refused.type,))
    await node.commits.commit(lambda tx: audit.append(tx, rows))
    return refused.answer()


async def create(node: Node, caller: Caller, type_: str, resource: Resource, *, hook: Hook | None = None) -> Written:
    """Store a new resource under an id of ours."""
    id_, apart = str(uuid.uuid4()), aside.large(resource)
    made = await aside.done(apart, lambda: _checked(node, caller, resource, type_, id_))
    return _stored(await _carried_out(node, caller, "c", "create", hook,
                                      lambda now: prepare_create(node, now, node.database.reader, made, id_),
                                      apart=apart))


def _checked(node: Node, caller: Caller, resource: Resource, type_: str, id_: str) -> Draft:
    validated(node, resource, type_)
    return draft(node, caller, resource, id_)


async def update(node: Node, caller: Caller, type_: str, id_: str, resource: Resource, *, if_match: str | None,
                 if_none_match: str | None = None, hook: Hook | None = None) -> Written:
    """Store the next version under ``id_``. Raises PreconditionFailed, MethodNotAllowed, Invalid."""
    if resource.get("id") != id_:
        raise Malformed(f"the resource's id must be {id_!r}, as in the URL", code="invalid",
                        expression=f"{type_}.id")
    expected = expected_versions(if_match)
    apart = aside.large(resource) or journal.envelope_bytes(node.database.reader, type_, id_) > aside.BYTES
    made = await aside.done(apart, lambda: _checked(node, caller, resource, type_, id_))

    def prepare(now: Caller) -> Prepared:
        row = journal.current(node.database.reader, type_, id_)
        return prepare_update(node, now, node.database.reader, made, id_, row, expected,
                              only_new=if_none_match is not None)

    return _stored(await _carried_out(node, caller, "u", "update", hook, prepare, apart=apart))


def _stored(written: Written | None) -> Written:
    assert written is not None  # noqa: S101  # only a deletion may find nothing to do
    return written


async def delete(node: Node, caller: Caller, type_: str, id_: str, *, if_match: str | None,
                 hook: Hook | None = None) -> Written | None:
    """Delete; None when there was nothing. Idempotent."""
    expected = expected_versions(if_match)
    return await _carried_out(
        node, caller, "d", "delete", hook,
        lambda now: prepare_delete(node, now, node.database.reader, type_, id_,
                                   journal.current(node.database.reader, type_, id_), expected))


async def _carried_out(node: Node, caller: Caller, interaction: str, name: str, hook: Hook | None,
                       prepare: Callable[[Caller], Prepared], *, apart: bool = False) -> Written | None:
    async def attempt(caller: Caller) -> Written | None:
        try:
            prepared = await aside.done(apart, lambda: prepare(caller))
        except Refused as refused:
            raise await audited_refusal(node, caller, refused, interaction, name) from None

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            commit_prepared(connection, prepared, hook)

        try:
            await aside.committed(node, aside.large_version(prepared.new), work)
        except Refused as refused:
            raise await audited_refusal(node, caller, refused, interaction, name) from None
        return prepared.written
    return await node.decided(caller, attempt)

