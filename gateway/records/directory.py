"""The directory: an exact identifier in, "a request can be made" out, whoever it names, and whether it names anybody.

Owns a request for access from the moment it is stored, sealed, to the Task its patient and the head find, and what they
make of it: a proposed Consent, or a refusal. Refuses to answer differently, or in another time, for an identifier
nobody has: the one who asked is answered before anybody looks. ``README.md``, Decisions: finding a patient.
https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw
import orjson

from gateway import audit
from gateway.access.marks import WITHHELD, tag
from gateway.access.roles import policy
from gateway.audit import AuditEntry
from gateway.crypto import job_part
from gateway.errors import BadSearch, Conflict, Forbidden, KeyDestroyed, Moved, Throttled, Unprocessable
from gateway.fhir.resource import Resource, format_instant, parse
from gateway.records import addresses, drafting, read, write
from gateway.records.consent_standing import may
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node, TypeRules, still
from gateway.records.preparing import Written
from gateway.store import journal, search_parameters
from gateway.store.index import SqlBound
from gateway.store.journal import NewVersion, VersionRow
from gateway.store.sql import now_ms

SYSTEM: Final = "urn:fhir-gateway:task"
ACCESS_REQUEST: Final = "access-request"
REQUESTS_MAX: Final = 20
"""Most requests of one requester in an hour."""
_HOUR_MS: Final = 3_600_000
_AGAIN_MS: Final = 7 * 24 * _HOUR_MS
"""How long a request stands for those that follow it."""
_KEPT_MS: Final = 30 * 24 * _HOUR_MS
_AT_ONCE: Final = 50
_AUTHOR: Final = "gateway"
_SCOPE: Final = ("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy")
_TYPES: Final = "http://hl7.org/fhir/resource-types"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asks for: ``identifier`` is (system, value); ``grantee`` a reference of the requester's own."""

    identifier: tuple[str, str]
    grantee: str
    purposes: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    reason: str | None = None


async def request_access(node: Node, caller: Caller, wanted: Wanted) -> None:
    """Store a request, with its audit, in one durable commit; what it leads to is seen by its patient and the head.

    Raises Forbidden (a role no grant admits, another's reference), Throttled.
    """
    grant = caller.grant
    role = policy().roles.get(grant.role)
    node.gate.require_scope(caller, "Task", "c")
    if role is None or not role.grant:
        raise Forbidden("no patient's grant admits this role")
    if wanted.grantee not in grant.grantees:
        raise Forbidden("access is asked for oneself, one's organisation or one's app")
    id_ = secrets.token_hex(16)
    body = job_part.seal(node.ring, id_, "access request", orjson.dumps({
        "identifier": wanted.identifier, "grantee": wanted.grantee, "purposes": wanted.purposes, "types": wanted.types,
        "reason": wanted.reason, "client": grant.client_id, "user": grant.user, "role": grant.role,
        "purpose": grant.purpose, "operator": grant.minted_by_operator}))
    requester = node.index.grantee("\n".join(("access request", grant.client_id, grant.user or "")))
    rows = node.gate.entries(caller, "s", "request-access", None, what=("Patient",), patients=(), outcome="0",
                             query=f"identifier={'|'.join(wanted.identifier)}")

    def work(connection: apsw.Connection) -> None:
        now = now_ms()
        recent = connection.execute("SELECT count(*) FROM access_request WHERE requester=? AND asked_ms>?",
                                    (requester, now - _HOUR_MS)).get
        if int(str(recent)) >= REQUESTS_MAX:
            raise Throttled(f"{REQUESTS_MAX} requests for access may be made in an hour")
        connection.execute("INSERT INTO access_request (id,requester,asked_ms,body) VALUES (?,?,?,?)",
                           (id_, requester, now, body))
        audit.append(connection, rows)

    await node.commits.commit(work)


def deliver(node: Node) -> int:
    """Bring waiting requests to the patients they name; how many were looked at. For the background loop."""
    waiting: list[Any] = node.database.reader.execute(
        "SELECT pk, id, requester, asked_ms, body FROM access_request WHERE body IS NOT NULL ORDER BY pk LIMIT ?",
        (_AT_ONCE,)).fetchall()
    if waiting:
        node.parameters.follow(journal.decision_seq(node.database.reader))
    for pk, id_, requester, asked_ms, body in waiting:
        _deliver(node, int(pk), str(id_), int(requester), int(asked_ms), bytes(body))
    return len(waiting)


def _deliver(node: Node, pk: int, id_: str, requester: int, asked_ms: int, body: bytes) -> None:
    asked: dict[str, Any] = orjson.loads(job_part.unseal(node.ring, id_, "access request", body))
    connection, generation = node.database.reader, node.parameters.generation
    row = _named(node, connection, tuple(asked["identifier"]))
    patient = None if row is None else row.id
    task_id = str(uuid.uuid4())
    new = rows = None
    if patient is not None:
        try:
            new = _sealed(node, _task(node, connection, asked, patient, asked_ms), task_id, 1)
            rows = (node.gate.audit.seal(AuditEntry(
                time_ms=now_ms(), action="C", interaction="request-access", outcome="0",
                what=(f"Task/{task_id}/_history/1",), client=asked["client"], user=asked["user"], role=asked["role"],
                purpose=asked["purpose"], operator=asked["operator"]), patient),)
        except KeyDestroyed:
            patient = None

    def work(tx: apsw.Connection) -> None:
        if search_parameters.generation(tx) != generation:
            raise Conflict("a search parameter came or went: made anew at the next turn")
        known = journal.patient_pk(tx, patient) if patient is not None else None
        stands = known is not None and tx.execute(
            "SELECT 1 FROM access_request WHERE requester=? AND patient=? AND task IS NOT NULL AND asked_ms>? LIMIT 1",
            (requester, known, asked_ms - _AGAIN_MS)).get is not None
        tx.execute("UPDATE access_request SET body=NULL, patient=?, task=? WHERE pk=? AND body IS NOT NULL",
                   (known, None if known is None or stands else task_id, pk))
        if tx.changes() and known is not None and not stands and new is not None and rows is not None:
            journal.append(tx, new)
            audit.append(tx, rows)
    try:
        node.database.transact(work)
    except Conflict:
        return


def _named(node: Node, connection: apsw.Connection, identifier: tuple[str, str]) -> VersionRow | None:
    """The one patient with this identifier; None where there is none, or several."""
    text = "|".join(part.replace("\\", "\\\\").replace("|", "\\|").replace(",", "\\,").replace("$", "\\$")
                    for part in identifier)
    try:
        query = node.query("Patient", [("identifier", text)], strict=True)
    except BadSearch:
        return None
    found = [match.row for match in node.index.search(connection, query, SqlBound("1"), limit=2,
                                                      snapshot=journal.head_seq(connection))]
    return found[0] if len(found) == 1 and not found[0].labels & WITHHELD else None


def _task(node: Node, connection: apsw.Connection, asked: dict[str, Any], patient: str, asked_ms: int) -> Resource:
    grantee, user = asked["grantee"], asked["user"] or f"Device/{asked['client']}"
    purposes = [policy().purposes[code].text for code in asked["purposes"]]
    text = (f"{_shown(connection, user)} asks this patient for access"
            f"{'' if grantee == user else f' for {_shown(connection, grantee)}'}"
            f"{' to ' + ', '.join(asked['types']) + ' records' if asked['types'] else ''}"
            f"{', for ' + ', '.join(purposes) if purposes else ''}")

    def given(code: str, **value: Any) -> dict[str, Any]:
        return {"type": {"coding": [{"system": SYSTEM, "code": code}]}, **value}

    return {
        "resourceType": "Task", "meta": {"tag": [tag("notice")]}, "status": "requested", "intent": "proposal",
        "code": {"coding": [{"system": SYSTEM, "code": ACCESS_REQUEST, "display": "Request for access"}]},
        "description": text, "for": {"reference": f"Patient/{patient}"}, "owner": {"reference": f"Patient/{patient}"},
        "requester": _reference(connection, user), "authoredOn": format_instant(asked_ms),
        **({"reasonCode": {"text": asked["reason"]}} if asked["reason"] else {}),
        "input": [given("grantee", valueReference=_reference(connection, grantee)),
                  *(given("purpose", valueCode=code) for code in asked["purposes"]),
                  *(given("type", valueCode=code) for code in asked["types"])]}


def _name(connection: apsw.Connection, reference: str) -> str | None:
    """The name of a proofed account or a registered client."""
    type_, _, id_ = reference.partition("/")
    found = connection.execute("SELECT name FROM client WHERE id=?", (id_,)).get if type_ == "Device" else (
        connection.execute("SELECT name FROM account WHERE fhir_user=?", (reference,)).get)
    return None if found is None else str(found)


def _shown(connection: apsw.Connection, reference: str) -> str:
    name = _name(connection, reference)
    return f"{name} ({reference})" if name else reference


def _reference(connection: apsw.Connection, reference: str) -> dict[str, str]:
    name = _name(connection, reference)
    return {"reference": reference, **({"display": name} if name else {})}


def _sealed(node: Node, resource: Resource, id_: str, vid: int) -> NewVersion:
    made = drafting.drafted(node, resource, id_, client=_AUTHOR, user=None)
    return node.versions.seal(made, id_=id_, vid=vid, updated_ms=now_ms(), client=_AUTHOR, user=None)[0]


async def propose_consent(node: Node, caller: Caller, task_id: str) -> Written:
    """Make the Consent a request asks for, ``proposed``: the patient changes and signs it, or does not.

    Raises NotFound, Forbidden, Conflict (answered already), Unprocessable (a Task of another kind).
    """
    task, row, caller = await _open(node, caller, task_id)
    made = _consent(task)
    return await write.create(node, caller, "Consent", made, hook=_answered(node, row, task, "accepted"))


async def decline(node: Node, caller: Caller, task_id: str) -> bytes:
    """End a request without a Consent; the Task as it then is. Raises as ``propose_consent``."""
    async def attempt(caller: Caller) -> bytes:
        task, row, caller = await _open(node, caller, task_id)
        patient = task["for"]["reference"]
        decision = await may(node, caller, patient.removeprefix("Patient/"), "u", "decline")
        rows = node.gate.entries(caller, "u", "decline", decision, what=(f"Task/{task_id}/_history/{row.vid + 1}",),
                                 patients=(patient,))
        hook = _answered(node, row, task, "rejected")

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            hook(connection)
            audit.append(connection, rows)

        await node.commits.commit(work)
        current = journal.current(node.database.reader, "Task", task_id)
        assert current is not None  # noqa: S101  # just written
        return node.versions.open(node.database.reader, current).stored
    return await node.decided(caller, attempt)


async def _open(node: Node, caller: Caller, task_id: str) -> tuple[Resource, VersionRow, Caller]:
    reading = await read.read(node, caller, "Task", task_id)
    task = parse(reading.stored)
    codes = [(one.get("system"), one.get("code")) for one in (task.get("code") or {}).get("coding") or ()]
    if reading.row.client != _AUTHOR or (SYSTEM, ACCESS_REQUEST) not in codes:
        raise Unprocessable("this Task is no request for access", code="business-rule", expression="Task.code")
    if task.get("status") != "requested":
        raise Conflict(f"the request is {task.get('status')}")
    return task, reading.row, caller.again()


def _answered(node: Node, row: VersionRow, task: Resource, status: str) -> Hook:
    generation = node.parameters.generation
    new = _sealed(node, {**task, "status": status, "lastModified": format_instant(now_ms())}, row.id, row.vid + 1)

    def hook(connection: apsw.Connection) -> None:
        now = journal.current(connection, "Task", row.id)
        if now is None or now.seq != row.seq:
            raise Conflict("the request was answered meanwhile")
        if search_parameters.generation(connection) != generation:
            raise Moved("a search parameter came or went")
        journal.append(connection, new)
    return hook


def _consent(task: Resource) -> Resource:
    given: dict[str, list[Any]] = {}
    for one in task.get("input") or ():
        value = one.get("valueCode") or one.get("valueReference")
        given.setdefault(one["type"]["coding"][0]["code"], []).append(value)
    [grantee] = given["grantee"]
    table = policy()
    provision: dict[str, Any] = {"type": "permit", "actor": [{"role": {"coding": [{
        "system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "PRCP"}]},
        "reference": grantee}]}
    if "purpose" in given:
        provision["purpose"] = [{"system": table.purpose_system, "code": code} for code in given["purpose"]]
    if "type" in given:
        provision["class"] = [{"system": _TYPES, "code": code} for code in given["type"]]
    system, code = _SCOPE
    return {
        "resourceType": "Consent", "status": "proposed", "scope": {"coding": [{"system": system, "code": code}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": task["for"], "dateTime": format_instant(now_ms()), "policyRule": {"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]}, "provision": provision}


def sweep(connection: apsw.Connection, now: int) -> int:
    """Forget requests that were looked at a month ago; how many rows went."""
    connection.execute("DELETE FROM access_request WHERE asked_ms<? AND body IS NULL", (now - _KEPT_MS,))
    return connection.changes()


def purposes_of(codes: Sequence[str]) -> tuple[str, ...]:
    """Purposes of use that are enforced. Raises Unprocessable."""
    for code in codes:
        if code not in policy().purposes:
            raise Unprocessable("is no purpose of use this gateway enforces", code="value", expression="purpose")
    return tuple(codes)


def _deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    return None


PATIENT_RULES = TypeRules(check_write=addresses.check_write, check_deletion=_deletion)
"""What writing a Patient must obey, for ``Node.rules``."""
