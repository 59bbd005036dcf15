"""Referential integrity over HTTP: what is written refers to what is there. https://hl7.org/fhir/R4/references.html"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import Hospital, observation, places


def measured(subject: str | None = None, **elements: Any) -> dict[str, Any]:
    made: dict[str, Any] = {**json.loads(observation(None)), **elements}
    return {**made, "subject": {"reference": subject}} if subject else made


def transaction(*entries: tuple[str, str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction", "entry": [
        {**({"resource": resource} if resource else {}), "request": {"method": method, "url": url}}
        for method, url, resource in entries]}


@pytest.mark.parametrize("target", ["Patient/nobody", "Patient/nobody/_history/1", "Patient/here/_history/9",
                                    "Patient/here/_history/x", "http://127.0.0.1:8080/fhir/Patient/nobody"])
def test_a_reference_to_nothing_is_refused_and_names_its_place(hospital: Hospital, target: str) -> None:
    hospital.feed.put("Patient/here", {"resourceType": "Patient", "id": "here"})
    before = hospital.stored()
    answer = hospital.feed.post("Observation", measured(target))
    assert answer.status_code == 422, answer.text
    assert places(answer) == ["Observation.subject"]
    answer = hospital.feed.post("", transaction(("POST", "Observation", measured(target))))
    assert answer.status_code == 422
    assert places(answer) == ["Bundle.entry[0].resource.subject"]
    assert hospital.stored() == before


@pytest.mark.parametrize("target", [
    "Patient/here", "Patient/here/_history/1", "http://127.0.0.1:8080/fhir/Patient/here",
    "https://elsewhere.example/fhir/Patient/nobody", "urn:oid:1.2.3"])
def test_a_reference_to_what_is_there_or_elsewhere_is_stored_as_sent(hospital: Hospital, target: str) -> None:
    hospital.feed.put("Patient/here", {"resourceType": "Patient", "id": "here"})
    answer = hospital.feed.post("Observation", measured(target))
    assert answer.status_code == 201, answer.text
    assert answer.json()["subject"] == {"reference": target}


def test_contained_references_are_resolved_within_the_resource(hospital: Hospital) -> None:
    contained = [{"resourceType": "Practitioner", "id": "p"}]
    assert hospital.feed.post("Observation", measured(contained=contained, performer=[
        {"reference": "#p"}])).status_code == 201
    answer = hospital.feed.post("Observation", measured(contained=contained, performer=[
        {"reference": "#p"}, {"reference": "#q"}]))
    assert answer.status_code in (400, 422)
    assert any("performer[1]" in place for place in places(answer))


def test_what_may_not_be_seen_is_refused_as_what_is_not_there(hospital: Hospital) -> None:
    """Invariant 4: a clinician cannot try out ids by referring to them."""
    mine, theirs = hospital.new_patient(), hospital.new_patient()
    hidden = hospital.new(measured(f"Patient/{theirs}"))
    hospital.grant(mine, "Practitioner/dr-refer", writes=True)
    clinician = hospital.clinician("dr-refer")
    assert clinician.post("Observation", measured(f"Patient/{mine}")).status_code == 201
    answers = [clinician.post("Observation", measured(f"Patient/{mine}", derivedFrom=[{"reference": target}]))
               for target in (f"Observation/{hidden}", "Observation/nobody", f"Observation/{hidden}/_history/1",
                              "Observation/nobody/_history/1")]
    assert {answer.status_code for answer in answers} == {422}, answers[0].text
    texts = {answer.text.replace(hidden, "x").replace("nobody", "x") for answer in answers}
    assert len(texts) == 1, texts
    newest = hospital.audited(theirs)[0]
    assert (newest.interaction, newest.outcome) == ("create", "4")


def test_a_clinician_refers_to_whom_they_treat_to_themselves_and_to_the_hospital(hospital: Hospital) -> None:
    """A permit for observations alone does not show the Patient, and yet lets one be written about them."""
    mine = hospital.new_patient()
    hospital.grant(mine, "Practitioner/dr-own", writes=True, types=frozenset({"Observation"}))
    clinician = hospital.clinician("dr-own")
    answer = clinician.post("Observation", measured(f"Patient/{mine}", performer=[
        {"reference": "Practitioner/dr-own"}, {"reference": hospital.settings.hospital_reference}]))
    assert answer.status_code == 201, answer.text


def test_a_resource_may_keep_what_it_referred_to(hospital: Hospital, hospital_with: Callable[..., Hospital]) -> None:
    loose = hospital_with(reference_integrity="off")
    id_ = loose.new(measured("Patient/nobody"))
    assert loose.feed.put(f"Observation/{id_}", measured("Patient/nobody", id=id_, note=[{"text": "x"}])
                          ).status_code == 200
    organization = hospital.new({"resourceType": "Organization", "name": "Ended"})
    patient = hospital.new_patient(managingOrganization={"reference": f"Organization/{organization}"})
    hospital.feed.delete(f"Patient/{patient}")
    assert hospital.feed.delete(f"Organization/{organization}").status_code == 204
    again = {"resourceType": "Patient", "id": patient, "managingOrganization": {
        "reference": f"Organization/{organization}"}}
    assert hospital.feed.put(f"Patient/{patient}", again).status_code == 422


def test_what_is_referred_to_is_not_deleted(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.new(measured(f"Patient/{patient}"))
    answer = hospital.feed.delete(f"Patient/{patient}")
    assert answer.status_code == 409, answer.text
    assert "1 resource" in answer.text
    assert id_ not in answer.text
    assert hospital.feed.delete(f"Observation/{id_}").status_code == 204
    assert hospital.feed.delete(f"Patient/{patient}").status_code == 204


def test_what_the_caller_may_not_see_holds_up_no_deletion(hospital: Hospital) -> None:
    """A refusal would tell that something refers to it: its reference leads to a deletion instead (invariant 4)."""
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-hold", writes=True)
    clinician = hospital.clinician("dr-hold")
    first, second = (hospital.new(measured(f"Patient/{patient}")) for _ in range(2))
    hospital.new(measured(f"Patient/{patient}", derivedFrom=[{"reference": f"Observation/{first}"}]))
    answer = clinician.post("Observation", measured(f"Patient/{patient}", derivedFrom=[
        {"reference": f"Observation/{second}"}]))
    assert answer.status_code == 201, answer.text
    assert hospital.feed.get(f"Observation/{answer.json()['id']}").status_code == 404
    assert [hospital.feed.delete(f"Observation/{id_}").status_code for id_ in (first, second)] == [409, 204]


def test_a_transaction_refers_to_what_it_makes_and_not_to_what_it_deletes(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.new(measured(f"Patient/{patient}"))
    put = ("PUT", "Patient/tx-ref", {"resourceType": "Patient", "id": "tx-ref"})
    assert hospital.feed.post("", transaction(
        ("PUT", "Observation/tx-obs", measured("Patient/tx-ref", id="tx-obs")), put)).status_code == 200
    gone = ("DELETE", f"Patient/{patient}", None)
    answer = hospital.feed.post("", transaction(gone, ("POST", "Observation", measured(f"Patient/{patient}"))))
    assert answer.status_code in (409, 422), answer.text
    assert hospital.feed.post("", transaction(gone)).status_code == 409
    both = transaction(gone, ("DELETE", f"Observation/{id_}", None))
    assert hospital.feed.post("", both).status_code == 200


def test_integrity_is_a_setting_per_type(hospital_with: Callable[..., Hospital]) -> None:
    some = hospital_with(reference_integrity="Encounter, Condition")
    assert some.feed.post("Observation", measured("Patient/nobody")).status_code == 201
    encounter = {"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
                 "subject": {"reference": "Patient/nobody"}}
    assert some.feed.post("Encounter", encounter).status_code == 422
    policies = {one["type"]: "enforced" in one["referencePolicy"]
                for one in some.feed.get("metadata").json()["rest"][0]["resource"]}
    assert {type_ for type_, enforced in policies.items() if enforced} == {"Encounter", "Condition"}
    off = hospital_with(reference_integrity="off")
    assert off.feed.post("Encounter", encounter).status_code == 201


def test_a_deletion_and_a_reference_at_the_same_time_leave_nothing_dangling(hospital: Hospital) -> None:
    for _ in range(4):
        patient = hospital.new_patient()
        body = measured(f"Patient/{patient}")
        answers: list[httpx.Response] = hospital.together(
            *(hospital.feed.send("POST", "Observation", body) for _ in range(3)),
            hospital.feed.send("DELETE", f"Patient/{patient}"),
            *(hospital.feed.send("POST", "Observation", body) for _ in range(3)))
        deleted = answers[3].status_code
        assert deleted in (204, 409)
        kept = hospital.feed.total(f"Observation?subject=Patient/{patient}&_summary=count")
        assert (kept == 0) is (deleted == 204)
