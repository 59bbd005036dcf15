"""$validate: what is wrong with a resource, and whether a write would be refused; never stores, never tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.journeys.hospital import Client, Hospital, observation, places

HEART_RATE = "http://hl7.org/fhir/StructureDefinition/heartrate"
VITAL = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}]}]
PACKAGE = Path(__file__).parents[1] / "fixtures" / "package"
WARD = "http://example.org/fhir/StructureDefinition/ward-patient"


def severities(client: Client, url: str, body: Any = None) -> list[str]:
    """The severities of the outcome, which always comes with 200."""
    answer = client.post(url, body) if body is not None else client.get(url)
    assert answer.status_code == 200, answer.text
    places(answer)
    return [issue["severity"] for issue in answer.json()["issue"]]


def call(**parameters: Any) -> dict[str, Any]:
    """Parameters of the operation."""
    return {"resourceType": "Parameters", "parameter": [
        {"name": name, **({"resource": value} if name == "resource" else
                          {"valueCode" if name == "mode" else "valueUri": value})}
        for name, value in parameters.items()]}


def test_a_resource_is_judged_as_it_stands_or_in_parameters_and_never_stored(hospital: Hospital) -> None:
    before = hospital.stored()
    valid, invalid = {"resourceType": "Patient", "active": True}, {"resourceType": "Patient", "gender": "?"}
    for shape in (lambda resource: resource, lambda resource: call(resource=resource)):
        assert severities(hospital.feed, "Patient/$validate", shape(valid)) == ["information"]
        answer = hospital.feed.post("Patient/$validate", shape(invalid))
        assert places(answer) == ["Patient.gender"]
        assert severities(hospital.feed, "Observation/$validate", shape(valid)) == ["error"]
    assert hospital.stored() == before


def test_a_profile_may_be_asked_for_by_either_way(hospital: Hospital) -> None:
    body = observation(None, category=VITAL, subject={"reference": "Patient/any"})
    assert severities(hospital.feed, f"Observation/$validate?profile={HEART_RATE}", body) == ["information"]
    bare = {"resourceType": "Observation", "status": "final", "code": {"text": "pulse"}}
    asked = hospital.feed.post("Observation/$validate", call(resource=bare, profile=HEART_RATE))
    assert {"Observation.category", "Observation.subject"} <= set(places(asked))
    assert severities(hospital.feed, "Observation/$validate", bare) == ["information"]
    unknown = hospital.feed.post("Observation/$validate?profile=urn:nobody:has", bare)
    assert [issue["code"] for issue in unknown.json()["issue"]] == ["not-found"]


def test_r4s_vital_signs_are_judged_by_their_code(hospital: Hospital) -> None:
    """'If an Observation has one of the magic codes it SHALL conform' (observation-vitalsigns.html)."""
    assert "error" in severities(hospital.feed, "Observation/$validate", observation(None))
    assert hospital.feed.post("Observation", observation(None)).status_code == 201


@pytest.mark.parametrize("body", [
    b"", b"no", b'{"resourceType":"Parameters","parameter":{}}', b'{"resourceType":"Parameters","parameter":[1]}',
    b'{"resourceType":"Parameters","parameter":[{"name":"resource","resource":7}]}',
    b'{"resourceType":"Parameters"}',
    b'{"resourceType":"Parameters","parameter":[{"name":"mode","valueCode":"?"}]}',
    b'{"resourceType":"Parameters","parameter":[{"name":"mode","valueCode":["create"]}]}',
    b'{"resourceType":"Parameters","parameter":[{"name":"profile"}]}',
    b'{"resourceType":"Parameters","parameter":[{"name":"other","valueCode":"x"}]}'])
def test_a_call_that_is_none_is_refused(hospital: Hospital, body: bytes) -> None:
    answer = hospital.feed.post("Patient/$validate", body)
    assert answer.status_code in (400, 415), answer.text
    places(answer)


def test_create_mode_says_what_the_create_would(hospital: Hospital) -> None:
    """An app that may only read is told so; a patient nobody may see is as one who is not there."""
    id_ = hospital.new_patient()
    body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"},
            "subject": {"reference": f"Patient/{id_}"}}
    before = hospital.stored()
    assert severities(hospital.feed, "Observation/$validate", call(resource=body, mode="create")) == ["information"]
    stranger = hospital.clinician("dr-stranger")
    there = stranger.post("Observation/$validate", call(resource=body, mode="create"))
    gone = stranger.post("Observation/$validate", call(
        resource={**body, "subject": {"reference": "Patient/nobody"}}, mode="create"))
    assert there.json()["issue"][0]["severity"] == "error"
    assert there.text.replace(id_, "nobody") == gone.text
    reader = hospital.client(user="Practitioner/dr-1", scope="user/*.rs")
    answer = reader.post("Observation/$validate", call(resource=body, mode="create"))
    assert [issue["code"] for issue in answer.json()["issue"]] == ["forbidden"]
    assert hospital.stored() == before


def test_update_and_delete_modes_look_as_the_writes_would(hospital: Hospital) -> None:
    id_ = hospital.new_patient(active=True)
    body = {"resourceType": "Patient", "id": id_, "active": False}
    before = hospital.stored()
    for url in ("Patient/$validate", f"Patient/{id_}/$validate"):
        assert severities(hospital.feed, url, call(resource=body, mode="update")) == ["information"]
    assert severities(hospital.feed, f"Patient/{id_}/$validate", call(mode="delete")) == ["information"]
    assert severities(hospital.feed, f"Patient/{id_}/$validate?mode=delete") == ["information"]
    stranger = hospital.clinician("dr-stranger")
    answers = []
    for name in (id_, "nobody"):
        for mode in ("update", "delete"):
            sent = call(mode=mode) if mode == "delete" else call(resource={**body, "id": name}, mode=mode)
            answer = stranger.post(f"Patient/{name}/$validate", sent)
            assert answer.status_code == 200
            answers.append(answer.text.replace(name, "*"))
    assert answers[1] == answers[3]
    refused = stranger.put(f"Patient/{id_}", body)
    assert answers[0] == refused.text.replace(id_, "*")
    assert hospital.stored() == before
    assert severities(hospital.feed, "Patient/$validate", call(resource={"resourceType": "Patient"},
                                                               mode="update")) == ["error"]


def test_what_is_stored_is_judged_for_who_may_read_it(hospital: Hospital) -> None:
    id_ = hospital.new_patient(active=True)
    assert severities(hospital.feed, f"Patient/{id_}/$validate") == ["information"]
    assert severities(hospital.feed, f"Patient/{id_}/$validate?mode=update") == ["information"]
    stranger = hospital.clinician("dr-stranger")
    there, gone = stranger.get(f"Patient/{id_}/$validate"), stranger.get("Patient/nobody/$validate")
    assert (there.status_code, there.text.replace(id_, "nobody")) == (gone.status_code, gone.text)
    assert gone.status_code == 404
    assert hospital.audited(id_)[0].outcome == "4"


def test_claimed_profiles_of_packages_refuse_a_write(tmp_path: Path) -> None:
    made = Hospital(tmp_path, packages=str(PACKAGE))
    try:
        claim = {"resourceType": "Patient", "meta": {"profile": [WARD]}}
        refused = made.feed.post("Patient", claim)
        assert refused.status_code == 422, refused.text
        assert "Patient.identifier" in places(refused)
        assert made.feed.post("Patient", {"resourceType": "Patient", "meta": {"profile": [f"{WARD}-unknown"]}}
                              ).status_code == 201
    finally:
        made.close()


def test_a_required_profile_binds_every_resource_of_its_type(tmp_path: Path) -> None:
    made = Hospital(tmp_path, packages=str(PACKAGE), required_profiles=f"Patient={WARD}")
    try:
        assert made.feed.post("Patient", {"resourceType": "Patient"}).status_code == 422
        ward = {"url": "http://example.org/fhir/StructureDefinition/ward", "valueCode": "west"}
        number = {"system": "http://example.org/ward-numbers", "value": "7"}
        answer = made.feed.post("Patient", {"resourceType": "Patient", "identifier": [number], "extension": [ward],
                                            "name": [{"family": "Ward"}]})
        assert answer.status_code == 201, answer.text
        assert made.feed.post("Organization", {"resourceType": "Organization", "name": "x"}).status_code == 201
    finally:
        made.close()
