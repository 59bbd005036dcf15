"""$summary, $document and $docref over HTTP. https://hl7.org/fhir/R4/documents.html"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.fhir.resource import parse
from tests.journeys.hospital import LOINC, Hospital, observation, places

CLINICAL = "http://terminology.hl7.org/CodeSystem/condition-clinical"


def condition(patient: str, text: str, status: str = "active") -> dict[str, Any]:
    return {"resourceType": "Condition", "subject": {"reference": f"Patient/{patient}"}, "code": {"text": text},
            "clinicalStatus": {"coding": [{"system": CLINICAL, "code": status}]}}


@pytest.fixture
def record(hospital: Hospital) -> str:
    patient = hospital.new_patient(identifier=[{"system": "urn:summary", "value": "1"}], name=[{"family": "S"}])
    hospital.new(condition(patient, "Asthma <b>&bad</b>"))
    hospital.new(condition(patient, "Fracture", "resolved"))
    medication = hospital.new({"resourceType": "Medication", "code": {"text": "Ibuprofen"}})
    hospital.new({"resourceType": "MedicationStatement", "status": "active",
                  "subject": {"reference": f"Patient/{patient}"},
                  "medicationReference": {"reference": f"Medication/{medication}"}})
    hospital.feed.post("Observation", observation(patient, "1.10", category=[{"coding": [{
        "system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}]))
    return patient


def sections(answer: httpx.Response) -> dict[str, list[dict[str, Any]]]:
    """Each section's resources by the section's code; every reference of the document resolves in it."""
    assert answer.status_code == 200, answer.text
    bundle = answer.json()
    inside = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    composition = bundle["entry"][0]["resource"]
    assert bundle["type"] == "document"
    assert composition["resourceType"] == "Composition"
    for name in ("subject", "custodian"):
        assert composition[name]["reference"] in inside
    return {one["code"]["coding"][0]["code"]: [inside[entry["reference"]] for entry in one["entry"]]
            for one in composition["section"]}


def test_a_summary_has_its_sections_and_what_they_name(hospital: Hospital, record: str) -> None:
    answer = hospital.feed.get(f"Patient/{record}/$summary")
    found = sections(answer)
    assert [one["code"]["text"] for one in found["11450-4"]] == ["Asthma <b>&bad</b>"]
    assert [one["code"]["text"] for one in found["11348-0"]] == ["Fracture"]
    assert found["48765-2"][0]["code"]["coding"][0]["code"] == "no-allergy-info"
    assert found["10160-0"][0]["status"] == "active"
    assert b'"value":1.10' in answer.content
    types = [entry["resource"]["resourceType"] for entry in answer.json()["entry"]]
    assert types.count("Medication") == 1
    assert types[:2] == ["Composition", "Patient"]
    problems = answer.json()["entry"][0]["resource"]["section"][0]
    assert problems["text"]["div"] == ('<div xmlns="http://www.w3.org/1999/xhtml"><ul><li>Asthma '
                                       "&lt;b&gt;&amp;bad&lt;/b&gt;</li></ul></div>")
    assert not [one for one in hospital.node.validator.validate(parse(answer.content)) if one.severity == "error"]


def test_a_summary_of_nothing_says_so_and_is_valid(hospital: Hospital) -> None:
    answer = hospital.feed.get(f"Patient/{hospital.new_patient()}/$summary")
    assert {code: one[0]["resourceType"] for code, one in sections(answer).items()} == {
        "11450-4": "Condition", "48765-2": "AllergyIntolerance", "10160-0": "MedicationStatement"}
    assert not [one for one in hospital.node.validator.validate(parse(answer.content)) if one.severity == "error"]


def test_a_summary_by_identifier(hospital: Hospital) -> None:
    patient = hospital.new_patient(identifier=[{"system": "urn:by", "value": "one"}])
    answer = hospital.feed.get("Patient/$summary?identifier=urn:by|one")
    assert answer.json()["entry"][1]["resource"]["id"] == patient
    assert hospital.feed.get("Patient/$summary?identifier=urn:by|none").status_code == 404
    hidden = hospital.clinician("summary-1").get("Patient/$summary?identifier=urn:by|one")
    absent = hospital.clinician("summary-1").get("Patient/$summary?identifier=urn:by|none")
    assert (hidden.status_code, hidden.text) == (absent.status_code, absent.text)


def test_a_summary_shows_what_may_be_seen(hospital: Hospital, record: str) -> None:
    doctor = hospital.clinician("summary-2")
    hidden, absent = doctor.get(f"Patient/{record}/$summary"), doctor.get("Patient/nobody-1/$summary")
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace(record, "nobody-1") == absent.text
    hospital.grant(record, "Practitioner/summary-2", types=frozenset({"Patient", "Observation"}))
    found = sections(doctor.get(f"Patient/{record}/$summary"))
    assert found["11450-4"][0]["code"]["coding"][0]["code"] == "no-problem-info"
    assert "11348-0" not in found
    assert found["30954-2"][0]["resourceType"] == "Observation"
    assert hospital.audited(record)[0].interaction == "summary"


def test_a_composition_becomes_a_document(hospital: Hospital, record: str) -> None:
    author = hospital.new({"resourceType": "Practitioner"})
    hidden = hospital.new(condition(hospital.new_patient(), "Hidden"))
    id_ = hospital.new({
        "resourceType": "Composition", "status": "final", "type": {"coding": [{"system": LOINC, "code": "34133-9"}]},
        "subject": {"reference": f"Patient/{record}"}, "date": "2024-01-01", "title": "Letter",
        "author": [{"reference": f"Practitioner/{author}"}], "section": [
            {"title": "S", "entry": [{"reference": f"Condition/{hidden}"}]}]})
    made = hospital.feed.get(f"Composition/{id_}/$document").json()
    assert [entry["resource"]["id"] for entry in made["entry"]] == [id_, record, author, hidden]
    own = hospital.patient(record).get(f"Composition/{id_}/$document").json()
    assert [entry["resource"]["id"] for entry in own["entry"]] == [id_, record, author]
    assert hospital.clinician("summary-3").get(f"Composition/{id_}/$document").status_code == 404
    stored = hospital.feed.post(f"Composition/{id_}/$document", {"resourceType": "Parameters", "parameter": [
        {"name": "persist", "valueBoolean": True}]})
    assert stored.status_code == 201, stored.text
    assert hospital.feed.get(f"Bundle/{stored.json()['id']}").json()["type"] == "document"
    assert hospital.feed.get(f"Composition/{id_}/$document?persist=true").status_code == 400


def test_docref_finds_documents_by_type_and_time_of_care(hospital: Hospital, record: str) -> None:
    def reference(year: str, code: str, **elements: Any) -> str:
        return hospital.new({
            "resourceType": "DocumentReference", "status": "current", "date": "2024-06-01T00:00:00Z",
            "type": {"coding": [{"system": LOINC, "code": code}]}, "subject": {"reference": f"Patient/{record}"},
            "context": {"period": {"start": year, "end": year}}, "content": [{"attachment": {"url": "urn:x"}}],
            **elements})

    old, new = reference("2020", "34133-9"), reference("2023", "11506-3")
    reference("2023", "11506-3", status="superseded")
    url = f"DocumentReference/$docref?patient={record}"
    assert set(hospital.feed.ids(url)) == {old, new}
    assert hospital.feed.ids(f"{url}&start=2022-01-01") == [new]
    assert hospital.feed.ids(f"{url}&end=2021-01-01") == [old]
    assert hospital.feed.ids(f"{url}&type={LOINC}|11506-3") == [new]
    assert hospital.clinician("docref-1").ids(url) == []


@pytest.mark.parametrize(("url", "place"), [
    ("DocumentReference/$docref", "http.patient"), ("DocumentReference/$docref?patient=a b", "http.patient"),
    ("DocumentReference/$docref?patient=1&on-demand=true", "http.on-demand"),
    ("DocumentReference/$docref?patient=1&more=1", "http.more"), ("Patient/$summary", "http.identifier"),
    ("Patient/1/$summary?profile=http://other", "http.profile"), ("Composition/1/$document?graph=x", "http.graph")])
def test_what_is_not_offered_is_refused_by_name(hospital: Hospital, url: str, place: str) -> None:
    answer = hospital.feed.get(url)
    assert (answer.status_code, places(answer)) == (400, [place])
