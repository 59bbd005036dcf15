"""Records that the head verifies or rejects: unverified is live, waiting and rejected are data for nobody."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.access import verification
from gateway.crypto import attestation
from gateway.records import verifying
from gateway.smart.accounts import add_user
from tests.journeys.hospital import Client, Hospital, observation

MARK = "urn:fhir-gateway:mark"


@pytest.fixture
def place(hospital_with: Callable[..., Hospital]) -> Hospital:
    return opened(hospital_with())


@pytest.fixture
def strict(hospital_with: Callable[..., Hospital]) -> Hospital:
    """Observations are no data before they are verified."""
    return opened(hospital_with(verified_types="Observation"))


def opened(hospital: Hospital) -> Hospital:
    add_user(hospital.smart, fhir_user="Practitioner/head", role="privacy-officer", name="The Head")
    return hospital


def head(hospital: Hospital) -> Client:
    return hospital.client(user="Practitioner/head", purpose="HOPERAT")


def listed(hospital: Hospital) -> None:
    while verifying.step(hospital.node):
        pass


def marks(resource: dict[str, Any]) -> list[str]:
    return [tag["code"] for tag in resource.get("meta", {}).get("tag", ()) if tag["system"] == MARK]


def tasks(client: Client, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"Task?code=urn:fhir-gateway:task|verify-record{query}")
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", ())]


def wrote(hospital: Hospital, patient: str, **elements: Any) -> str:
    """An Observation the patient wrote; its id."""
    answer = hospital.patient(patient).post("Observation", observation(patient, **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_what_a_patient_writes_is_marked_unverified_and_is_data(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    own, doctor = place.patient(patient), place.clinician()
    for client in (own, doctor):
        assert marks(client.get(f"Observation/{id_}").json()) == ["unverified"]
        assert client.ids(f"Observation?patient={patient}") == [id_]
    assert doctor.ids(f"Observation?patient={patient}&_tag={MARK}|unverified") == [id_]


def test_nobody_marks_a_record_but_this_hospital(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    own = place.patient(patient)
    for code in ("verified", "notice", "rejected"):
        forged = {"meta": {"tag": [{"system": MARK, "code": code}, {"system": "urn:mine", "code": "kept"}]}}
        written = own.post("Observation", observation(patient, **forged)).json()
        assert marks(written) == ["unverified"]
        assert {"system": "urn:mine", "code": "kept"} in written["meta"]["tag"]
        assert marks(place.feed.post("Observation", observation(patient, **forged)).json()) == []
        assert marks(place.clinician().post("Observation", observation(patient, **forged)).json()) == []


def test_the_head_finds_a_task_for_it_and_verifies_it_with_a_signature_that_holds(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    listed(place)
    listed(place)
    officer = head(place)
    [task] = tasks(officer, "&status=requested")
    place.node.validator.require(task, expected_type="Task")
    assert task["focus"]["reference"] == f"Observation/{id_}/_history/1"
    assert task["for"]["reference"] == f"Patient/{patient}"
    assert task["owner"]["reference"] == "Practitioner/head"
    assert officer.get(f"Observation/{id_}").status_code == 200, "the least the duty needs"
    assert officer.get(f"Patient/{patient}").status_code == 404
    done = officer.put(f"Task/{task['id']}", {**task, "status": "completed"})
    assert done.status_code == 200, done.text
    record = place.clinician().get(f"Observation/{id_}")
    assert (marks(record.json()), record.json()["meta"]["versionId"]) == (["verified"], "2")
    assert record.content.count(b"1.10") == 1, "decimals keep their text"
    assert officer.get(f"Observation/{id_}").status_code == 404, "the duty is done"
    [entry] = place.patient(patient).get(f"Provenance?target=Observation/{id_}").json()["entry"]
    provenance = entry["resource"]
    place.node.validator.require(provenance, expected_type="Provenance")
    signed = base64.b64decode(provenance["signature"][0]["data"]).decode()
    keys = place.run(place.http.get(place.base.removesuffix("/fhir") + "/.well-known/attestation-keys")).json()
    claims = attestation.verified(signed, keys)
    assert claims["sha256"] == hashlib.sha256(record.content).hexdigest()
    assert (claims["outcome"], claims["by"]) == ("verified", "Practitioner/head")
    assert claims["target"] == f"Observation/{id_}/_history/2"
    assert tasks(officer, "&status=requested") == []
    assert place.audited(patient)[0].interaction in ("read", "search-type", "verify", "update")
    assert any(one.interaction == "verify" for one in place.audited(patient))


def test_a_rejected_record_is_data_for_nobody_but_its_author_and_the_head(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    listed(place)
    officer, doctor, own = head(place), place.clinician(), place.patient(patient)
    assert doctor.get(f"Observation/{id_}/_history/1").status_code == 200
    no_reason = officer.post(f"Observation/{id_}/$verify", {"resourceType": "Parameters", "parameter": [
        {"name": "outcome", "valueCode": "rejected"}]})
    assert no_reason.status_code == 422
    answer = officer.post(f"Observation/{id_}/$verify", {"resourceType": "Parameters", "parameter": [
        {"name": "outcome", "valueCode": "rejected"}, {"name": "reason", "valueString": "not this person's"}]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "rejected"
    others = [doctor, place.clinician("er", patient=patient, purpose="BTG", reason="accident"), place.feed]
    for client in others:
        assert client.get(f"Observation/{id_}").status_code == 404
        assert client.get(f"Observation/{id_}/_history/1").status_code == 404
        assert client.get(f"Observation/{id_}/_history").status_code == 404
        assert client.ids(f"Observation?patient={patient}") == []
        assert client.total(f"Observation?patient={patient}&_summary=count") == 0
        assert client.ids(f"Provenance?target=Observation/{id_}") == []
        assert tasks(client) == []
    everything = doctor.get(f"Patient/{patient}/$everything").json()
    assert id_ not in json.dumps(everything)
    assert id_ not in doctor.get(f"Patient?_id={patient}&_revinclude=Observation:subject").text
    for client in (own, officer):
        seen = client.get(f"Observation/{id_}").json()
        [tag] = [tag for tag in seen["meta"]["tag"] if tag["system"] == MARK]
        assert (tag["code"], tag["display"]) == ("rejected", "not this person's")
    assert id_ in json.dumps(officer.get(f"Provenance?target=Observation/{id_}").json())


def test_an_author_puts_a_rejected_record_right_and_it_waits_again(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    listed(place)
    officer, own = head(place), place.patient(patient)
    [task] = tasks(officer)
    rejected = {**task, "status": "rejected", "statusReason": {"text": "wrong unit"}}
    assert officer.put(f"Task/{task['id']}", rejected).status_code == 200
    listed(place)
    assert tasks(officer, "&status=requested") == [], "what was decided is not asked again"
    mended = own.put(f"Observation/{id_}", observation(patient, "70", id=id_))
    assert mended.status_code == 200, mended.text
    assert marks(mended.json()) == ["waiting"]
    assert place.clinician().get(f"Observation/{id_}").status_code == 404
    listed(place)
    [again] = tasks(officer, "&status=requested")
    assert again["focus"]["reference"] == f"Observation/{id_}/_history/3"
    assert officer.put(f"Task/{again['id']}", {**again, "status": "completed"}).status_code == 200
    assert marks(place.clinician().get(f"Observation/{id_}").json()) == ["verified"]


def test_types_of_the_setting_are_no_data_before_they_are_verified(strict: Hospital) -> None:
    patient, other = strict.new_patient(), strict.new_patient()
    strict.grant(patient, "Practitioner/dr-1")
    id_ = wrote(strict, patient)
    doctor, own = strict.clinician(), strict.patient(patient)
    assert marks(own.get(f"Observation/{id_}").json()) == ["waiting"]
    for client in (doctor, strict.feed, strict.patient(other)):
        assert client.get(f"Observation/{id_}").status_code == 404
        assert client.ids("Observation") == []
    fed = strict.feed.post("Observation", observation(patient)).json()["id"]
    assert doctor.ids(f"Observation?patient={patient}") == [fed]
    listed(strict)
    assert tasks(own) == [], "its mark and reason stand on the record itself"
    officer = head(strict)
    [task] = tasks(officer)
    assert officer.put(f"Task/{task['id']}", {**task, "status": "completed"}).status_code == 200
    assert sorted(doctor.ids(f"Observation?patient={patient}")) == sorted([fed, id_])


def test_a_decision_is_about_the_version_that_was_looked_at(place: Hospital) -> None:
    patient = place.new_patient()
    id_ = wrote(place, patient)
    listed(place)
    officer, own = head(place), place.patient(patient)
    [task] = tasks(officer)
    assert own.put(f"Observation/{id_}", observation(patient, "99", id=id_)).status_code == 200
    stale = officer.put(f"Task/{task['id']}", {**task, "status": "completed"})
    assert stale.status_code == 409, stale.text
    assert any(one.outcome == "4" and one.interaction == "update" for one in place.audited(patient)), "audited"
    listed(place)
    [fresh] = tasks(officer)
    assert (fresh["id"], fresh["meta"]["versionId"]) == (task["id"], "2")
    assert fresh["focus"]["reference"].endswith("/2")
    moved = {**fresh, "status": "completed", "focus": {"reference": f"Patient/{patient}"}}
    assert officer.put(f"Task/{fresh['id']}", moved).status_code == 422
    assert officer.put(f"Task/{fresh['id']}", {**fresh, "status": "in-progress"}).status_code == 200
    assert own.delete(f"Observation/{id_}").status_code == 204
    listed(place)
    assert [one["status"] for one in tasks(officer)] == ["cancelled"]


def test_only_the_head_decides(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1", confidentiality=5)
    add_user(place.smart, fhir_user="Practitioner/office", role="records-office", name="Office")
    id_ = wrote(place, patient)
    listed(place)
    [task] = tasks(head(place))
    own = place.patient(patient)
    office = place.client(user="Practitioner/office", purpose="HOPERAT")
    assert [one["id"] for one in tasks(own)] == [task["id"]], "the patient sees that it is to be verified"
    before = place.stored()
    for client in (own, place.clinician(), place.feed, office):
        assert client.put(f"Task/{task['id']}", {**task, "status": "completed"}).status_code in (403, 404)
        assert client.post(f"Observation/{id_}/$verify", {"resourceType": "Parameters", "parameter": [
            {"name": "outcome", "valueCode": "verified"}]}).status_code in (403, 404)
        assert client.delete(f"Task/{task['id']}").status_code in (204, 403, 404)
    assert place.stored() == before
    assert own.put(f"Observation/{id_}", {**own.get(f"Observation/{id_}").json(), "status": "amended"}).json()[
        "meta"]["tag"] == [{"system": MARK, "code": "unverified"}]


def appointment(*patients: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Appointment", "status": "proposed", "participant": [
        {"actor": {"reference": f"Patient/{id_}"}, "status": "accepted"} for id_ in patients], **elements}


@pytest.fixture
def fed(place: Hospital, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """A hospital whose table has what its feed writes verified too: it alone writes about several patients."""
    monkeypatch.setattr(verification, "rules", lambda: verification.Rules(
        by=frozenset({"feed"}), types=frozenset({"Appointment"}), keepers=frozenset()))
    return place


@pytest.mark.parametrize(("outcome", "ended"), [("verified", "completed"), ("rejected", "rejected")])
def test_a_record_of_two_patients_has_a_task_for_each_which_names_no_other(fed: Hospital, outcome: str,
                                                                           ended: str) -> None:
    place = fed
    one, other, third = (place.new_patient() for _ in range(3))
    id_ = place.new(appointment(one, other))
    listed(place)
    officer = head(place)
    both = tasks(officer, "&status=requested")
    assert sorted(task["for"]["reference"] for task in both) == sorted((f"Patient/{one}", f"Patient/{other}"))
    assert {task["focus"]["reference"] for task in both} == {f"Appointment/{id_}/_history/1"}
    for patient, stranger in ((one, other), (other, one)):
        [task] = tasks(place.patient(patient))
        assert task["for"]["reference"] == f"Patient/{patient}"
        assert f"Patient/{stranger}" not in json.dumps(task)
    assert tasks(place.patient(third)) == []
    second = both[1]
    answer = officer.put(f"Task/{second['id']}", {
        **second, "status": ended, "statusReason": {"text": "not as agreed"}})
    assert answer.status_code == 200, answer.text
    after = tasks(officer)
    assert {(task["id"], task["status"], task["statusReason"]["text"]) for task in after} == {
        (task["id"], ended, "not as agreed") for task in both}
    assert all(marks(task) == marks(after[0]) for task in after)
    for patient in (one, other):
        assert len(tasks(place.patient(patient))) == (0 if outcome == "rejected" else 1)
        assert any(entry.interaction == "verify" for entry in place.audited(patient))
    assert officer.put(f"Task/{both[0]['id']}", {**both[0], "status": "completed"}).status_code == 422, "it is over"


def test_the_tasks_of_a_record_that_is_gone_end_each_for_its_patient(fed: Hospital) -> None:
    pair = (fed.new_patient(), fed.new_patient())
    id_ = fed.new(appointment(*pair))
    listed(fed)
    assert fed.feed.delete(f"Appointment/{id_}").status_code == 204
    listed(fed)
    assert {task["for"]["reference"]: task["status"] for task in tasks(head(fed))} == {
        f"Patient/{patient}": "cancelled" for patient in pair}


def test_what_the_staff_writes_over_it_needs_no_verifying(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    listed(place)
    assert place.clinician().put(f"Observation/{id_}", observation(patient, "70", id=id_)).status_code == 200
    listed(place)
    assert [one["status"] for one in tasks(head(place))] == ["cancelled"]
    assert marks(place.patient(patient).get(f"Observation/{id_}").json()) == []


def test_who_labels_a_record_says_nothing_about_whether_it_is_true(place: Hospital) -> None:
    patient = place.new_patient()
    place.grant(patient, "Practitioner/dr-1")
    id_ = wrote(place, patient)
    doctor = place.clinician()
    added = doctor.post(f"Observation/{id_}/$meta-add", {"resourceType": "Parameters", "parameter": [
        {"name": "meta", "valueMeta": {"tag": [{"system": "urn:mine", "code": "seen"}]}}]})
    assert added.status_code == 200, added.text
    kept = doctor.get(f"Observation/{id_}").json()
    assert {"system": "urn:mine", "code": "seen"} in kept["meta"]["tag"]
    assert marks(kept) == ["unverified"]


def test_an_account_that_waits_is_listed_and_decided_elsewhere(place: Hospital) -> None:
    place.database.transact(lambda tx: tx.execute(
        "INSERT INTO login (id,name,shown,wanted,state,created_ms) "
        "VALUES ('l1','who','Somebody','patient','waiting',1)"))
    listed(place)
    officer = head(place)
    url = "Task?code=urn:fhir-gateway:task|verify-account"
    [entry] = officer.get(url).json()["entry"]
    task = entry["resource"]
    place.node.validator.require(task, expected_type="Task")
    assert "Somebody" not in json.dumps(task)
    assert officer.put(f"Task/{task['id']}", {**task, "status": "completed"}).status_code == 422
    place.database.transact(lambda tx: tx.execute("UPDATE login SET state='verified' WHERE id='l1'"))
    listed(place)
    assert officer.get(url).json()["entry"][0]["resource"]["status"] == "completed"
