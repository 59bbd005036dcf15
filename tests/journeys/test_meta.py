"""$meta, $meta-add and $meta-delete over HTTP. https://hl7.org/fhir/R4/resource-operations.html"""

from __future__ import annotations

from typing import Any

import pytest

from tests.journeys.hospital import Client, Hospital, observation, places

TAG = {"system": "urn:meta-tags", "code": "one"}
RESTRICTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}


def body(**meta: Any) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": meta}]}


def meta(client: Client, url: str) -> dict[str, Any]:
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    [parameter] = answer.json()["parameter"]
    assert parameter["name"] == "return"
    found: dict[str, Any] = parameter["valueMeta"]
    return found


@pytest.fixture
def place(hospital: Hospital) -> str:
    made = hospital.feed.post("Observation", observation(hospital.new_patient(), "1.10"))
    return f"Observation/{made.json()['id']}"


def test_add_and_delete_make_versions_of_the_same_content(hospital: Hospital, place: str) -> None:
    before = hospital.feed.get(place)
    added = hospital.feed.post(f"{place}/$meta-add", body(tag=[TAG], profile=["http://x.example/p"]))
    assert added.status_code == 200, added.text
    found = meta(hospital.feed, f"{place}/$meta")
    assert (found["versionId"], found["tag"], found["profile"]) == ("2", [TAG], ["http://x.example/p"])
    assert meta(hospital.feed, f"{place}/_history/1/$meta")["versionId"] == "1"
    again = hospital.feed.post(f"{place}/$meta-add", body(tag=[{**TAG, "display": "another"}]))
    assert again.json()["parameter"][0]["valueMeta"]["versionId"] == "2"
    hospital.feed.post(f"{place}/$meta-delete", body(tag=[TAG], profile=["http://x.example/p"]))
    after = hospital.feed.get(place)
    assert after.content.partition(b'"status"')[2] == before.content.partition(b'"status"')[2]
    assert set(after.json()["meta"]) == {"versionId", "lastUpdated"}
    assert b'"value":1.10' in after.content


def test_type_and_system_join_what_may_be_seen(hospital: Hospital) -> None:
    patient, other = hospital.new_patient(meta={"tag": [TAG]}), hospital.new_patient(meta={"tag": [
        {"system": "urn:meta-tags", "code": "hidden"}]})
    own = hospital.patient(patient)
    assert meta(own, "Patient/$meta") == {"tag": [TAG]}
    assert TAG in meta(own, "$meta")["tag"]
    assert all(tag["code"] != "hidden" for tag in meta(own, "$meta")["tag"])
    assert meta(hospital.patient(other), "Patient/$meta")["tag"][0]["code"] == "hidden"


def test_labels_follow_the_rules_of_labels(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    place = f"Observation/{hospital.feed.post('Observation', observation(patient)).json()['id']}"
    doctor = hospital.clinician("meta-1")
    hospital.grant(patient, "Practitioner/meta-1", confidentiality=5)
    raised = doctor.post(f"{place}/$meta-add", body(security=[RESTRICTED]))
    assert raised.status_code == 200, raised.text
    assert doctor.post(f"{place}/$meta-delete", body(security=[RESTRICTED])).status_code == 403
    assert meta(doctor, f"{place}/$meta")["security"] == [RESTRICTED]
    own = hospital.patient(patient)
    assert own.post(f"{place}/$meta-delete", body(security=[RESTRICTED])).status_code == 200


def test_hidden_is_absent(hospital: Hospital, place: str) -> None:
    doctor = hospital.clinician("meta-2")
    for url, sent in (("$meta", None), ("_history/1/$meta", None), ("$meta-add", body(tag=[TAG])),
                      ("$meta-delete", body(tag=[TAG]))):
        hidden, absent = (doctor.request("POST" if sent else "GET", f"{where}/{url}", sent)
                          for where in (place, "Observation/nobody-1"))
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace(place, "Observation/nobody-1") == absent.text


@pytest.mark.parametrize(("sent", "status", "where"), [
    ({"resourceType": "Parameters"}, 400, "http.meta"), (body(versionId="7"), 400, "http.meta"),
    ({"resourceType": "Parameters", "parameter": [{"name": "meta", "valueString": "x"}]}, 400, "http.meta"),
    ({"resourceType": "Parameters", "parameter": [{"name": "more", "valueString": "x"}]}, 400, "http.more"),
    (body(tag="x"), 400, "Parameters.parameter[0].value.ofType(Meta).tag")])
def test_what_is_no_meta_is_refused(hospital: Hospital, place: str, sent: dict[str, Any], status: int,
                                    where: str) -> None:
    answer = hospital.feed.post(f"{place}/$meta-add", sent)
    assert (answer.status_code, places(answer)) == (status, [where])


def test_a_deleted_resource_has_no_meta(hospital: Hospital, place: str) -> None:
    hospital.feed.delete(place)
    assert hospital.feed.get(f"{place}/$meta").status_code == 410
    assert hospital.feed.post(f"{place}/$meta-add", body(tag=[TAG])).status_code == 410
