"""Patient/$merge over HTTP. https://hl7.org/fhir/patient-operation-merge.html"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.smart.accounts import add_user
from tests.journeys.hospital import Client, Hospital, observation, places


@pytest.fixture
def office(hospital: Hospital) -> Client:
    add_user(hospital.smart, fhir_user="Practitioner/merger", role="records-office", name="Office")
    return hospital.client(user="Practitioner/merger", purpose="HOPERAT")


@pytest.fixture
def pair(hospital: Hospital) -> dict[str, str]:
    """Two records of one person; the source has an Observation, a Task and a Consent."""
    source = hospital.new_patient(identifier=[{"system": "urn:merge", "value": "old"}])
    target = hospital.new_patient(identifier=[{"system": "urn:merge", "value": "new"}])
    task = {"resourceType": "Task", "status": "draft", "intent": "order", "for": {"reference": f"Patient/{source}"}}
    return {"source": source, "target": target, "task": hospital.new(task),
            "observation": hospital.feed.post("Observation", observation(source, "1.10")).json()["id"]}


def ask(client: Client, source: str, target: str, *more: dict[str, Any]) -> httpx.Response:
    return client.post("Patient/$merge", {"resourceType": "Parameters", "parameter": [
        {"name": "source-patient", "valueReference": {"reference": f"Patient/{source}"}},
        {"name": "target-patient", "valueReference": {"reference": f"Patient/{target}"}}, *more]})


def test_the_source_is_replaced_and_its_records_move(hospital: Hospital, office: Client, pair: dict[str, str]) -> None:
    source, target = pair["source"], pair["target"]
    answer = ask(office, source, target)
    assert answer.status_code == 200, answer.text
    parts = {one["name"]: one["resource"] for one in answer.json()["parameter"]}
    assert parts["outcome"]["issue"][0]["diagnostics"] == "2 records were moved"
    result, replaced = office.get(f"Patient/{target}").json(), office.get(f"Patient/{source}").json()
    assert parts["result"] == result
    assert result["link"] == [{"other": {"reference": f"Patient/{source}"}, "type": "replaces"}]
    assert [one.get("use") for one in result["identifier"]] == [None, "old"]
    assert replaced["link"] == [{"other": {"reference": f"Patient/{target}"}, "type": "replaced-by"}]
    assert replaced["active"] is False
    moved = hospital.feed.get(f"Observation/{pair['observation']}")
    assert moved.json()["subject"] == {"reference": f"Patient/{target}"}
    assert b'"value":1.10' in moved.content
    assert hospital.patient(target).get(f"Observation/{pair['observation']}").status_code == 200
    assert hospital.patient(source).get(f"Observation/{pair['observation']}").status_code == 404
    for patient in (source, target):
        assert any(f"Observation/{pair['observation']}/_history/2" in entry.what for entry in hospital.audited(patient))
    assert ask(office, source, target).status_code == 422
    assert office.get(f"Observation/{pair['observation']}").status_code == 404


def test_a_preview_changes_nothing(hospital: Hospital, office: Client, pair: dict[str, str]) -> None:
    before = hospital.stored()
    answer = ask(office, pair["source"], pair["target"], {"name": "preview", "valueBoolean": True})
    assert answer.json()["parameter"][1]["resource"]["issue"][0]["diagnostics"] == "2 records would be moved"
    assert answer.json()["parameter"][2]["resource"]["link"][0]["type"] == "replaces"
    assert hospital.stored() == before


def test_patients_may_be_named_by_identifier(hospital: Hospital, office: Client) -> None:
    for value in ("id-a", "id-b"):
        hospital.new_patient(identifier=[{"system": "urn:merge", "value": value}])
    answer = office.post("Patient/$merge", {"resourceType": "Parameters", "parameter": [
        {"name": f"{side}-patient-identifier", "valueIdentifier": {"system": "urn:merge", "value": value}}
        for side, value in (("source", "id-a"), ("target", "id-b"))]})
    assert answer.status_code == 200, answer.text


def test_moving_needs_the_authority(hospital: Hospital, pair: dict[str, str]) -> None:
    doctor = hospital.clinician("merge-1")
    for side in ("source", "target"):
        hospital.grant(pair[side], "Practitioner/merge-1")
    before = hospital.stored()
    for client in (doctor, hospital.feed):
        assert ask(client, pair["source"], pair["target"]).status_code == 403
    own = hospital.patient(pair["source"])
    assert ask(own, pair["source"], pair["target"]).status_code == 404
    stranger = hospital.clinician("merge-2")
    assert ask(stranger, pair["source"], pair["target"]).text.replace(pair["source"], "nobody-1") == \
        ask(stranger, "nobody-1", pair["target"]).text
    assert hospital.stored() == before


def test_what_the_source_forbade_is_not_opened_by_a_merge(hospital: Hospital, office: Client,
                                                          pair: dict[str, str]) -> None:
    consent = hospital.grant(pair["source"], "Practitioner/merge-3", permit=False)
    assert ask(office, pair["source"], pair["target"]).status_code == 409
    hospital.revoke(consent)
    assert ask(office, pair["source"], pair["target"]).status_code == 200


def test_who_may_move_a_record_may_not_change_it(hospital: Hospital, office: Client, pair: dict[str, str]) -> None:
    place = f"Observation/{pair['observation']}"
    changed = observation(pair["target"], "2.0", id=pair["observation"])
    assert office.put(place, changed).status_code == 404
    assert office.put(place, observation(pair["source"], "1.10", id=pair["observation"])).status_code == 404


def test_who_labels_a_record_is_not_its_author(hospital: Hospital, pair: dict[str, str]) -> None:
    own = hospital.patient(pair["source"])
    place = f"Observation/{pair['observation']}"
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    sent = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"security": [label]}}]}
    assert own.post(f"{place}/$meta-add", sent).status_code == 200
    assert own.put(place, observation(pair["source"], "9.0", id=pair["observation"])).status_code == 403


@pytest.mark.parametrize(("names", "place"), [
    (["target-patient"], "http.source-patient"), (["source-patient"], "http.target-patient"), (["more"], "http.more")])
def test_merge_refuses_by_name(hospital: Hospital, office: Client, names: list[str], place: str) -> None:
    answer = office.post("Patient/$merge", {"resourceType": "Parameters", "parameter": [
        {"name": name, "valueReference": {"reference": "Patient/1"}} for name in names]})
    assert (answer.status_code, places(answer)) == (400, [place])
    assert ask(office, "same", "same").status_code == 422


def test_records_move_however_they_name_the_source(hospital: Hospital, office: Client, pair: dict[str, str]) -> None:
    """An absolute reference under this server's base, and one to a version, are of the source too."""
    written = [f"{hospital.base}/Patient/{pair['source']}", f"Patient/{pair['source']}/_history/1"]
    ids = [hospital.feed.post("Observation", {
        "resourceType": "Observation", "status": "final", "code": {"text": "x"},
        "subject": {"reference": text}}).json()["id"] for text in written]
    assert ask(office, pair["source"], pair["target"]).status_code == 200
    for id_ in ids:
        assert hospital.feed.get(f"Observation/{id_}").json()["subject"] == {"reference": f"Patient/{pair['target']}"}
        assert hospital.patient(pair["source"]).get(f"Observation/{id_}").status_code == 404
