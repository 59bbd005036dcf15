"""Patient/$match over HTTP. https://hl7.org/fhir/R4/patient-operation-match.html"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.smart.accounts import add_user
from tests.journeys.hospital import Client, Hospital, places


def described(family: str, **elements: Any) -> dict[str, Any]:
    """A patient no other test takes for likely: the given name has the letters of the family name."""
    return {"resourceType": "Patient", "name": [{"family": family, "given": ["".join(sorted(family))]}],
            "gender": "female",
            "birthDate": f"{1900 + sum(map(ord, family)) % 90}-02-03", **elements}


def ask(client: Client, patient: dict[str, Any], **more: Any) -> httpx.Response:
    return client.post("Patient/$match", {"resourceType": "Parameters", "parameter": [
        {"name": "resource", "resource": patient}, *({"name": name, f"value{kind}": value}
                                                     for name, (kind, value) in more.items())]})


def grades(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {entry["resource"]["id"]: entry["search"]["extension"][0]["valueCode"]
            for entry in answer.json().get("entry", ())}


def test_matches_come_graded_and_likeliest_first(hospital: Hospital) -> None:
    number = [{"system": "phone", "value": "+41 44 555 01 01"}]
    certain = hospital.new_patient(**{**described("Gradedone"), "telecom": number})
    probable = hospital.new_patient(**described("Gradedone"))
    possible = hospital.new_patient(**{**described("Gradedone"), "gender": "male"})
    hospital.new_patient(**{**described("Gradedone"), "birthDate": "2001-01-01"})
    answer = ask(hospital.feed, described("Gradedone", telecom=number))
    assert grades(answer) == {certain: "certain", probable: "probable", possible: "possible"}
    assert list(grades(answer)) == [certain, probable, possible]
    scores = [entry["search"]["score"] for entry in answer.json()["entry"]]
    assert scores == sorted(scores, reverse=True)
    assert answer.json()["total"] == 3
    wanted = described("Gradedone", telecom=number)
    assert list(grades(ask(hospital.feed, wanted, count=("Integer", 1)))) == [certain]
    assert list(grades(ask(hospital.feed, wanted, onlyCertainMatches=("Boolean", True)))) == [certain]


def test_several_certain_matches_are_none(hospital: Hospital) -> None:
    twice = described("Certaintwice", identifier=[{"system": "urn:twice", "value": "1"}])
    hospital.new_patient(**twice)
    hospital.new_patient(**twice)
    assert len(grades(ask(hospital.feed, twice))) == 2
    assert grades(ask(hospital.feed, twice, onlyCertainMatches=("Boolean", True))) == {}


def test_one_wrong_part_is_survived(hospital: Hospital) -> None:
    patient = hospital.new_patient(**described("Wrongpart"))
    assert patient in grades(ask(hospital.feed, described("Wrongprat")))


def test_a_patient_may_be_sent_alone(hospital: Hospital) -> None:
    patient = hospital.new_patient(**described("Sentalone"))
    assert patient in grades(hospital.feed.post("Patient/$match", described("Sentalone")))


def test_only_who_may_be_seen_is_a_match(hospital: Hospital) -> None:
    patient = hospital.new_patient(**described("Unseen", identifier=[{"system": "urn:unseen", "value": "1"}]))
    doctor = hospital.clinician("match-1")
    wanted = described("Unseen", identifier=[{"system": "urn:unseen", "value": "1"}])
    hidden, absent = ask(doctor, wanted), ask(doctor, described("Nobodyhere"))
    assert hidden.json()["total"] == absent.json()["total"] == 0
    assert "entry" not in hidden.json()
    consent = hospital.grant(patient, "Practitioner/match-1")
    assert grades(ask(doctor, wanted)) == {patient: "certain"}
    assert (hospital.audited(patient)[0].interaction, hospital.audited(patient)[0].basis) == ("match", "grant")
    hospital.revoke(consent)
    assert grades(ask(doctor, wanted)) == {}
    add_user(hospital.smart, fhir_user="Practitioner/match-2", role="records-office", name="Office")
    office = hospital.client(user="Practitioner/match-2", purpose="HOPERAT")
    assert grades(ask(office, wanted)) == {patient: "certain"}


@pytest.mark.parametrize(("sent", "place"), [
    ({"resourceType": "Parameters"}, "http.resource"),
    ({"resourceType": "Patient", "active": True}, "http.resource"),
    ({"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {
        "resourceType": "Basic", "code": {"text": "x"}}}]}, "http.resource"),
    ({"resourceType": "Parameters", "parameter": [{"name": "more", "valueString": "x"}]}, "http.more")])
def test_what_cannot_be_matched_is_refused(hospital: Hospital, sent: dict[str, Any], place: str) -> None:
    answer = hospital.feed.post("Patient/$match", sent)
    assert (answer.status_code, places(answer)) == (400, [place])
