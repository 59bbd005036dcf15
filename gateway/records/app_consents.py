"""The Consent that a patient's offline access to an app rests on: what it may read or write, and until when.

Owns turning approved scopes into terms; refuses to say less than the scopes do: what several of them restrict
differently is left to the token, which narrows by each. When the Consent ends, so does what the app does by it
(``ending.py``). ``README.md``, Paths: Authorize.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from gateway.access.roles import policy
from gateway.access.scopes import ResourceScope, ScopeSet
from gateway.errors import Forbidden, Unprocessable
from gateway.fhir.resource import Resource, format_instant, is_id, parse
from gateway.records import granting, write
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.signing import wallet_of
from gateway.store.sql import now_ms

_ACTIONS: Final = "http://terminology.hl7.org/CodeSystem/consentaction"
_TYPES: Final = "http://hl7.org/fhir/resource-types"
_TOKEN: Final = re.compile(r"[^|,\\]+\|[^|,\\]+")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


async def grant_to_app(node: Node, caller: Caller, *, client_id: str, client_name: str, scopes: ScopeSet,
                       until: str | None = None) -> str:
    """Make the Consent whose actor is ``Device/<client_id>`` for the caller's own patient, and sign it with the kept
    key; a wallet's holder finds it ``proposed``. Its logical id.

    ``caller`` is the patient's session with ``Consent.cu``; ``until`` the last day (``YYYY-MM-DD``) of the access.
    Raises Forbidden (nobody's own session), Unprocessable (a client id that is no FHIR id, no resource in the scopes).
    """
    patient = caller.grant.self_patient
    if patient is None:
        raise Forbidden("a patient's own session lets an app in for good")
    if not is_id(client_id):
        raise Unprocessable("a client whose id is no FHIR id cannot be named in a Consent", code="value")
    made = consent_of(patient, client_id=client_id, client_name=client_name, scopes=scopes,
                      purpose=caller.grant.purpose, until=until)
    written = await write.create(node, caller, "Consent", made)
    if wallet_of(node.database.reader, patient.removeprefix("Patient/")) is None:
        await granting.sign(node, caller.again(), written.id, {"resourceType": "Parameters"})
    return str(parse(written.stored)["id"])


def consent_of(patient: str, *, client_id: str, client_name: str, scopes: ScopeSet, purpose: str,
               until: str | None = None) -> Resource:
    """The proposed Consent. Raises Unprocessable."""
    named = scopes.resources
    if not named:
        raise Unprocessable("the app was allowed nothing that a Consent could name", code="value")
    letters = {letter for one in named for letter in one.letters}
    types = {one.type for one in named}
    actions = ["access", *(["correct"] if letters & set("cud") else [])]
    provision: dict[str, Any] = {
        "type": "permit",
        **({"period": {"end": _end(until)}} if until else {}),
        "actor": [{"role": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
                                        "code": "PRCP"}]},
                   "reference": {"reference": f"Device/{client_id}", "display": client_name[:200]}}],
        "action": [{"coding": [{"system": _ACTIONS, "code": code}]} for code in actions],
        "purpose": [{"system": policy().purpose_system, "code": purpose}],
        **({} if "*" in types else {"class": [{"system": _TYPES, "code": type_} for type_ in sorted(types)]}),
        **_alike(named)}
    return {
        "resourceType": "Consent", "status": "proposed",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": patient}, "dateTime": format_instant(now_ms()),
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": provision}


def _alike(named: Sequence[ResourceScope]) -> dict[str, Any]:
    """The kinds and the time that every scope restricts alike."""
    found: dict[str, Any] = {}
    kinds = {_only(one, "category") for one in named}
    if len(kinds) == 1 and (text := kinds.pop()) is not None and all(map(_TOKEN.fullmatch, text.split(","))):
        found["code"] = [{"coding": [{"system": system, "code": code}]}
                         for system, _, code in (part.partition("|") for part in text.split(","))]
    dates = {tuple(sorted(value for name, value in one.criteria if name == "date")) for one in named}
    if len(dates) == 1 and (period := _period(dates.pop())):
        found["dataPeriod"] = period
    return found


def _only(scope: ResourceScope, name: str) -> str | None:
    values = [value for criterion, value in scope.criteria if criterion == name]
    return values[0] if len(values) == 1 else None


def _period(values: tuple[str, ...]) -> dict[str, str]:
    ends = {"ge": "start", "le": "end"}
    if not values or any(value[:2] not in ends or not _DAY.fullmatch(value[2:]) for value in values):
        return {}
    return {ends[value[:2]]: value[2:] for value in values}


def _end(until: str) -> str:
    if not _DAY.fullmatch(until):
        raise Unprocessable("the end is a day, YYYY-MM-DD", code="value")
    return until
