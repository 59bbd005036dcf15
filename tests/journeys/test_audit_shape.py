"""AuditEvents as IHE BALP has them (element rules from its profiles, https://profiles.ihe.net/ITI/BALP), the patient's
access history, receipts of audit rows, and what types' rules refuse."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.smart.accounts import add_user
from tests.consent import consent
from tests.journeys.hospital import Client, Hospital, observation

DCM = "http://dicom.nema.org/resources/ontology/DCM"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
PROVENANCE = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
RESTFUL = "http://hl7.org/fhir/restful-interaction"
# profile: subtype, action, client, server, types of the user's agent
PROFILES = {
    "read": ("read", "R", (DCM, "110152"), (DCM, "110153"), "IRCP"),
    "vread": ("vread", "R", (DCM, "110152"), (DCM, "110153"), "IRCP"),
    "query": ("search-type", "E", (DCM, "110153"), (DCM, "110152"), "IRCP"),
    "create": ("create", "C", (DCM, "110153"), (DCM, "110152"), "AUT"),
    "update": ("update", "U", (DCM, "110153"), (DCM, "110152"), "AUT"),
    "delete": ("delete", "D", (DCM, "110150"), (PROVENANCE, "custodian"), "AUT"),
}


def events(client: Client, patient: str, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"AuditEvent?patient={patient}{query}")
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", ())]


def of_type(event: dict[str, Any], system: str, code: str) -> list[dict[str, Any]]:
    return [agent for agent in event["agent"] for coding in agent["type"]["coding"]
            if (coding["system"], coding["code"]) == (system, code)]


def entities(event: dict[str, Any], code: str) -> list[dict[str, Any]]:
    return [one for one in event["entity"] if one["type"]["code"] == code
            and one["type"]["system"] == "http://terminology.hl7.org/CodeSystem/audit-entity-type"]


@pytest.fixture
def place(hospital_with: Callable[..., Hospital]) -> Hospital:
    hospital = hospital_with(hospital_name="Saint Elsewhere")
    add_user(hospital.smart, fhir_user="Practitioner/known", role="clinician", name="Dr Known",
             organizations=["Organization/ward-7"])
    return hospital


def test_each_interaction_follows_its_profile(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Organization/ward-7", confidentiality=3)
    own, doctor = place.patient(patient), place.clinician("known")
    id_ = doctor.post("Observation", observation(patient)).json()["id"]
    doctor.get(f"Observation/{id_}")
    doctor.get(f"Observation/{id_}/_history/1")
    doctor.get(f"Observation?patient={patient}&code=8867-4")
    doctor.put(f"Observation/{id_}", observation(patient, "70", id=id_))
    mine = own.post("Observation", observation(patient)).json()["id"]
    own.delete(f"Observation/{mine}")
    found = {one["subtype"][0]["code"]: one for one in reversed(events(own, patient)) if one["outcome"] == "0"}
    for name, (subtype, action, client, server, user) in PROFILES.items():
        event = found[subtype]
        place.node.validator.require(event, expected_type="AuditEvent")
        assert (event["type"]["code"], event["action"]) == ("rest", action), name
        assert event["subtype"][0]["system"] == RESTFUL
        [asking] = of_type(event, *client)
        [serving] = of_type(event, *server)
        [person] = of_type(event, PARTICIPATION, user)
        assert asking["who"]["identifier"]["value"]
        assert serving["who"]["display"] == "Saint Elsewhere"
        for one in (asking, serving):
            assert one["network"]
            assert "media" not in one
        assert person["requestor"] is True
        assert "network" not in person
        assert person["role"]
        assert person["purposeOfUse"]
        assert [one["requestor"] for one in event["agent"]].count(True) == 1
        [subject] = entities(event, "1")
        assert (subject["what"]["reference"], subject["role"]["code"]) == (f"Patient/{patient}", "1")
        [data] = entities(event, "2")
        if name == "query":
            assert data["role"]["code"] == "24"
            assert "what" not in data
            assert base64.b64decode(data["query"]).decode() == data["description"]
        else:
            assert data["role"]["code"] == "4"
            assert data["what"]["reference"].startswith("Observation/")


def test_who_for_whom_and_on_which_consent(place: Hospital) -> None:
    patient = place.new_patient()
    name = place.grant(patient, "Organization/ward-7", confidentiality=3)
    doctor = place.clinician("known")
    doctor.get(f"Patient/{patient}")
    own = place.patient(patient)
    [event] = events(own, patient, "&subtype=read")
    [person] = of_type(event, PARTICIPATION, "IRCP")
    assert person["who"] == {"reference": "Practitioner/known", "display": "Dr Known"}
    organizations = of_type(event, "http://terminology.hl7.org/CodeSystem/v3-RoleClass", "PROV")
    assert "Organization/ward-7" in [one["who"]["reference"] for one in organizations]
    assert f"Consent/{name}" in [one["what"]["reference"] for one in event["entity"] if "what" in one]
    assert "basis grant" in event["outcomeDesc"]
    assert event["agent"][0]["network"] == {"address": "127.0.0.1", "type": "2"}
    history = own.get(f"Patient/{patient}/$access-history?_count=1").json()
    assert len(history["entry"]) == 1
    assert any(link["relation"] == "next" for link in history["link"])
    read = own.get(f"Patient/{patient}/$access-history?subtype=read").json()["entry"][0]["resource"]
    place.node.validator.require(read, expected_type="AuditEvent")
    assert "Dr Known" in read["text"]["div"]
    assert "because you permitted it" in read["text"]["div"]
    assert f"Consent/{name}" in read["text"]["div"]
    stranger = place.patient(place.new_patient())
    assert stranger.get(f"Patient/{patient}/$access-history").json().get("entry") is None


def test_a_query_that_names_others_is_told_without_them_and_whole_to_the_head(place: Hospital) -> None:
    add_user(place.smart, fhir_user="Practitioner/head", role="privacy-officer", name="Head")
    one, other = place.new_patient(), place.new_patient(identifier=[{"system": "urn:n", "value": "secret-9"}])
    for patient in (one, other):
        place.grant(patient, "Organization/ward-7", confidentiality=3)
        place.feed.post("Observation", observation(patient))
    doctor = place.clinician("known")
    assert doctor.total(f"Observation?patient={one},{other}&code=8867-4") == 2
    assert doctor.total(f"Observation?subject:Patient.identifier=urn:n|secret-9&patient={other}") == 1
    for patient, hidden in ((one, other), (other, one)):
        told = json.dumps(events(place.patient(patient), patient, "&subtype=search-type"))
        assert hidden not in told
        assert "code=8867-4" in told
    assert "secret-9" not in json.dumps(events(place.patient(one), one))
    officer = place.client(user="Practitioner/head", purpose="HOPERAT")
    shown = [entry["resource"] for entry in officer.get("AuditEvent?_count=50").json()["entry"]]
    queries = [base64.b64decode(entity["query"]).decode() for event in shown for entity in event.get("entity", ())
               if "query" in entity]
    assert any(one in query and other in query for query in queries), "kept for those on duty"


def test_a_row_that_waits_for_its_anchor_says_so(place: Hospital) -> None:
    patient = place.new_patient()
    own = place.patient(patient)
    id_ = events(own, patient)[0]["id"]
    assert own.get(f"AuditEvent/{id_}/$receipt").status_code == 202
    other = place.patient(place.new_patient())
    there, absent = other.get(f"AuditEvent/{id_}/$receipt"), other.get("AuditEvent/log-99999999/$receipt")
    assert there.status_code == absent.status_code == 404
    assert there.text.replace(id_, "log-99999999") == absent.text


def test_what_the_rules_of_a_type_refuse_is_in_the_audit(place: Hospital) -> None:
    patient = place.new_patient()
    own = place.patient(patient)

    def refused() -> list[tuple[str, str]]:
        return [(one.interaction, one.reason) for one in place.audited(patient) if one.outcome == "4"]

    body = consent(patient, "Practitioner/known")
    assert own.post("Consent", {**body, "status": "active"}).status_code == 422
    assert refused() == [("create", "the rules of its type")]
    id_ = own.post("Consent", body).json()["id"]
    assert own.put(f"Consent/{id_}", {**body, "id": id_, "status": "active"}).status_code == 422
    assert refused()[0] == ("update", "the rules of its type")
    entry = {"resource": {**body, "status": "active"}, "request": {"method": "POST", "url": "Consent"}}
    answer = own.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [entry]})
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["expression"][0].startswith("Bundle.entry[0]")
    assert len(refused()) == 3
    place.feed.put("Practitioner/known", {"resourceType": "Practitioner", "id": "known"})
    slot = place.new({"resourceType": "Slot", "status": "busy", "start": "2030-01-01T10:00:00Z",
                      "end": "2030-01-01T10:30:00Z", "schedule": {"reference": "Schedule/" + place.new({
                          "resourceType": "Schedule", "actor": [{"reference": "Practitioner/known"}]})}})
    booked = own.post("Appointment", {
        "resourceType": "Appointment", "status": "proposed", "slot": [{"reference": f"Slot/{slot}"}],
        "start": "2030-01-01T10:00:00Z", "end": "2030-01-01T10:30:00Z",
        "participant": [{"actor": {"reference": f"Patient/{patient}"}, "status": "accepted"}]})
    assert booked.status_code in (201, 409, 422), booked.text
    if booked.status_code != 201:
        assert len(refused()) == 4, "found in the commit"
    assert place.audit_is_whole()
