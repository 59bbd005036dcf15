"""A Consent as a patient's app would propose it, for whatever test needs one."""

from __future__ import annotations

from typing import Any, Final

TREATMENT: Final = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREAT"}


def consent(patient: str, grantee: str, **elements: Any) -> dict[str, Any]:
    """A proposed Consent of ``patient`` (a logical id) that lets ``grantee`` see everything; ``elements`` replace its
    own."""
    return {
        "resourceType": "Consent", "status": "proposed",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{patient}"},
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": {"type": "permit", "actor": [{
            "role": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
                                 "code": "PRCP"}]}, "reference": {"reference": grantee}}]},
        **elements}


def permitting(patient: str, grantee: str, **rule: Any) -> dict[str, Any]:
    """The same, its permit narrowed by ``rule``: purposes, instances, a period."""
    made = consent(patient, grantee)
    made["provision"].update(rule)
    return made
