"""Granular scopes at every door: a union, judged for each resource. SMART App Launch 2.2, scopes and launch context."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.journeys.hospital import LOINC, Client, Hospital, next_link, observation

CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
KINDS = ("laboratory", "vital-signs", "survey")
LABORATORY, VITAL = (f"user/Observation.rs?category={CATEGORY}|{kind}" for kind in KINDS[:2])


@pytest.fixture
def patient(hospital: Hospital) -> str:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/scopes-1")
    return patient


@pytest.fixture
def kinds(hospital: Hospital, patient: str) -> dict[str, str]:
    """An Observation of each category."""
    return {kind: hospital.new(of(kind, patient)) for kind in KINDS}


def of(kind: str, patient: str, **elements: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(observation(patient, "7", category=[{"coding": [
        {"system": CATEGORY, "code": kind}]}], **elements))
    return body


def holding(hospital: Hospital, *scopes: str) -> Client:
    return hospital.clinician("scopes-1", scope=" ".join(scopes))


def entries(answer: Any) -> set[str]:
    assert answer.status_code == 200, answer.text
    return {entry["resource"]["id"] for entry in answer.json().get("entry", ()) if "resource" in entry}


def test_several_scopes_are_a_union_and_each_resource_is_judged(hospital: Hospital, patient: str,
                                                                kinds: dict[str, str]) -> None:
    client = holding(hospital, LABORATORY, VITAL)
    inside = {kinds["laboratory"], kinds["vital-signs"]}
    assert {id_ for id_ in kinds.values() if client.get(f"Observation/{id_}").status_code == 200} == inside
    assert set(client.all_ids(f"Observation?patient={patient}&_count=1")) == inside
    for total in ("_summary=count", "_total=accurate"):
        assert client.total(f"Observation?patient={patient}&{total}") == 2
    assert client.total(f"Observation?category=survey&patient={patient}") == 0
    assert client.get(f"Observation/{kinds['survey']}/_history").status_code == 404
    assert entries(client.get("Observation/_history?_count=200")) & set(kinds.values()) == inside


def test_the_letter_of_one_scope_does_not_open_what_another_names(hospital: Hospital, patient: str,
                                                                  kinds: dict[str, str]) -> None:
    client = holding(hospital, LABORATORY.replace(".rs", ".r"), VITAL.replace(".rs", ".s"))
    assert client.get(f"Observation/{kinds['laboratory']}").status_code == 200
    assert client.get(f"Observation/{kinds['vital-signs']}").status_code == 404
    assert client.ids(f"Observation?patient={patient}") == [kinds["vital-signs"]]


def test_links_bring_nothing_from_outside(hospital: Hospital, patient: str, kinds: dict[str, str]) -> None:
    report = hospital.new({
        "resourceType": "DiagnosticReport", "status": "final", "code": {"coding": [{"system": LOINC, "code": "1"}]},
        "subject": {"reference": f"Patient/{patient}"},
        "result": [{"reference": f"Observation/{id_}"} for id_ in kinds.values()]})
    client = holding(hospital, LABORATORY, "user/DiagnosticReport.rs", "user/Patient.rs")
    assert entries(client.get(f"DiagnosticReport?patient={patient}&_include=DiagnosticReport:result")) == {
        report, kinds["laboratory"]}
    assert entries(client.get(f"Patient?_id={patient}&_revinclude=Observation:patient")) == {
        patient, kinds["laboratory"]}
    for kind, found in (("laboratory", 1), ("survey", 0)):
        assert client.total(f"DiagnosticReport?patient={patient}&result.category={kind}&_summary=count") == found
        assert client.total(f"Patient?_id={patient}&_has:Observation:patient:category={kind}&_summary=count") == found
    everything = entries(client.get(f"Patient/{patient}/$everything?_count=200"))
    assert everything & {*kinds.values(), report} == {kinds["laboratory"], report}


def test_a_page_link_keeps_to_the_scopes_it_was_given_under(hospital: Hospital, patient: str,
                                                            kinds: dict[str, str]) -> None:
    following = next_link(holding(hospital, LABORATORY, VITAL).get(f"Observation?patient={patient}&_count=1"))
    assert following is not None
    assert holding(hospital, LABORATORY).get(following).status_code in (400, 403, 404, 410)


@pytest.mark.parametrize(("scope", "allowed"), [("user/Observation.crud", False), ("user/Observation.cruds", True)])
def test_conditional_writes_need_to_search(hospital: Hospital, patient: str, scope: str, allowed: bool) -> None:
    """Whether something matches is what a search would tell."""
    client = holding(hospital, scope)
    identifier = {"system": "urn:scopes", "value": patient}
    hospital.new(of("survey", patient, identifier=[identifier]))
    query = f"identifier=urn:scopes|{patient}"
    body = json.dumps(of("survey", patient, identifier=[identifier])).encode()
    patch = json.dumps([{"op": "replace", "path": "/status", "value": "amended"}]).encode()
    answers = [
        client.post("Observation", body, If_None_Exist=query),
        client.put(f"Observation?{query}", body),
        client.request("PATCH", f"Observation?{query}", patch, Content_Type="application/json-patch+json")]
    assert [answer.status_code in (200, 201) for answer in answers] == [allowed] * 3, [a.text for a in answers]
    if not allowed:
        assert {answer.status_code for answer in answers} == {403}
    assert client.post("Observation", body).status_code == 201


def test_a_write_is_judged_before_and_after(hospital: Hospital, patient: str, kinds: dict[str, str]) -> None:
    client = holding(hospital, LABORATORY.replace(".rs", ".crus"))
    before = hospital.stored()
    inside, outside = kinds["laboratory"], kinds["survey"]
    to_survey = json.dumps([{"op": "replace", "path": "/category/0/coding/0/code", "value": "survey"}]).encode()
    patched = {"Content_Type": "application/json-patch+json"}
    assert client.post("Observation", of("survey", patient)).status_code == 422
    assert client.put(f"Observation/{inside}", of("survey", patient, id=inside)).status_code == 403
    assert client.request("PATCH", f"Observation/{inside}", to_survey, **patched).status_code == 403
    assert client.put(f"Observation/{outside}", of("laboratory", patient, id=outside)).status_code == 404
    assert client.request("PATCH", f"Observation/{outside}", to_survey, **patched).status_code == 404
    assert client.put("Observation/scopes-new", of("survey", patient, id="scopes-new")).status_code in (403, 404, 422)
    assert hospital.stored() == before
    assert client.put(f"Observation/{inside}", of("laboratory", patient, id=inside, note=[{"text": "x"}])
                      ).status_code == 200


def test_a_batch_is_judged_entry_by_entry(hospital: Hospital, patient: str, kinds: dict[str, str]) -> None:
    client = holding(hospital, LABORATORY)
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "GET", "url": url}} for url in (
            *(f"Observation/{id_}" for id_ in kinds.values()), f"Observation?patient={patient}", f"Patient/{patient}")]}
    found = client.post("", batch).json()["entry"]
    assert [entry["response"]["status"][:3] for entry in found] == ["200", "404", "404", "200", "403"]
    assert [entry["resource"]["id"] for entry in found[3]["resource"]["entry"]] == [kinds["laboratory"]]
