"""``:below`` and ``:above`` on references: along what is part of what, and along the versions of a canonical.

https://hl7.org/fhir/R4/search.html#recursive; invariant 4: what may not be seen leads nowhere.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.store import index_links
from tests.journeys.hospital import Client, Hospital

CLASS = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}


def place(hospital: Hospital, within: str | None = None) -> str:
    return hospital.new({"resourceType": "Location", "name": "Hierarchy", **(
        {"partOf": {"reference": f"Location/{within}"}} if within else {})})


def visit(hospital: Hospital, patient: str, location: str, **elements: Any) -> str:
    return hospital.new({"resourceType": "Encounter", "status": "finished", "class": CLASS,
                         "subject": {"reference": f"Patient/{patient}"},
                         "location": [{"location": {"reference": f"Location/{location}"}}], **elements})


@pytest.fixture(scope="module")
def ward(hospital: Hospital) -> dict[str, str]:
    ids = {"ana": hospital.new_patient(), "site": place(hospital)}
    ids["house"] = place(hospital, ids["site"])
    ids["room"] = place(hospital, ids["house"])
    ids["other"] = place(hospital)
    for name in ("site", "house", "room", "other"):
        ids["at " + name] = visit(hospital, ids["ana"], ids[name])
    return ids


def told(client: Client, ward: dict[str, str], url: str) -> list[str]:
    names = {id_: name for name, id_ in ward.items()}
    return [names[id_] for id_ in client.ids(url.format(**ward))]


@pytest.mark.parametrize(("query", "found"), [
    ("location={house}", "house"), ("location:below={house}", "house, room"),
    ("location:below=Location/{site}", "site, house, room"), ("location:above={room}", "site, house, room"),
    ("location:above=Location/{house}", "site, house"), ("location:below={room},{other}", "room, other"),
    ("location:below=nosuch", ""), ("location.partof:below={site}", "house, room"),
    ("location:below={site}&location={room}", "room")])
def test_what_is_part_of_what_leads_down_and_up(hospital: Hospital, ward: dict[str, str], query: str,
                                                found: str) -> None:
    assert told(hospital.feed, ward, f"Encounter?patient={{ana}}&{query}") == [
        f"at {name}" for name in found.split(", ") if name]
    assert hospital.feed.total(f"Encounter?patient={{ana}}&{query}".format(**ward)) == len(
        [name for name in found.split(", ") if name])


def test_a_circle_of_parts_ends(hospital: Hospital) -> None:
    one = place(hospital)
    two = place(hospital, one)
    again = {"resourceType": "Location", "id": one, "name": "Hierarchy", "partOf": {"reference": f"Location/{two}"}}
    assert hospital.feed.put(f"Location/{one}", again).status_code == 200
    for modifier in ("below", "above"):
        assert set(hospital.feed.ids(f"Location?partof:{modifier}={one}")) == {one, two}


def test_more_than_a_statement_bears_is_refused(hospital: Hospital, ward: dict[str, str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_links, "TREE_MAX", 2)
    answer = hospital.feed.get(f"Encounter?location:below={ward['site']}")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "too-costly")


def test_many_of_many_parts_are_asked_in_one_statement(hospital: Hospital) -> None:
    """SQLite takes 32,766 variables, and what is asked of the container too is asked of what it contains."""
    top = place(hospital)
    for start in range(0, 900, 300):
        hospital.feed.post("", {"resourceType": "Bundle", "type": "batch", "entry": [
            {"resource": {"resourceType": "Location", "partOf": {"reference": f"Location/{top}"}},
             "request": {"method": "POST", "url": "Location"}} for _ in range(start, start + 300)]})
    inside = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": CLASS,
              "location": [{"location": {"reference": f"Location/{top}"}}]}
    visit(hospital, hospital.new_patient(), top, contained=[inside], partOf={"reference": "#e"})
    asked = "&".join([*[f"class=AMB,{','.join(f'x{place}' for place in range(499))}"] * 9,
                      *[f"location:below={top}"] * 6])
    answer = hospital.feed.get(f"Encounter?{asked}&_contained=both&_containedType=contained&_summary=count")
    assert (answer.status_code, answer.json().get("total")) == (200, 2), answer.text


def test_what_may_not_be_seen_leads_nowhere(hospital: Hospital) -> None:
    """An Encounter of another patient stands between two of Ana's: hidden as if it were not there."""
    ana, bob, at = hospital.new_patient(), hospital.new_patient(), place(hospital)
    top = visit(hospital, ana, at)
    middle = visit(hospital, bob, at, partOf={"reference": f"Encounter/{top}"})
    bottom = visit(hospital, ana, at, partOf={"reference": f"Encounter/{middle}"})
    seen = hospital.new({"resourceType": "Observation", "status": "final", "code": {"text": "x"},
                         "subject": {"reference": f"Patient/{ana}"}, "encounter": {"reference": f"Encounter/{bottom}"}})
    assert hospital.feed.ids(f"Observation?encounter:below={top}") == [seen]
    doctor = hospital.clinician("dr-tree")
    hospital.grant(ana, "Practitioner/dr-tree")
    assert doctor.ids(f"Observation?encounter:below={bottom}") == [seen]
    assert doctor.ids(f"Observation?encounter:below={top}") == []
    assert doctor.ids(f"Encounter?part-of:above={bottom}") == []
    hospital.grant(bob, "Practitioner/dr-tree")
    assert doctor.ids(f"Observation?encounter:below={top}") == [seen]
    narrow = hospital.clinician("dr-tree", scope="user/Observation.rs")
    assert narrow.get(f"Observation?encounter:below={bottom}").status_code == 403


@pytest.mark.parametrize(("query", "found"), [
    (":below=http://ward.example/form", "none 1 1.2 1.2.3 1.20"), (":below=http://ward.example/form|1.2", "1.2 1.2.3"),
    (":below=http://ward.example/form|1", "1 1.2 1.2.3 1.20"), (":below=http://ward.example/form|2", ""),
    (":above=http://ward.example/form|1.2.3", "none 1 1.2 1.2.3"), (":above=http://ward.example/form|1", "none 1"),
    (":above=http://ward.example/form", "none"), (":below=http://ward.example", ""),
    ("=http://ward.example/form|1", "1")])
def test_versions_of_a_canonical_lead_to_finer_and_coarser_ones(hospital: Hospital, query: str, found: str) -> None:
    known = {}
    for version in ("none", "1", "1.2", "1.2.3", "1.20"):
        url = "http://ward.example/form" + ("" if version == "none" else f"|{version}")
        hospital.feed.put(f"QuestionnaireResponse/form-{version}", {
            "resourceType": "QuestionnaireResponse", "id": f"form-{version}", "status": "completed",
            "questionnaire": url})
        known[f"form-{version}"] = version
    assert [known[id_] for id_ in hospital.feed.ids(f"QuestionnaireResponse?questionnaire{query}")] == found.split()


@pytest.mark.parametrize(("query", "code"), [
    ("Observation?subject:below=Patient/1", "not-supported"), ("Encounter?location:below=a b", "not-supported"),
    ("Encounter?location:below=http://elsewhere.example/fhir/Location/1", "not-supported"),
    ("Observation?patient:above=1", "not-supported"), ("Encounter?location:below=", "value")])
def test_a_reference_to_what_has_no_parts_is_refused(hospital: Hospital, query: str, code: str) -> None:
    answer = hospital.feed.get(query)
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, code), answer.text


def test_coordinates_of_a_sequence_are_those_of_one_variant(hospital: Hospital) -> None:
    """https://hl7.org/fhir/R4/molecularsequence.html#search: chromosome$start$end, counted from 0 or from 1."""
    of_seven = {"chromosome": {"coding": [{"system": "urn:chr", "code": "7"}]}, "genomeBuild": "GRCh 37"}
    of_id = {"referenceSeqId": {"coding": [{"code": "NC"}]}}

    def sequence(system: int, *variants: tuple[int, int], of: dict[str, Any] = of_seven) -> str:
        return hospital.new({
            "resourceType": "MolecularSequence", "coordinateSystem": system, "type": "dna",
            "referenceSeq": {**of, "windowStart": 100, "windowEnd": 400},
            "variant": [{"start": start, "end": end} for start, end in variants]})

    near, apart = sequence(1, (120, 130)), sequence(1, (10, 20), (300, 310))
    from_zero, by_id = sequence(0, (119, 130)), sequence(1, (120, 130), of=of_id)
    asked = "MolecularSequence?chromosome-variant-coordinate="
    assert hospital.feed.ids(asked + "7$lt345$gt123") == [near, apart, from_zero]
    assert hospital.feed.ids(asked + "7$120$130") == [near, from_zero]
    assert hospital.feed.ids(asked + "urn:chr|7$gt200$lt400") == [apart]
    assert hospital.feed.ids(asked + "7$lt100$gt200") == []  # not of one variant
    assert hospital.feed.ids(asked + "8$lt345$gt123") == []
    assert hospital.feed.ids("MolecularSequence?referenceseqid-window-coordinate=NC$ge100$le400") == [by_id]
    assert hospital.feed.ids("MolecularSequence?referenceseqid-variant-coordinate=NC$120$130") == [by_id]
    assert hospital.feed.ids("MolecularSequence?chromosome-window-coordinate=7$101$400") == [from_zero]
    assert hospital.feed.ids("MolecularSequence?chromosome-window-coordinate:missing=true") == [by_id]
    assert hospital.feed.get(asked + "7$1").status_code == 400
