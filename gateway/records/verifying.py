"""The head verifies records, or rejects them with a reason: a Task for each (of several patients, one for each of them,
which names them alone), a signed Provenance under each decision.

Owns the list of what waits (kept by the loop of ``notices.py``, off the request path), the life of those Tasks and what
a decision does, in one commit: the record's next version with its mark, the Provenance, the audit. Refuses a decision
about a version that is no longer the present one. What is rejected is data for nobody (``access/marks.py``).
https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/provenance.html
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from gateway import audit
from gateway.access.decision import Permit
from gateway.access.marks import AUTHOR, NOTICE, REJECTED, UNVERIFIED, VERIFYING, WITHHELD, marks_of, tag, tagged
from gateway.crypto import attestation
from gateway.errors import Conflict, Forbidden, IntegrityBroken, Moved, NotFound, Unprocessable
from gateway.fhir.resource import Resource, canonical, format_instant, parse
from gateway.records import drafting, write
from gateway.records.directory import ACCESS_REQUEST
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node, TypeRules
from gateway.records.notices import heads
from gateway.records.preparing import Written
from gateway.store import journal, search_parameters
from gateway.store.journal import NewVersion, VersionRow
from gateway.store.sql import now_ms

SYSTEM: Final = "urn:fhir-gateway:task"
RECORD, ACCOUNT = "verify-record", "verify-account"
_LOGIN: Final = "login"
_AT_ONCE: Final = 200
_OPEN: Final = frozenset({"requested", "received", "accepted", "in-progress", "on-hold"})
_ENDED: Final = frozenset({"completed", "rejected"})
_HEADS_OWN: Final = frozenset({"meta", "id", "status", "statusReason", "note", "owner", "lastModified", "text"})
_TEXTS: Final = {RECORD: "Verify this record, or reject it with a reason",
                 ACCOUNT: "Verify who this account belongs to, or reject it"}


def step(node: Node) -> int:
    """Bring the Tasks to what was written since the last look; how many changed. Blocking, and harmless twice."""
    connection = node.database.reader
    after, head = _cursor(connection), journal.head_seq(connection)
    changed = 0 if head <= after else _records(node, connection, after, head)
    return changed + _accounts(node, connection)


def _cursor(connection: apsw.Connection) -> int:
    return int(str(connection.execute("SELECT value FROM setting WHERE name='verifying_seq'").get))


def _records(node: Node, connection: apsw.Connection, after: int, head: int) -> int:
    rows = [journal.VersionRow(*row) for row in connection.execute(
        f"SELECT {journal.VERSION_COLUMNS} FROM version v WHERE v.seq>? AND v.seq<=? AND v.superseded IS NULL AND "  # noqa: S608
        f"((v.labels>={UNVERIFIED} AND v.labels & {NOTICE} = 0 AND v.deleted=0) OR EXISTS "
        "(SELECT 1 FROM verifying w WHERE w.type=v.type AND w.id=v.id)) ORDER BY v.seq LIMIT ?",
        (after, head, _AT_ONCE))]
    to = head if len(rows) < _AT_ONCE else rows[-1].seq
    if not rows and to - after < _AT_ONCE:
        return 0  # a short way is walked again rather than written down
    node.parameters.follow(journal.decision_seq(connection))
    generation = node.parameters.generation
    made = [(row, _tasks_for(node, connection, row)) for row in rows]

    def work(tx: apsw.Connection) -> None:
        tx.execute("UPDATE setting SET value=? WHERE name='verifying_seq' AND value=?", (to, after))
        if not tx.changes() or search_parameters.generation(tx) != generation:
            raise Conflict("another process listed these, or a search parameter came")
        for row, tasks in made:
            for task in tasks:
                journal.append(tx, task.version)
                tx.execute("DELETE FROM verifying WHERE task=?", (task.id,))
                if task.waits:
                    tx.execute("INSERT INTO verifying (type,id,patient,task) VALUES (?,?,?,?)",
                               (row.type, row.id, task.patient, task.id))
    try:
        node.database.transact(work)
    except Conflict:
        return 0
    return len(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Next:
    """The next version of one Task of a record. ``patient``: row id of whom it is for, 0: nobody."""

    id: str
    patient: int
    version: NewVersion
    waits: bool


def _tasks_for(node: Node, connection: apsw.Connection, row: VersionRow) -> list[_Next]:
    """The next version of each of a record's Tasks: open where it is still to be verified for that patient, else
    cancelled. What was rejected waits for its author, not for the head."""
    known = _open_tasks(connection, row.type, row.id)
    wanted: dict[int, str | None] = {}
    if row.labels & VERIFYING & ~REJECTED and not row.deleted:
        for reference in node.gate.patients(connection, row):
            wanted[journal.patient_pk(connection, reference.removeprefix("Patient/")) or 0] = reference
        wanted = wanted or {0: None}
    made = []
    for patient in dict.fromkeys((*known, *wanted)):
        id_ = known.get(patient) or str(uuid.uuid4())
        current = journal.current(connection, "Task", id_) if patient in known else None
        before = {} if current is None else parse(node.versions.open(connection, current).stored)
        about = wanted[patient] if patient in wanted else before.get("for", {}).get("reference")
        task = _task(node, connection, RECORD, status="requested" if patient in wanted else "cancelled",
                     marks=row.labels, focus={"reference": f"{row.type}/{row.id}/_history/{row.vid}"}, patient=about)
        if before:
            task["authoredOn"] = before["authoredOn"]
        made.append(_Next(id=id_, patient=patient, waits=patient in wanted,
                          version=_sealed(node, task, id_, 1 if current is None else current.vid + 1)))
    return made


def _open_tasks(connection: apsw.Connection, type_: str, id_: str) -> dict[int, str]:
    """The Tasks of a record that waits, by the row id of whom each is for."""
    return {int(str(patient)): str(task) for patient, task in connection.execute(
        "SELECT patient, task FROM verifying WHERE type=? AND id=? ORDER BY patient", (type_, id_)).fetchall()}


def _task(node: Node, connection: apsw.Connection, code: str, *, status: str, marks: int, focus: Mapping[str, Any],
          patient: str | None) -> Resource:
    now = format_instant(now_ms())
    tags = [tag("notice"), *([tag("waiting")] if marks & WITHHELD else [])]
    return tagged({
        "resourceType": "Task", "status": status, "intent": "order",
        "code": {"coding": [{"system": SYSTEM, "code": code}], "text": _TEXTS[code]},
        "focus": dict(focus), **({"for": {"reference": patient}} if patient else {}),
        "authoredOn": now, "lastModified": now,
        "requester": {"reference": node.settings.hospital_reference, "display": node.settings.hospital_name},
        "owner": heads(node, connection)[0]}, tags)


def _accounts(node: Node, connection: apsw.Connection) -> int:
    """A Task for each login that waits for its proofing; ended when somebody decided."""
    fresh = connection.execute(
        "SELECT l.id FROM login l WHERE l.state='waiting' AND NOT EXISTS (SELECT 1 FROM verifying w WHERE "
        "w.type='login' AND w.id=l.id) LIMIT ?", (_AT_ONCE,)).fetchall()
    over = connection.execute(
        "SELECT w.id, w.task, l.state FROM verifying w LEFT JOIN login l ON l.id=w.id WHERE w.type='login' AND "
        "l.state IS NOT 'waiting' LIMIT ?", (_AT_ONCE,)).fetchall()
    if not fresh and not over:
        return 0
    node.parameters.follow(journal.decision_seq(connection))
    generation = node.parameters.generation
    made: list[tuple[str, str, NewVersion, bool]] = []
    for (waiting,) in fresh:
        login = str(waiting)
        focus = {"identifier": {"system": "urn:fhir-gateway:login", "value": login}, "display": "an account"}
        task = _task(node, connection, ACCOUNT, status="requested", marks=0, focus=focus, patient=None)
        id_ = str(uuid.uuid4())
        made.append((login, id_, _sealed(node, task, id_, 1), True))
    for ended, known, state in over:
        login, id_ = str(ended), str(known)
        current = journal.current(connection, "Task", id_)
        if current is None:
            continue
        task = parse(node.versions.open(connection, current).stored)
        task["status"] = {"verified": "completed", "rejected": "rejected"}.get(str(state), "cancelled")
        task["lastModified"] = format_instant(now_ms())
        made.append((login, id_, _sealed(node, task, id_, current.vid + 1), False))

    def work(tx: apsw.Connection) -> None:
        if search_parameters.generation(tx) != generation:
            raise Conflict("a search parameter came or went")
        for login, id_, version, begun in made:
            if begun:
                tx.execute("INSERT OR IGNORE INTO verifying (type,id,patient,task) VALUES ('login',?,0,?)",
                           (login, id_))
            else:
                tx.execute("DELETE FROM verifying WHERE type='login' AND id=?", (login,))
            if not tx.changes():
                raise Conflict("another process listed these")
            journal.append(tx, version)
    try:
        node.database.transact(work)
    except Conflict:
        return 0
    return len(made)


def _sealed(node: Node, resource: Resource, id_: str, vid: int, *, client: str = AUTHOR,
            user: str | None = None) -> NewVersion:
    made = drafting.drafted(node, resource, id_, client=client, user=user)
    return node.versions.seal(made, id_=id_, vid=vid, updated_ms=now_ms(), client=client, user=user)[0]


def settle(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Resource:
    """A rejected record's Task is as hidden as the record."""
    if old is None or not marks_of(old) & NOTICE or new.get("status") not in _ENDED:
        return new
    return tagged(new, [tag("notice"), *([tag("rejected")] if new.get("status") == "rejected" else [])])


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """What the head may do with a Task of ours, and what a decision does. Raises Unprocessable, Conflict."""
    if old is None or not marks_of(old) & NOTICE:
        return None
    if old["code"]["coding"][0]["code"] == ACCESS_REQUEST:
        raise Unprocessable("a request for access is its patient's to answer: $propose-consent or $decline",
                            code="business-rule", expression="Task.status")
    if old.get("status") not in _OPEN:
        raise Unprocessable("the task is over", code="business-rule", expression="Task.status")
    if _rest(old) != _rest(new):
        raise Unprocessable("of a task to verify, its status, statusReason, owner and note are the head's to change",
                            code="business-rule", expression="Task")
    status = new.get("status")
    if status in _OPEN:
        return None
    if status not in _ENDED:
        raise Unprocessable("a task to verify ends completed (verified) or rejected", code="business-rule",
                            expression="Task.status")
    if old["code"]["coding"][0]["code"] == ACCOUNT:
        raise Unprocessable("an account is decided on where its factors are seen: in the portal, or by "
                            "`gateway user verify`", code="not-supported", expression="Task.status")
    if caller.grant.role != "privacy-officer" or caller.grant.user is None:
        raise Forbidden("the head verifies records")
    reason = _reason(new)
    if status == "rejected" and not reason:
        raise Unprocessable("a rejection says why", code="required", expression="Task.statusReason")
    return _decided(node, caller, old, rejected=status == "rejected", reason=reason)


def _rest(task: Resource) -> bytes:
    return canonical({name: value for name, value in task.items() if name not in _HEADS_OWN})


def _reason(task: Resource) -> str:
    reason = task.get("statusReason") or {}
    codings = reason.get("coding") or [{}]
    return str(reason.get("text") or codings[0].get("display") or codings[0].get("code") or "").strip()


def _decided(node: Node, caller: Caller, task: Resource, *, rejected: bool, reason: str) -> Hook:
    """Seal everything now; the commit looks whether it is still about the present version."""
    connection = node.database.reader
    type_, id_, _, vid = str(task["focus"]["reference"]).split("/")
    row = journal.current(connection, type_, id_)
    if row is None or row.deleted or row.vid != int(vid) or not row.labels & VERIFYING:
        raise Conflict("the record was changed since: read it, and the task, again")
    record = parse(node.versions.open(connection, row).stored)
    mark = tag("rejected", reason) if rejected else tag("verified")
    made = drafting.drafted(node, tagged(record, [mark]), id_, client=row.client, user=row.user)
    new, stored = node.versions.seal(made, id_=id_, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                     user=row.user)
    patients = node.gate.patients(connection, row)
    provenance_id = str(uuid.uuid4())
    provenance = _sealed(node, _provenance(node, caller, f"{type_}/{id_}/_history/{new.vid}", stored, patients,
                                           rejected=rejected, reason=reason), provenance_id, 1)
    generation = node.parameters.generation
    others = _ended_alike(node, caller, type_, id_, task, rejected=rejected, reason=reason)
    rows = node.gate.entries(caller, "u", "verify", Permit("duty"), patients=patients, what=(
        f"{type_}/{id_}/_history/{new.vid}", f"Provenance/{provenance_id}/_history/1"))

    def hook(tx: apsw.Connection) -> None:
        now = journal.current(tx, type_, id_)
        if now is None or now.seq != row.seq or search_parameters.generation(tx) != generation:
            raise Moved("the record was changed meanwhile")
        present = [journal.current(tx, "Task", other.id) for other in others]
        if [None if one is None else one.vid + 1 for one in present] != [other.version.vid for other in others]:
            raise Moved("a task for another patient was changed meanwhile")
        journal.append(tx, new)
        journal.append(tx, provenance)
        for other in others:
            journal.append(tx, other.version)
        tx.execute("DELETE FROM verifying WHERE type=? AND id=?", (type_, id_))
        if rejected:
            journal.bump_decision_seq(tx)  # what is on its way out is decided anew
        audit.append(tx, rows)
    return hook


def _ended_alike(node: Node, caller: Caller, type_: str, id_: str, decided: Resource, *, rejected: bool,
                 reason: str) -> list[_Next]:
    """The Tasks for the record's other patients, ended by the same decision."""
    connection, made = node.database.reader, []
    for patient, task in _open_tasks(connection, type_, id_).items():
        row = journal.current(connection, "Task", task)
        if row is None or task == decided["id"]:
            continue
        stored = parse(node.versions.open(connection, row).stored)
        ended = settle(node, caller, stored, _over(stored, rejected=rejected, reason=reason))
        made.append(_Next(id=task, patient=patient, waits=False, version=_sealed(
            node, ended, task, row.vid + 1, client=row.client, user=caller.grant.user)))
    return made


def _over(task: Resource, *, rejected: bool, reason: str) -> Resource:
    return {**task, "status": "rejected" if rejected else "completed", "lastModified": format_instant(now_ms()),
            **({"statusReason": {"text": reason}} if reason else {})}


def _provenance(node: Node, caller: Caller, target: str, stored: bytes, patients: Sequence[str], *, rejected: bool,
                reason: str) -> Resource:
    now, outcome = format_instant(now_ms()), "rejected" if rejected else "verified"
    signed = attestation.sign(node.ring, {
        "iss": node.settings.base_url, "target": target, "sha256": hashlib.sha256(stored).hexdigest(),
        "outcome": outcome, "reason": reason, "by": caller.grant.user, "time": now})
    made: Resource = {
        "resourceType": "Provenance",
        "target": [{"reference": target}, *({"reference": patient} for patient in patients)],
        "recorded": now, **({"reason": [{"text": reason}]} if reason else {}),
        "activity": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle",
                                 "code": "verify", "display": "Verify Record Lifecycle Event"}], "text": outcome},
        "agent": [{
            "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type",
                                 "code": "verifier", "display": "Verifier"}]},
            "who": {"reference": caller.grant.user},
            "onBehalfOf": {"reference": node.settings.hospital_reference, "display": node.settings.hospital_name}}],
        "signature": [{
            "type": [{"system": "urn:iso-astm:E1762-95:2013", "code": "1.2.840.10065.1.12.1.5",
                      "display": "Verification Signature"}],
            "when": now, "who": {"reference": caller.grant.user},
            "onBehalfOf": {"reference": node.settings.hospital_reference},
            "targetFormat": "application/fhir+json", "sigFormat": "application/jose",
            "data": base64.b64encode(signed.encode()).decode()}]}
    return tagged(made, [tag("notice"), tag("rejected")]) if rejected else made


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What ``$verify`` is told."""

    rejected: bool
    reason: str


async def verify(node: Node, caller: Caller, type_: str, id_: str, decision: Decision) -> Written:
    """``$verify`` of a record that waits: its Task, ended. Raises NotFound where there is none, and as its update."""
    place = next(iter(_open_tasks(node.database.reader, type_, id_).values()), "none")
    row = journal.current(node.database.reader, "Task", place)
    if row is None or caller.grant.role != "privacy-officer":
        node.gate.require_scope(caller, "Task", "u")
        raise NotFound(f"{type_}/{id_} is not waiting to be verified")
    try:
        stored = parse(node.versions.open(node.database.reader, row).stored)
    except IntegrityBroken as error:
        raise NotFound(f"{type_}/{id_} is not waiting to be verified") from error
    ended = _over(stored, rejected=decision.rejected, reason=decision.reason)
    return await write.update(node, caller, "Task", place, ended, if_match=f'W/"{row.vid}"')


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """A Task of ours is ended, not deleted. Raises Conflict."""
    if row.labels & NOTICE:
        raise Conflict("the task is ended by its status")
    return None


RULES: Final = TypeRules(check_write=check_write, check_deletion=check_deletion, settle=settle)
