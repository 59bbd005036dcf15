"""Ways out of a compartment: a clinician with one patient's grant tries every road to another's record. Invariant 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.records.gate import Gate
from gateway.records.read import audited
from gateway.records.versions import Versions
from gateway.store.sql import GroupCommit
from tests.journeys.hospital import Client, Hospital, observation

MARK = "Xanthippe-7Q"


@pytest.fixture(scope="module")
def world(hospital: Hospital) -> dict[str, str]:
    """Patient A granted Observations to dr-way; B, who did not, hangs on everything of A's."""
    feed, made = hospital.feed, {}

    def put(type_: str, id_: str, **elements: Any) -> None:
        answer = feed.put(f"{type_}/{id_}", {"resourceType": type_, "id": id_, **elements})
        assert answer.status_code in (200, 201), answer.text
        made[id_] = type_

    mark = [{"system": "urn:way", "value": MARK}]
    put("Practitioner", "dr-way", name=[{"family": "Way"}])
    put("Patient", "way-b", name=[{"family": MARK}], identifier=mark)
    put("Patient", "way-a", name=[{"family": "Open"}],
        link=[{"other": {"reference": "Patient/way-b"}, "type": "seealso"}],
        generalPractitioner=[{"reference": "Practitioner/dr-way"}])
    put("Observation", "way-hidden", status="final", code={"text": MARK}, identifier=mark,
        subject={"reference": "Patient/way-b"}, performer=[{"reference": "Practitioner/dr-way"}])
    put("Observation", "way-open", status="final", code={"text": "open"}, subject={"reference": "Patient/way-a"},
        hasMember=[{"reference": "Observation/way-hidden"}], performer=[{"reference": "Practitioner/dr-way"}])
    put("Observation", "way-inside", status="final", code={"text": "inside"}, subject={"reference": "#b"}, contained=[
        {"resourceType": "Patient", "id": "b", "name": [{"family": MARK}], "link": [
            {"other": {"reference": "Patient/way-b"}, "type": "refer"}]}], focus=[{"reference": "Patient/way-b"}])
    put("List", "way-list", status="current", mode="working", subject={"reference": "Patient/way-b"},
        entry=[{"item": {"reference": "Observation/way-open"}}, {"item": {"reference": "Observation/way-hidden"}}])
    put("Group", "way-group", type="person", actual=True, member=[{"entity": {"reference": "Patient/way-b"}}])
    hospital.grant("way-a", "Practitioner/dr-way", types=frozenset({"Observation", "Patient"}))
    return made


@pytest.fixture(scope="module")
def doctor(hospital: Hospital, world: dict[str, str]) -> Client:
    return hospital.clinician("dr-way")


ROADS = {
    "_include": "Observation?_id=way-open&_include=*&_include=Observation:has-member",
    "_include iterated": "Observation?_id=way-open&_include=Observation:subject&_include:iterate=Patient:link",
    "_include of a link": "Patient?_id=way-a&_include=Patient:link",
    "_revinclude": "Practitioner?_id=dr-way&_revinclude=Observation:performer&_revinclude=*",
    "_revinclude iterated": "Practitioner?_revinclude=Observation:performer&_revinclude:iterate=Observation:has-member",
    "chain": f"Observation?subject:Patient.family={MARK}",
    "chain through a member": f"Observation?has-member.identifier=urn:way|{MARK}",
    "_has": f"Practitioner?_has:Observation:performer:identifier=urn:way|{MARK}",
    "_has nested": f"Practitioner?_has:Observation:performer:subject:Patient.family={MARK}",
    "$everything": "Patient/way-a/$everything", "$everything of the other": "Patient/way-b/$everything",
    "composite": f"Observation?code-value-string={MARK}$x&_id=way-hidden",
    "combo": "Observation?combo-code=hidden&_id=way-hidden", "_list": "Observation?_list=way-list",
    "_filter": quote(f'Observation?_filter=identifier eq "{MARK}"', safe="?=_"),
    "_filter by subject": "Observation?_filter=subject%20eq%20Patient/way-b",
    "sort": "Observation?_sort=code,-_lastUpdated&_count=50", "count": "Observation?_summary=count&_id=way-hidden",
    "total": "Observation?_total=accurate&_count=0&_id=way-hidden", "history": "Observation/way-hidden/_history",
    "history of the type": "Observation/_history?_count=200", "history of the system": "_history?_count=200",
    "vread": "Observation/way-hidden/_history/1", "compartment": "Patient/way-b/Observation",
    "compartment of all": "Patient/way-b/*", "$lastn": "Observation/$lastn?patient=Patient/way-b",
    "$docref": "DocumentReference/$docref?patient=way-b", "$summary": "Patient/way-b/$summary",
    "$meta": "Observation/way-hidden/$meta", "$receipt": "Observation/way-hidden/$receipt",
    "$validate": "Observation/way-hidden/$validate", "text": f"Observation?code:text={MARK}",
    "missing": "Observation?subject:missing=false&_count=200", "not": "Observation?code:not=x&_count=200",
    "identifier of a reference": f"Observation?subject:identifier=urn:way|{MARK}",
    "elements": "Observation?_elements=code,subject&_count=200", "several types": "?_type=Observation,Patient&_count=9",
    "$graphql": "$graphql?query=" + quote(
        "{ObservationList(_count: 100){id code{text} subject{reference resource{... on Patient{name{family}}}} "
        "hasMember{resource{... on Observation{id}}}}}"),
    "$graphql of one": "Observation/way-open/$graphql?query=" + quote(
        "{id hasMember{resource{... on Observation{id code{text}}}}}"),
    "contained": "Observation?_contained=both&_containedType=contained&_count=200",
    "a contained patient": "Patient?_contained=true&_containedType=contained&_count=200",
    "its container": f"Patient?_contained=both&family={MARK}", "below": "Encounter?part-of:below=way-hidden&_count=50",
    "filter in brackets": "Observation?_filter=" + quote("subject:Patient[_id eq way-b]._id eq way-b"),
}


def tells(answer: httpx.Response) -> bool:
    """Whether it shows the other patient's data: their mark (but in what was asked), or one of their records."""
    try:
        body = answer.json()
    except ValueError:
        return MARK in answer.text
    if body.get("resourceType") == "Bundle":
        return any(entry.get("resource", {}).get("id") in ("way-hidden", "way-b", "way-list", "way-inside", "way-group")
                   or MARK in json.dumps(entry.get("resource", {})) for entry in body.get("entry", ()))
    if body.get("resourceType") == "OperationOutcome":
        return MARK in json.dumps(body)
    return MARK in answer.text or '"way-hidden"' in answer.text.replace(" ", "")


@pytest.mark.parametrize("road", ROADS)
def test_no_road_leads_to_another_patients_record(hospital: Hospital, doctor: Client, road: str) -> None:
    url: str | None = ROADS[road]
    for _ in range(20):
        assert url is not None
        answer = doctor.get(url)
        assert answer.status_code < 500, (road, answer.text)
        assert not tells(answer), (road, answer.text[:500])
        body = answer.json()
        if body.get("resourceType") == "Bundle" and "_id=way-hidden" in url:
            assert body.get("total", 0) == 0
        url = next((link["url"] for link in body.get("link", ()) if link["relation"] == "next"), None) \
            if body.get("resourceType") == "Bundle" else None
        if url is None:
            break
    form = doctor.get(ROADS[road], Accept="application/fhir+xml")
    assert f'family value="{MARK}"' not in form.text
    assert f'text value="{MARK}"' not in form.text


@pytest.mark.parametrize("road", ["_include", "chain", "_has", "_list", "history", "$everything", "compartment"])
def test_no_road_leads_there_through_a_bundle_or_a_form(hospital: Hospital, doctor: Client, road: str) -> None:
    answer = doctor.post("", {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "GET", "url": ROADS[road]}}]})
    [entry] = answer.json()["entry"]
    inner = entry.get("resource", {})
    assert not any(one.get("resource", {}).get("id") in ("way-hidden", "way-b") for one in inner.get("entry", ()))
    assert MARK not in json.dumps([one.get("resource") for one in inner.get("entry", ())])
    type_, _, query = ROADS[road].partition("?")
    if query and "/" not in type_:
        posted = doctor.post(f"{type_}/_search", query.encode(), Content_Type="application/x-www-form-urlencoded")
        assert not tells(posted), posted.text[:500]


def test_the_open_record_is_there_so_that_the_roads_are_real(doctor: Client) -> None:
    assert doctor.get("Observation/way-open").status_code == 200
    assert "way-open" in doctor.ids("Observation?_id=way-open&_include=Observation:has-member")


def test_a_page_link_works_for_its_holder_alone_and_not_once_changed(hospital: Hospital, doctor: Client) -> None:
    hospital.feed.post("Observation", observation("way-a"))
    answer = doctor.get("Observation?_count=1")
    link = next(one["url"] for one in answer.json()["link"] if one["relation"] == "next")
    assert doctor.get(link).status_code == 200
    other = hospital.clinician("dr-other").get(link)
    assert other.status_code in (400, 403, 404)
    assert "way-" not in other.text
    head, mark, sealed = link.partition("_page=")
    for changed in (sealed[:-2] + ("AA" if sealed[-2:] != "AA" else "BB"), sealed[1:], sealed + "A", ""):
        assert doctor.get(head + mark + changed).status_code in (400, 403, 404, 410)


# Absent and hidden: the same steps, so that time tells nothing

STEPS: list[tuple[Any, str]] = [(Gate, "entries"), (GroupCommit, "commit"), (Versions, "open"),
                                (Versions, "open_local"), (Versions, "open_many"), (Versions, "open_few")]


@pytest.mark.parametrize("url", ["Observation/{}", "Observation/{}/_history/1", "Observation/{}/_history",
                                 "Observation?_id={}", "Patient/{}/$everything", "Observation/{}/$meta"])
def test_a_hidden_record_takes_the_steps_of_an_absent_one(hospital: Hospital, doctor: Client, url: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided before anything is opened, and one durable row of the audit for each. The clock: ``bench/absence.py``."""
    taken: list[str] = []

    def counted(plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            taken.append(name)
            return plain(*arguments, **named)
        return step

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), name))
    hidden, absent = ("way-b", "nobody-at-all") if url.startswith("Patient") else ("way-hidden", "nothing-at-all")
    found = {}
    for id_ in (hidden, absent):
        doctor.get(url.format(id_))
        taken.clear()
        doctor.get(url.format(id_))
        found[id_] = list(taken)
    assert found[hidden] == found[absent]
    assert "open" not in found[hidden]


# The race between check and use

@pytest.mark.parametrize("url", ["Observation/{}", "Observation?_id={}", "Observation/{}/_history",
                                 "Observation/{}/_history/1", "Patient/{p}/$everything"])
def test_a_revocation_between_decision_and_sending_wins(hospital: Hospital, url: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient, "77.25")).json()["id"]
    name = hospital.grant(patient, "Practitioner/racer")
    racer, asked = hospital.clinician("racer"), url.format(id_, p=patient)
    assert "77.25" in racer.get(asked).text
    entries, revoked = Gate.entries, []

    def after_deciding(self: Gate, caller: Any, *decided: Any, **more: Any) -> Any:
        if not revoked and caller.grant.user == "Practitioner/racer":
            revoked.append(name)
            hospital.revoke(name)
        return entries(self, caller, *decided, **more)

    monkeypatch.setattr(Gate, "entries", after_deciding)
    answer = racer.get(asked)
    assert revoked
    assert "77.25" not in answer.text
    assert id_ not in json.dumps(answer.json().get("entry", []))
    assert answer.status_code in (200, 404)


def test_a_revocation_between_decision_and_commit_stops_a_write(hospital: Hospital,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    patient = hospital.new_patient()
    name = hospital.grant(patient, "Practitioner/racer-2")
    racer = hospital.clinician("racer-2")
    assert racer.post("Observation", observation(patient)).status_code == 201
    seal, revoked = Versions.seal, []

    def after_deciding(self: Versions, *arguments: Any, **named: Any) -> Any:
        if not revoked:
            revoked.append(name)
            hospital.revoke(name)
        return seal(self, *arguments, **named)

    before = hospital.stored()[0]
    monkeypatch.setattr(Versions, "seal", after_deciding)
    assert racer.post("Observation", observation(patient)).status_code == 422
    assert revoked
    assert hospital.stored()[0] == before


def test_every_disclosure_goes_through_the_row_that_compares() -> None:
    """``read.audited`` joins the disclosures, which compare ``decision_seq`` once more: the name is held here."""
    assert "disclosures" in audited.__code__.co_names
