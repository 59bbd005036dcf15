"""The AuditEvents no journey makes: sign-ins and disclosures, by the rules of their BALP profiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.audit import AuditEntry
from gateway.records.audit_shape import Setting, event, narrative, sentence

DCM = "http://dicom.nema.org/resources/ontology/DCM"
WHERE = Setting(hospital="Saint Elsewhere", reference="Organization/here", base_url="https://h.example/fhir",
                name={"app-1": "Diary", "Patient/p": "Pat", "Practitioner/d": "Dr <b>D</b>"}.get)


def entry(**given: Any) -> AuditEntry:
    return AuditEntry(**{"time_ms": 0, "action": "E", "interaction": "read", "outcome": "0", "what": (),
                         "client": "app-1", "user": None, "role": "patient", "purpose": "PATRQT", **given})


def codes(made: dict[str, Any]) -> list[str]:
    return [agent["type"]["coding"][0]["code"] for agent in made["agent"]]


@pytest.mark.parametrize(("interaction", "subtype"), [("sign-in", "110122"), ("sign-out", "110123")])
def test_signing_in_and_out_is_user_authentication(interaction: str, subtype: str) -> None:
    made = event(1, 0, entry(interaction=interaction, user="Patient/p"), "p", WHERE)
    assert (made["type"]["system"], made["type"]["code"]) == (DCM, "110114")
    assert [(one["system"], one["code"]) for one in made["subtype"]] == [(DCM, subtype)]
    assert made["agent"][-1]["who"] == {"reference": "Patient/p", "display": "Pat"}


def test_an_export_is_a_privacy_disclosure_by_its_source() -> None:
    """AuditPrivacyDisclosureSource: the source is who records; patient and data are entities."""
    made = event(1, 0, entry(interaction="export", action="R", role="system", address="192.0.2.7",
                             what=("Observation/1/_history/1", "Condition/2/_history/3")), "p", WHERE)
    assert (made["type"]["code"], made["action"]) == ("110106", "R")
    assert made["subtype"][0]["code"] == "disclose"
    [source] = [agent for agent in made["agent"] if agent["type"]["coding"][0]["code"] == "110153"]
    assert source["who"] == made["source"]["observer"]
    assert source["network"]
    [recipient] = [agent for agent in made["agent"] if agent["type"]["coding"][0]["code"] == "110152"]
    assert recipient["network"] == {"address": "192.0.2.7", "type": "2"}
    assert made["entity"][0]["what"]["reference"] == "Patient/p"
    assert len(made["entity"]) == 3


def test_an_operation_is_one_of_rest_and_keeps_its_name() -> None:
    made = event(1, 0, entry(interaction="everything", query="", what=("Patient/p/_history/1",)), "p", WHERE)
    assert [one["code"] for one in made["subtype"]] == ["operation", "everything"]
    assert codes(made) == ["110152", "110153"]


def test_the_sentence_says_who_what_why_and_on_which_consent_and_is_no_markup() -> None:
    said = sentence(0, entry(user="Practitioner/d", purpose="TREAT", action="R", basis="grant", provisions=("c-1/0",),
                             what=("Observation/1/_history/1",), organizations=("Organization/w",)), "p", WHERE)
    assert said == ("1970-01-01T00:00:00.000Z: Dr <b>D</b> with Diary of Organization/w read Observation for "
                    "treatment, because you permitted it (Consent/c-1).")
    assert "<b>" not in narrative(said)["div"]
    assert "was refused" in sentence(0, entry(outcome="4", what=("Observation",)), "p", WHERE)


def test_which_other_patient_asked_is_for_those_on_duty() -> None:
    asked = entry(user="Patient/p", what=("Patient/q",), outcome="4")
    assert event(1, 0, asked, "q", WHERE)["agent"][-1]["who"] == {"display": "another patient"}
    assert event(1, 0, asked, "q", replace(WHERE, on_duty=True))["agent"][-1]["who"]["reference"] == "Patient/p"
    assert "another patient with Diary asked" in sentence(0, asked, "q", WHERE)
