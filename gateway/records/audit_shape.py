"""The shape of an AuditEvent: one audit row in the words of IHE BALP, and in a sentence.

Owns which profile an interaction follows (read, query, create, update, delete, user authentication, privacy
disclosure), its agents and entities; refuses to decide and to read records: names come from the hospital's registers.
https://profiles.ihe.net/ITI/BALP, https://hl7.org/fhir/R4/auditevent.html
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from gateway.access.roles import policy
from gateway.audit import AuditEntry
from gateway.fhir.resource import format_instant

_RESTFUL: Final = "http://hl7.org/fhir/restful-interaction"
_EVENT_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_ACT_REASON: Final = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_OBJECT_ROLE: Final = "http://terminology.hl7.org/CodeSystem/object-role"
_ENTITY_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_RESOURCE_TYPE: Final = "http://hl7.org/fhir/resource-types"
_PARTICIPANT: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_ROLE_CLASS: Final = "http://terminology.hl7.org/CodeSystem/v3-RoleClass"
_DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_LIFECYCLE: Final = "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle"
_ABSENT: Final = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
INTERACTION: Final = "urn:fhir-gateway:interaction"

Coding = Mapping[str, str]
_SOURCE: Final = {"system": _DCM, "code": "110153", "display": "Source Role ID"}
_DESTINATION: Final = {"system": _DCM, "code": "110152", "display": "Destination Role ID"}
_APPLICATION: Final = {"system": _DCM, "code": "110150", "display": "Application"}
_CUSTODIAN: Final = {"system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type",
                     "code": "custodian", "display": "Custodian"}
_RECIPIENT: Final = {"system": _PARTICIPANT, "code": "IRCP", "display": "information recipient"}
_AUTHOR: Final = {"system": _PARTICIPANT, "code": "AUT", "display": "author (originator)"}
_REST: Final = {"system": _EVENT_TYPE, "code": "rest", "display": "RESTful Operation"}
_EXPORT: Final = {"system": _DCM, "code": "110106", "display": "Export"}
_AUTHENTICATION: Final = {"system": _DCM, "code": "110114", "display": "User Authentication"}
_DISCLOSE: Final = {"system": _LIFECYCLE, "code": "disclose", "display": "Disclose Record Lifecycle Event"}
_LOGIN: Final = {"system": _DCM, "code": "110122", "display": "Login"}
_LOGOUT: Final = {"system": _DCM, "code": "110123", "display": "Logout"}
_RESTFUL_CODES: Final = frozenset({
    "read", "vread", "update", "patch", "delete", "history", "history-instance", "history-type", "history-system",
    "create", "search", "search-type", "search-system", "transaction", "batch"})
_SEARCHES: Final = frozenset({"search", "search-type", "search-system"})
_CHANGES: Final = frozenset({"create", "update", "patch"})
_DISCLOSURES: Final = frozenset({"export", "subscription-notification"})
_SIGN_INS: Final = {"login": _LOGIN, "sign-in": _LOGIN, "logout": _LOGOUT, "sign-out": _LOGOUT}
_VERBS: Final = {"C": "wrote", "R": "read", "U": "changed", "D": "deleted", "E": "searched"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where events are told, and to whom: this hospital, the names of its accounts and clients by reference or id;
    ``on_duty``: to who may know which other patient asked for somebody's records."""

    hospital: str
    reference: str
    base_url: str
    name: Callable[[str], str | None]
    on_duty: bool = False

    def person(self, user: str, patient: str | None) -> dict[str, str]:
        """A user as a Reference; of another patient, that it was one."""
        if user.startswith("Patient/") and user != f"Patient/{patient}" and not self.on_duty:
            return {"display": "another patient"}
        name = self.name(user)
        return {"reference": user, **({"display": name} if name else {})}

    @property
    def observer(self) -> dict[str, str]:
        """The one who records, and serves."""
        return {"reference": self.reference, "display": self.hospital}


def event(seq: int, time_ms: int, entry: AuditEntry, patient: str | None, where: Setting) -> dict[str, Any]:
    """The AuditEvent of one row; ``patient`` is the logical id it is about."""
    made: dict[str, Any] = {
        "resourceType": "AuditEvent", "id": f"log-{seq}",
        "meta": {"versionId": "1", "lastUpdated": format_instant(time_ms)},
        "type": dict(_type(entry)), "subtype": _subtypes(entry),
        "action": "R" if entry.interaction in _DISCLOSURES else entry.action,
        "recorded": format_instant(time_ms), "outcome": entry.outcome}
    said = "; ".join(part for part in (
        f"permitted on basis {entry.basis}" if entry.basis else "", entry.reason or "",
        "token minted on the command line" if entry.operator else "") if part)
    if said:
        made["outcomeDesc"] = said
    if entry.purpose:
        made["purposeOfEvent"] = [_purpose(entry)]
    made["agent"] = _agents(entry, patient, where)
    made["source"] = {"observer": where.observer, "type": [
        {"system": "http://terminology.hl7.org/CodeSystem/security-source-type", "code": "4"}]}
    if entities := _entities(entry, patient):
        made["entity"] = entities
    return made


def _type(entry: AuditEntry) -> Coding:
    if entry.interaction in _DISCLOSURES:
        return _EXPORT
    return _AUTHENTICATION if entry.interaction in _SIGN_INS else _REST


def _subtypes(entry: AuditEntry) -> list[dict[str, str]]:
    name = entry.interaction
    if name in _SIGN_INS:
        return [dict(_SIGN_INS[name])]
    if name in _RESTFUL_CODES:
        return [{"system": _RESTFUL, "code": name}]
    own = {"system": INTERACTION, "code": name}
    return [dict(_DISCLOSE), own] if name in _DISCLOSURES else [{"system": _RESTFUL, "code": "operation"}, own]


def _purpose(entry: AuditEntry) -> dict[str, Any]:
    known = policy().purposes.get(entry.purpose)
    return {"coding": [{"system": _ACT_REASON, "code": entry.purpose,
                        **({"display": known.text} if known is not None else {})}]}


def _roles(entry: AuditEntry) -> tuple[Coding, Coding, Coding]:
    """What client, server and user are in this kind of event (BALP)."""
    name = entry.interaction
    if name in _CHANGES:
        return _SOURCE, _DESTINATION, _AUTHOR
    if name == "delete":
        return _APPLICATION, _CUSTODIAN, _AUTHOR
    if name in _SEARCHES:
        return _SOURCE, _DESTINATION, _RECIPIENT
    return _DESTINATION, _SOURCE, _RECIPIENT  # what is read goes from the server to the client


def _agents(entry: AuditEntry, patient: str | None, where: Setting) -> list[dict[str, Any]]:
    client, server, user = _roles(entry)
    named = where.name(entry.client)
    network: dict[str, Any] = {"address": entry.address, "type": "2"} if entry.address else {
        "extension": [{"url": _ABSENT, "valueCode": "unknown"}]}
    agents: list[dict[str, Any]] = [
        {"type": {"coding": [dict(client)]}, "requestor": entry.user is None, "network": network,
         "who": {"identifier": {"value": entry.client}, "display": named or entry.client}},
        {"type": {"coding": [dict(server)]}, "requestor": False, "who": where.observer,
         "network": {"address": where.base_url, "type": "5"}}]
    asking = agents[0]
    if entry.user is not None:
        who = where.person(entry.user, patient)
        asking = {"type": {"coding": [dict(user)]}, "requestor": True, "who": who,
                  **({"name": who["display"]} if "display" in who else {})}
        agents.append(asking)
    asking["role"] = [{"text": entry.role}]
    if entry.purpose:
        asking["purposeOfUse"] = [_purpose(entry)]
    if entry.provisions:
        asking["policy"] = [f"urn:fhir-gateway:provision:{id_}" for id_ in entry.provisions]
    for organization in entry.organizations:
        name = where.name(organization)
        agents.append({"type": {"coding": [{"system": _ROLE_CLASS, "code": "PROV", "display": "healthcare provider"}]},
                       "who": {"reference": organization, **({"display": name} if name else {})}, "requestor": False})
    return agents


def consents(entry: AuditEntry) -> tuple[str, ...]:
    """The Consents whose provisions it rested on."""
    return tuple(dict.fromkeys(f"Consent/{id_.rpartition('/')[0]}" for id_ in entry.provisions if "/" in id_))


def _entities(entry: AuditEntry, patient: str | None) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if patient is not None:
        entities.append({"what": {"reference": f"Patient/{patient}"}, "type": {
            "system": _ENTITY_TYPE, "code": "1", "display": "Person"},
            "role": {"system": _OBJECT_ROLE, "code": "1", "display": "Patient"}})
    query = entry.query
    if query is None and entry.interaction in _SEARCHES:
        query = ""
    if query is not None:
        entities.append({"type": {"system": _ENTITY_TYPE, "code": "2", "display": "System Object"},
                         "role": {"system": _OBJECT_ROLE, "code": "24", "display": "Query"},
                         "description": query or "(no parameters)",
                         "query": base64.b64encode((query or "?").encode()).decode()})
    for place, reference in enumerate(entry.what):
        what = {"reference": reference} if "/" in reference else {"display": reference}
        # One object of the event is the profiles' data; what a query or a history gave besides goes by its own type.
        type_ = {"system": _ENTITY_TYPE, "code": "2", "display": "System Object"} if place == 0 and query is None else {
            "system": _RESOURCE_TYPE, "code": reference.partition("/")[0]}
        if type_["system"] == _RESOURCE_TYPE and not type_["code"].isalpha():
            type_ = {"system": _ENTITY_TYPE, "code": "4", "display": "Other"}
        entities.append({"what": what, "type": type_,
                         "role": {"system": _OBJECT_ROLE, "code": "4", "display": "Domain Resource"}})
    for consent in consents(entry):
        entities.append({"what": {"reference": consent}, "type": {"system": _RESOURCE_TYPE, "code": "Consent"},
                         "role": {"system": _OBJECT_ROLE, "code": "4", "display": "Domain Resource"},
                         "description": "the consent it rests on"})
    return entities


def sentence(time_ms: int, entry: AuditEntry, patient: str | None, where: Setting) -> str:
    """The event for a patient to read, in one sentence."""
    client = where.name(entry.client) or entry.client
    person = where.person(entry.user, patient) if entry.user else None
    who = f"{person.get('display') or person['reference']} with {client}" if person else client
    of = f" of {', '.join(where.name(one) or one for one in entry.organizations)}" if entry.organizations else ""
    types = list(dict.fromkeys(what.partition("/")[0] for what in entry.what))[:5]
    verb = _VERBS.get(entry.action, "used")
    did = f"{verb} {', '.join(types) or entry.interaction}" if entry.outcome == "0" else (
        f"asked for {', '.join(types) or entry.interaction} and was refused")
    known = policy().purposes.get(entry.purpose)
    why = f" for {known.text}" if known is not None else ""
    rests = {"self": "as yourself or for you", "feed": "as this hospital's own system", "duty": "as part of their duty",
             "grant": "because you permitted it", "break-glass": "in an emergency",
             "not-about-a-patient": ""}.get(entry.basis or "", "")
    because = f", {rests}" if rests else ""
    if named := consents(entry):
        because += f" ({', '.join(named)})"
    return f"{format_instant(time_ms)}: {who}{of} {did}{why}{because}."


def narrative(text: str) -> dict[str, str]:
    """A generated Narrative of one paragraph."""
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{escape(text)}</p></div>'}
