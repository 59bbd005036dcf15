"""What the patient's consents leave of a token, told to this hospital's own resource servers at introspection.

Owns gathering the provisions and the ``extensions`` object of IHE IUA and PCF; refuses to say more than forbid-all
where there are too many provisions to be told. https://profiles.ihe.net/ITI/PCF/other.html#updates-to-iti-71
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.residual import NOTHING, Residual, door_of, residual
from gateway.records.node import Node
from gateway.store import provisions
from gateway.store.sql import now_ms

PURPOSES: Final = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
MOST: Final = 200
"""Provisions of one holder told one by one."""


def extensions(node: Node, grant: Grant, consent: str | None) -> dict[str, Any]:
    """``ihe_iua`` and, where the token is about a patient whose consents decide, ``ihe_pcf``.

    ``consent``: the Consent an app's lasting access rests on.
    """
    made: dict[str, Any] = {"ihe_iua": {"purpose_of_use": [{"system": PURPOSES, "code": grant.purpose}]}}
    with node.database.snapshot() as connection:
        found = _residual(node, connection, grant)
    if found is None:
        return made
    base = node.settings.base_url
    documents = [f"{base}/Consent/{id_}" for id_ in dict.fromkeys((*([consent] if consent else []), *found.consents))]
    return {**made, "ihe_pcf": {
        "patient_id": f"{base}/{grant.launch_patient}",
        **({"doc_id": documents[0] if len(documents) == 1 else documents} if documents else {}),
        **({"residual": list(found.rules)} if found.rules else {})}}


def _residual(node: Node, connection: apsw.Connection, grant: Grant) -> Residual | None:
    now, patient = now_ms(), grant.launch_patient
    if patient is None or door_of(grant, now) is None:
        return None
    found = _provisions(node, connection, grant, patient, now)
    if found is None:
        return Residual(rules=(NOTHING,), consents=())
    return residual(grant, found, now, chain_fresh=node.gate.chain_fresh(connection), base=node.settings.base_url)


def _provisions(node: Node, connection: apsw.Connection, grant: Grant, patient: str,
                now: int) -> list[Provision] | None:
    """The patient's provisions that name the holder or everyone; None where they are too many."""
    names = {node.index.grantee(grantee): grantee for grantee in grant.grantees}
    whose = patient.removeprefix("Patient/")
    rows = [*provisions.for_holder(connection, whose, list(names), now),
            *provisions.naming_records(connection, whose, list(names), now, MOST + 1)]
    return None if len(rows) > MOST else [row.for_holder(names) for row in rows]
