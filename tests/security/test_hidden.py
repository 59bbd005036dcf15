"""What may not be seen looks like what is not there, at the doors that write as well. Invariant 4."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.journeys.hospital import Client, Hospital, observation


def alike(one: httpx.Response, other: httpx.Response, *ids: str) -> None:
    """The same answer but for the ids that were asked for."""
    texts = [answer.text for answer in (one, other)]
    for id_ in ids:
        texts = [text.replace(id_, "ID") for text in texts]
    assert one.status_code == other.status_code, texts
    assert texts[0] == texts[1]
    names = [{name for name in answer.headers if name not in ("date", "content-length")} for answer in (one, other)]
    assert names[0] == names[1]


@pytest.fixture
def hidden(hospital: Hospital) -> dict[str, str]:
    """A record the caller may not see, and a patient whose records they may write."""
    stranger, known = hospital.new_patient(), hospital.new_patient()
    hospital.grant(known, "Practitioner/hidden-1")
    return {"patient": stranger, "known": known, "observation": hospital.new({
        "resourceType": "Observation", "status": "final", "code": {"text": "x"},
        "subject": {"reference": f"Patient/{stranger}"}})}


@pytest.fixture
def doctor(hospital: Hospital) -> Client:
    return hospital.clinician("hidden-1")


@pytest.mark.parametrize("headers", [{}, {"If_None_Match": "*"}, {"If_Match": 'W/"1"'}, {"If_Match": "*"}],
                         ids=["plain", "only-new", "if-match", "if-match-any"])
def test_no_put_tells_whether_an_id_is_taken(hospital: Hospital, doctor: Client, hidden: dict[str, str],
                                             headers: dict[str, str]) -> None:
    there, nowhere = hidden["observation"], str(uuid.uuid4())
    for subject in (hidden["known"], hidden["patient"]):
        before = hospital.stored()
        alike(doctor.put(f"Observation/{there}", observation(subject, id=there), **headers),
              doctor.put(f"Observation/{nowhere}", observation(subject, id=nowhere), **headers), there, nowhere)
        assert hospital.stored()[0] == before[0]


def test_no_validation_of_an_update_tells_it_either(doctor: Client, hidden: dict[str, str]) -> None:
    there, nowhere = hidden["observation"], str(uuid.uuid4())
    for subject in (hidden["known"], hidden["patient"]):
        for mode in ("update", "delete", "create"):
            for place in ("Observation/{}/$validate", "Observation/$validate"):
                answers = [doctor.post(f"{place.format(id_)}?mode={mode}", observation(subject, id=id_))
                           for id_ in (there, nowhere)]
                alike(*answers, there, nowhere)


def test_no_bundle_entry_tells_it_either(doctor: Client, hidden: dict[str, str]) -> None:
    there, nowhere = hidden["observation"], str(uuid.uuid4())

    def bundle(kind: str, id_: str, **more: str) -> dict[str, Any]:
        resource = {"resourceType": "Observation", "id": id_, "status": "final", "code": {"text": "x"},
                    "subject": {"reference": f"Patient/{hidden['known']}"}}
        return {"resourceType": "Bundle", "type": kind, "entry": [{"resource": resource, "request": {
            "method": "PUT", "url": f"Observation/{id_}", **more}}]}

    for kind in ("batch", "transaction"):
        for more in ({}, {"ifNoneMatch": "*"}, {"ifMatch": 'W/"1"'}):
            alike(doctor.post("", bundle(kind, there, **more)), doctor.post("", bundle(kind, nowhere, **more)),
                  there, nowhere)


def test_the_hospitals_own_feed_still_chooses_ids(hospital: Hospital) -> None:
    id_, patient = str(uuid.uuid4()), hospital.new_patient()
    assert hospital.feed.put(f"Observation/{id_}", observation(patient, id=id_)).status_code == 201


def test_conditions_are_asked_of_what_may_be_seen_alone(hospital: Hospital, doctor: Client,
                                                        hidden: dict[str, str]) -> None:
    """The conditional write oracle: If-None-Exist, conditional update, patch and delete over a hidden match."""
    token = uuid.uuid4().hex
    for id_ in (hidden["observation"],):
        stored = hospital.feed.get(f"Observation/{id_}").json()
        hospital.feed.put(f"Observation/{id_}", {**stored, "identifier": [{"system": "urn:h", "value": token}]})
    body = observation(hidden["known"])
    patch = [{"op": "replace", "path": "/status", "value": "amended"}]
    for value_there, value_not in ((token, uuid.uuid4().hex),):
        for ask in (
                lambda value: doctor.post("Observation", body, If_None_Exist=f"identifier=urn:h|{value}"),
                lambda value: doctor.delete(f"Observation?identifier=urn:h|{value}"),
                lambda value: doctor.request("PATCH", f"Observation?identifier=urn:h|{value}", patch,
                                             Content_Type="application/json-patch+json")):
            one, other = ask(value_there), ask(value_not)
            assert one.status_code == other.status_code, (one.text, other.text)
        one, other = (doctor.put(f"Observation?identifier=urn:h|{value}", body) for value in (value_there, value_not))
        assert one.status_code == other.status_code


def test_a_record_whose_key_is_gone_is_left_out_without_an_error(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with()
    gone, kept = hospital.new_patient(name=[{"family": "Gone"}]), hospital.new_patient(name=[{"family": "Kept"}])
    lost, there = (hospital.feed.post("Observation", observation(patient)).json()["id"] for patient in (gone, kept))
    hospital.node.ring.destroy(gone)
    for url in ("Observation", "Observation?_sort=date", "Observation?code:text=x", "Observation?_include=*",
                "Observation?_sort=code", "Observation/_history", "_history", "Patient?name:contains=e"):
        answer = hospital.feed.get(url)
        assert answer.status_code == 200, (url, answer.text)
        assert lost not in answer.text
        assert gone not in answer.text
    assert there in hospital.feed.get("Observation").text
    for answer in (hospital.feed.get(f"Observation/{lost}"), hospital.feed.get(f"Patient/{gone}"),
                   hospital.feed.put(f"Observation/{lost}", observation(kept, id=lost)),
                   hospital.feed.post("Observation", observation(gone)),
                   hospital.feed.get(f"Patient/{gone}/$everything"),
                   hospital.feed.get(f"Observation/{lost}/_history")):
        assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("element", [
    {"code": {"coding": [{"system": "urn:\x01x", "code": "a"}]}},
    {"code": {"coding": [{"system": "urn:x", "code": "a\x02"}]}},
    {"implicitRules": "urn:\x00"}, {"meta": {"profile": ["http://x\x07"]}}, {"status": "fi\x1bnal"}])
def test_no_primitive_carries_a_control_character(hospital: Hospital, element: dict[str, Any]) -> None:
    """R4 2.24.0.1: strings hold no code points below 32 but tab, line feed and carriage return."""
    answer = hospital.feed.post("Observation", {"resourceType": "Observation", "status": "final",
                                                "code": {"text": "x"}, **element})
    assert answer.status_code in (400, 422), answer.text
