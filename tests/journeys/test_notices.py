"""Denied access, broken glass and operators' reads are told to the patient and the head. Invariant 8."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.records import notices
from gateway.smart.accounts import add_user
from tests.journeys.hospital import Client, Hospital, observation


@pytest.fixture
def told(hospital_with: Callable[..., Hospital]) -> Hospital:
    hospital = hospital_with(notice_window_s="3600")
    add_user(hospital.smart, fhir_user="Practitioner/head", role="privacy-officer", name="The Head")
    return hospital


def tell(hospital: Hospital) -> None:
    while notices.step(hospital.node):
        pass


def head(hospital: Hospital) -> Client:
    return hospital.client(user="Practitioner/head", purpose="HOPERAT")


def found(client: Client, query: str, kind: str = "refused") -> list[dict[str, Any]]:
    """Notices of a kind. (Tokens of tests are an operator's: reading with them causes notices of their own.)"""
    answer = client.get(f"Communication?{query}")
    assert answer.status_code == 200, answer.text
    resources = [entry["resource"] for entry in answer.json().get("entry", ())]
    return [one for one in resources if one["topic"]["coding"][0]["code"] == kind]


def end_bursts(hospital: Hospital) -> None:
    hospital.database.transact(lambda tx: tx.execute("UPDATE notice_burst SET until_ms=0"))
    tell(hospital)


def quiet(hospital: Hospital) -> None:
    """Forget what tokens minted for a test have caused."""
    tell(hospital)
    hospital.database.transact(lambda tx: tx.execute("DELETE FROM notice_burst"))


def test_a_refusal_is_told_to_the_patient_and_to_the_head_once_a_burst(told: Hospital) -> None:
    patient = told.new_patient(name=[{"family": "Unspeakable"}])
    id_ = told.feed.post("Observation", observation(patient)).json()["id"]
    own, doctor, officer = told.patient(patient), told.clinician("curious"), head(told)
    quiet(told)
    for _ in range(3):
        assert doctor.get(f"Observation/{id_}").status_code == 404
    assert doctor.get(f"Observation?patient={patient}").json()["total"] == 0
    tell(told)
    theirs = found(own, f"recipient=Patient/{patient}")
    assert len(theirs) == 1
    notice = theirs[0]
    told.node.validator.require(notice, expected_type="Communication")
    text = notice["payload"][0]["contentString"]
    assert "Practitioner/curious" in text
    assert "Observation" in text
    assert "TREAT" in text
    assert "Times: 4." in text
    assert notice["topic"]["coding"][0]["code"] == "refused"
    assert id_ not in json.dumps(notice)
    assert "Unspeakable" not in json.dumps(notice)
    copies = found(officer, "recipient=Practitioner/head")
    assert len(copies) == 1
    assert "granted this holder nothing" in copies[0]["payload"][0]["contentString"]
    doctor.get(f"Observation/{id_}")
    tell(told)
    assert len(found(own, f"recipient=Patient/{patient}")) == 1, "the burst is not over"
    end_bursts(told)
    [again] = found(own, f"recipient=Patient/{patient}")
    assert again["id"] == notice["id"]
    assert again["meta"]["versionId"] == "2"
    assert "Times: 5." in again["payload"][0]["contentString"]
    assert again["sent"] == notice["sent"]
    quiet(told)
    doctor.get(f"Observation/{id_}")
    tell(told)
    assert len(found(own, f"recipient=Patient/{patient}")) == 2


def test_a_notice_is_the_patients_and_no_grant_or_broken_glass_opens_it(told: Hospital) -> None:
    patient, other = told.new_patient(), told.new_patient()
    told.clinician("curious-2").get(f"Patient/{patient}")
    tell(told)
    told.grant(patient, "Practitioner/granted", confidentiality=5)
    own = told.patient(patient)
    [id_] = [one["id"] for one in found(own, f"recipient=Patient/{patient}")]
    for client in (told.clinician("granted"), told.clinician("er", patient=patient, purpose="BTG", reason="accident"),
                   told.patient(other), told.feed, told.clinician("curious-2")):
        assert client.get(f"Communication/{id_}").status_code == 404
        assert found(client, f"subject=Patient/{patient}") == []
    notice = own.get(f"Communication/{id_}").json()
    assert own.put(f"Communication/{id_}", {**notice, "status": "entered-in-error"}).status_code == 403
    assert own.delete(f"Communication/{id_}").status_code in (403, 404)
    assert own.get(f"Communication/{id_}").json() == notice


def test_a_broken_glass_is_told_with_its_reason_each_time(told: Hospital) -> None:
    patient = told.new_patient()
    id_ = told.feed.post("Observation", observation(patient)).json()["id"]
    own = told.patient(patient)
    quiet(told)
    for reason in ("found unconscious", "fell down the stairs"):
        doctor = told.clinician("er-2", patient=patient, purpose="BTG", reason=reason)
        tell(told)
        assert reason in json.dumps(found(own, f"recipient=Patient/{patient}", "glass-broken")), "at once"
        assert doctor.get(f"Observation/{id_}").status_code == 200
        assert doctor.get(f"Observation?patient={patient}").json()["total"] == 1
        tell(told)
    broken = found(own, f"recipient=Patient/{patient}&_sort=sent", "glass-broken")
    assert [reason in one["payload"][0]["contentString"] for one, reason in zip(
        broken, ("found unconscious", "fell down the stairs"), strict=True)] == [True, True]
    assert {one["priority"] for one in broken} == {"urgent"}


def test_an_operators_token_is_told_where_it_read(told: Hospital) -> None:
    patient = told.new_patient()
    told.feed.get(f"Patient/{patient}")
    tell(told)
    assert len(found(told.patient(patient), f"recipient=Patient/{patient}", "operator")) == 1


def test_the_mark_is_in_the_commit_of_the_row_and_goes_in_the_commit_of_the_notice(
        told: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = told.new_patient()
    own = told.patient(patient)
    quiet(told)
    told.clinician("curious-3").get(f"Patient/{patient}")

    def due() -> int:
        return int(str(told.database.reader.execute("SELECT count(*) FROM notice_due").get))

    assert due() == 1
    with monkeypatch.context() as broken:
        broken.setattr("gateway.store.journal.append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            notices.step(told.node)
    assert due() == 1
    tell(told)
    tell(told)
    assert due() == 0
    assert len(found(own, f"recipient=Patient/{patient}")) == 1
    assert told.audit_is_whole()


def test_what_a_patient_does_to_their_own_record_is_told_to_nobody(told: Hospital) -> None:
    patient, other = told.new_patient(), told.new_patient()
    id_ = told.new({"resourceType": "Appointment", "status": "proposed", "participant": [
        {"actor": {"reference": f"Patient/{one}"}, "status": "accepted"} for one in (patient, other)]})
    own, others = told.patient(patient), told.patient(other)
    quiet(told)
    assert own.get(f"Appointment/{id_}").status_code == 404
    tell(told)
    [notice] = found(others, f"recipient=Patient/{other}")
    assert "Another patient" in notice["payload"][0]["contentString"]
    assert f"Patient/{patient}" not in json.dumps(notice), "which one is the head's to know"
    assert found(own, f"recipient=Patient/{patient}") == []
