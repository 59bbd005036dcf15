"""$everything over HTTP. https://hl7.org/fhir/R4/patient-operation-everything.html"""

from __future__ import annotations

from typing import Any

import pytest

from tests.journeys.hospital import Client, Hospital, next_link, observation, places


@pytest.fixture
def record(hospital: Hospital) -> dict[str, str]:
    """A patient with a practitioner, a medication, and records of several types."""
    practitioner = hospital.new({"resourceType": "Practitioner", "name": [{"family": "Named"}]})
    unnamed = hospital.new({"resourceType": "Practitioner", "name": [{"family": "Unnamed"}]})
    maker = hospital.new({"resourceType": "Organization", "name": "Maker"})
    medication = hospital.new({"resourceType": "Medication", "manufacturer": {"reference": f"Organization/{maker}"}})
    patient = hospital.new_patient(birthDate="1950-01-01")
    other = hospital.new_patient()
    ids = {"patient": patient, "other": other, "practitioner": practitioner, "medication": medication,
           "maker": maker, "unnamed": unnamed}
    encounter = ids["encounter"] = hospital.new({
        "resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
        "subject": {"reference": f"Patient/{patient}"}, "period": {"start": "2024-01-01", "end": "2024-01-02"}})
    for year in (2020, 2021, 2022):
        made = hospital.feed.post("Observation", observation(
            patient, when=f"{year}-05-01", performer=[{"reference": f"Practitioner/{practitioner}"}],
            encounter={"reference": f"Encounter/{encounter}"}))
        ids[f"observation-{year}"] = made.json()["id"]
    ids["statement"] = hospital.new({
        "resourceType": "MedicationStatement", "status": "active", "subject": {"reference": f"Patient/{patient}"},
        "medicationReference": {"reference": f"Medication/{medication}"}})
    ids["theirs"] = hospital.feed.post("Observation", observation(other)).json()["id"]
    return ids


def pages(client: Client, url: str) -> list[list[dict[str, Any]]]:
    found = []
    following: str | None = url
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200, answer.text
        found.append(answer.json().get("entry", []))
        following = next_link(answer)
    return found


def names(entries: list[dict[str, Any]]) -> set[str]:
    return {f"{entry['resource']['resourceType']}/{entry['resource']['id']}" for entry in entries}


def test_everything_is_the_compartment_and_what_it_names(hospital: Hospital, record: dict[str, str]) -> None:
    [entries] = pages(hospital.feed, f"Patient/{record['patient']}/$everything")
    assert names(entries) == {
        f"Patient/{record['patient']}", f"Encounter/{record['encounter']}", f"Practitioner/{record['practitioner']}",
        f"MedicationStatement/{record['statement']}", f"Medication/{record['medication']}",
        f"Organization/{record['maker']}", *(f"Observation/{record[f'observation-{y}']}" for y in (2020, 2021, 2022))}
    modes = {entry["resource"]["resourceType"]: entry["search"]["mode"] for entry in entries}
    assert modes["Observation"] == "match"
    assert modes["Practitioner"] == "include"


def test_pages_together_are_the_whole_and_stay_at_their_snapshot(hospital: Hospital, record: dict[str, str]) -> None:
    url = f"Patient/{record['patient']}/$everything"
    [whole] = pages(hospital.feed, url)
    first = hospital.feed.get(f"{url}?_count=2")
    hospital.feed.post("Observation", observation(record["patient"], when="2023-01-01"))
    found = first.json()["entry"]
    following = next_link(first)
    while following:
        answer = hospital.feed.get(following)
        matches = [entry for entry in answer.json()["entry"] if entry["search"]["mode"] == "match"]
        assert len(matches) <= 2
        found += answer.json()["entry"]
        following = next_link(answer)
    assert names(found) == names(whole)
    once = [entry["fullUrl"] for entry in found if entry["search"]["mode"] == "match"]
    assert len(once) == len(set(once))


@pytest.mark.parametrize(("query", "types"), [
    ("_type=Observation", {"Observation"}),
    ("_type=Observation,Practitioner", {"Observation", "Practitioner"}),
    ("_since=2999-01-01T00:00:00Z", set()),
])
def test_type_and_since_narrow(hospital: Hospital, record: dict[str, str], query: str, types: set[str]) -> None:
    [entries] = pages(hospital.feed, f"Patient/{record['patient']}/$everything?{query}")
    assert {name.partition("/")[0] for name in names(entries)} == types


def test_start_and_end_are_about_care(hospital: Hospital, record: dict[str, str]) -> None:
    [entries] = pages(hospital.feed, f"Patient/{record['patient']}/$everything?start=2021-01-01&end=2021-12-31"
                                     "&_type=Observation")
    assert names(entries) == {f"Observation/{record['observation-2021']}"}


def test_parameters_may_come_in_a_body(hospital: Hospital, record: dict[str, str]) -> None:
    answer = hospital.feed.post(f"Patient/{record['patient']}/$everything", {
        "resourceType": "Parameters", "parameter": [{"name": "_type", "valueCode": "Observation"},
                                                    {"name": "_count", "valueInteger": 1}]})
    assert answer.status_code == 200
    assert len(answer.json()["entry"]) == 1
    assert len(pages(hospital.feed, str(next_link(answer)))) == 2


def test_an_encounter_has_its_patient_and_its_own_records(hospital: Hospital, record: dict[str, str]) -> None:
    [entries] = pages(hospital.feed, f"Encounter/{record['encounter']}/$everything")
    assert f"Patient/{record['patient']}" in names(entries)
    assert f"Observation/{record['observation-2021']}" in names(entries)
    assert f"MedicationStatement/{record['statement']}" not in names(entries)


def test_without_a_grant_there_is_no_patient(hospital: Hospital, record: dict[str, str]) -> None:
    doctor = hospital.clinician("everything-1")
    hidden, absent = (doctor.get(f"Patient/{id_}/$everything") for id_ in (record["patient"], "nobody-1"))
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace(record["patient"], "nobody-1") == absent.text
    assert hospital.audited(record["patient"])[0].outcome == "4"


def test_each_resource_is_decided(hospital: Hospital, record: dict[str, str]) -> None:
    doctor = hospital.clinician("everything-2")
    consent = hospital.grant(record["patient"], "Practitioner/everything-2",
                             types=frozenset({"Patient", "MedicationStatement"}))
    url = f"Patient/{record['patient']}/$everything"
    [entries] = pages(doctor, url)
    assert names(entries) == {f"Patient/{record['patient']}", f"MedicationStatement/{record['statement']}",
                              f"Medication/{record['medication']}", f"Organization/{record['maker']}"}
    entry = hospital.audited(record["patient"])[0]
    assert (entry.interaction, entry.outcome, entry.basis) == ("everything", "0", "grant")
    following = next_link(doctor.get(f"{url}?_count=1"))
    assert following is not None
    hospital.revoke(consent)
    assert doctor.get(following).status_code == 404


def test_all_patients_are_those_that_may_be_seen(hospital: Hospital, record: dict[str, str]) -> None:
    own = hospital.patient(record["patient"])
    [entries] = pages(own, "Patient/$everything")
    assert f"Observation/{record['observation-2020']}" in names(entries)
    assert f"Observation/{record['theirs']}" not in names(entries)
    assert f"Patient/{record['other']}" not in names(entries)


def test_a_link_is_bound_to_its_holder_and_request(hospital: Hospital, record: dict[str, str]) -> None:
    url = f"Patient/{record['patient']}/$everything"
    following = str(next_link(hospital.feed.get(f"{url}?_count=1")))
    assert hospital.clinician("everything-3").get(following).status_code == 400
    assert hospital.feed.get(following.replace(record["patient"], record["other"])).status_code == 400
    assert hospital.feed.get(following + "&_count=3").status_code == 400


@pytest.mark.parametrize(("query", "place"), [
    ("unknown=1", "http.unknown"), ("_since=yesterday", "http._since"), ("_type=Nothing", "http._type"),
    ("_count=x", "http._count"), ("_count=0", "http._count"), ("start=2020&start=2021", "http.start"),
    ("_page=AAAA", "http._page")])
def test_what_cannot_be_asked_is_refused_by_name(hospital: Hospital, record: dict[str, str], query: str,
                                                 place: str) -> None:
    answer = hospital.feed.get(f"Patient/{record['patient']}/$everything?{query}")
    assert answer.status_code == 400, answer.text
    assert places(answer) == [place]


def test_a_body_that_is_no_parameters_is_refused(hospital: Hospital, record: dict[str, str]) -> None:
    url = f"Patient/{record['patient']}/$everything"
    assert hospital.feed.post(url, {"resourceType": "Patient"}).status_code == 422
    answer = hospital.feed.post(url, {"resourceType": "Parameters", "parameter": [{"name": "x", "valueString": "y"}]})
    assert (answer.status_code, places(answer)) == (400, ["http.x"])
    answer = hospital.feed.post(url, {"resourceType": "Parameters", "parameter": [
        {"name": "_type", "valuePeriod": {"start": "2020"}}]})
    assert (answer.status_code, places(answer)) == (400, ["http._type"])
