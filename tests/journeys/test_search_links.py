"""Chains, ``_has``, ``_filter``, modifiers and ``near`` over HTTP, and what they must not tell.

https://hl7.org/fhir/R4/search.html; invariant 4: a link counts only what the caller may find by its own type.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from gateway.errors import OAuthError
from gateway.store import index_links
from tests.journeys.hospital import Client, Hospital, observation

SECRET = "linked-secret"


@pytest.fixture(scope="module")
def linked(hospital: Hospital) -> dict[str, str]:
    """Two patients at one clinic, records of each, a practitioner and two places. Names to logical ids."""
    ids: dict[str, str] = {}
    ids["north"] = hospital.new({"resourceType": "Organization", "name": "North Links"})
    ids["west"] = hospital.new({"resourceType": "Organization", "name": "West Links",
                                "partOf": {"reference": f"Organization/{ids['north']}"}})
    ids["dr"] = hospital.new({"resourceType": "Practitioner", "name": [{"family": "Linkman"}]})
    for name, family in (("ana", "Linkana"), ("bob", "Linkbob")):
        ids[name] = hospital.new_patient(
            name=[{"family": family, "given": ["Chain"]}], gender="female" if name == "ana" else "male",
            managingOrganization={"reference": f"Organization/{ids['west']}"},
            generalPractitioner=[{"reference": f"Practitioner/{ids['dr']}"}],
            identifier=[{"system": "urn:links", "value": name,
                         "type": {"text": "Chart number", "coding": [{"system": "urn:kinds", "code": "MR"}]}}])
        ids[f"{name}-encounter"] = hospital.new({
            "resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
            "subject": {"reference": f"Patient/{ids[name]}"}, "period": {"start": "2024-01-01", "end": "2024-01-02"}})
        ids[f"{name}-obs"] = hospital.feed.post("Observation", observation(
            ids[name], code=SECRET, encounter={"reference": f"Encounter/{ids[f'{name}-encounter']}"},
            performer=[{"reference": f"Practitioner/{ids['dr']}", "display": "Doctor Linkman"}])).json()["id"]
    for name, latitude, longitude in (("zurich", 47.3769, 8.5417), ("bern", 46.9480, 7.4474)):
        ids[name] = hospital.new({"resourceType": "Location", "name": f"Place {name}", "position": {
            "latitude": latitude, "longitude": longitude}})
    ids["vs"] = hospital.new({"resourceType": "ValueSet", "status": "active", "url": "http://links.example/a/b/vs"})
    return ids


def found(client: Client, linked: dict[str, str], url: str) -> set[str]:
    names = {id_: name for name, id_ in linked.items()}
    return {names[id_] for id_ in client.all_ids(url)}


@pytest.mark.parametrize(("url", "names"), [
    ("Observation?patient.family=linkana", "ana-obs"), ("Observation?subject:Patient.family=linkana", "ana-obs"),
    ("Observation?subject.family=linkana,linkbob&subject.gender=male", "bob-obs"),
    ("Observation?patient.organization.partof.name=north+links", "ana-obs bob-obs"),
    ("Observation?performer:Practitioner.name=linkman&patient.family:contains=nkbo", "bob-obs"),
    ("Patient?_has:Observation:patient:encounter.class=AMB&family=link", "ana bob"),
    ("Patient?_has:Encounter:subject:_has:Observation:encounter:code=linked-secret&gender=male", "bob"),
    ("Organization?_has:Patient:organization:family=linkana", "west"),
    ("Patient?family=link&family:contains=BOB", "bob"), ("Patient?family=link&organization:missing=true", ""),
    ("Patient?family=link&birthdate:missing=true", "ana bob"), ("Patient?family=link&gender:not=male", "ana"),
    ("Patient?identifier:of-type=urn:kinds|MR|ana", "ana"), ("Patient?identifier:text=chart&family=linkbob", "bob"),
    ("Patient?phonetic=Linkanna", "ana"),
    ("Patient?family=link&gender:in=http://hl7.org/fhir/ValueSet/administrative-gender", "ana bob"),
    ("Patient?family=link&gender:not-in=http://hl7.org/fhir/ValueSet/administrative-gender", ""),
    ("Observation?performer:text=linkman&code=linked-secret", "ana-obs bob-obs"),
    ("Location?near=47.4|8.5|20|km", "zurich"), ("Location?near=47.1|8.0|100|km", "zurich bern"),
    ("Location?near=47.37|8.54|0.05", ""), ("ValueSet?url:below=http://links.example/a", "vs"),
    ("ValueSet?url:above=http://links.example/a/b/vs/c", "vs"), ("ValueSet?url:below=http://links.example/a/x", ""),
    ("Patient?_filter=" + quote('family sw "link" and (gender eq male or identifier eq "urn:links|ana")'), "ana bob"),
    ("Patient?_filter=" + quote('family eq "linkana"'), "ana"),
    ("Patient?_filter=" + quote('family co "kbo" and not (gender eq female)'), "bob"),
    ("Observation?_filter=" + quote("patient.family eq linkana and code eq linked-secret"), "ana-obs"),
    # https://hl7.org/fhir/R4/search_filter.html: paramPath = paramName ("[" filter "]") "." paramPath
    ("Observation?_filter=" + quote("patient[family sw link and gender eq male].identifier eq urn:links|bob"),
     "bob-obs"),
    ("Observation?_filter=" + quote("subject[gender eq male].family eq linkana"), ""),
    ("Observation?_filter=" + quote("not (patient[gender eq male].family sw link) and code eq linked-secret"),
     "ana-obs"),
    ("Observation?_filter=" + quote("subject:Patient[gender eq female].organization[name sw west].partof.name sw north "
                                    "and code eq linked-secret"), "ana-obs"),
    ("Observation?_filter=" + quote("encounter.subject[family eq linkbob].gender eq male"), "bob-obs"),
    ("Observation?_filter=" + quote("code-value-quantity[code eq linked-secret].value-quantity gt 1||mm[Hg]"), ""),
    ("Observation?_filter=" + quote('code-value-quantity[code eq "linked-secret"].value-quantity gt 1'),
     "ana-obs bob-obs"),
    ("Observation?_filter=" + quote("code-value-quantity[value-quantity lt 9].code eq linked-secret"),
     "ana-obs bob-obs"),
    ("Organization?_content=north+links", "north"),
])
def test_a_search_reaches_other_resources(hospital: Hospital, linked: dict[str, str], url: str, names: str) -> None:
    assert found(hospital.feed, linked, url) == set(names.split())
    counted = hospital.feed.get(url + "&_summary=count")
    assert counted.json()["total"] == len(names.split())


@pytest.mark.parametrize("url", [
    "Observation?subject.nosuch=1", "Observation?status.name=x", "Observation?subject:Nosuch.name=x",
    "Patient?_has:Observation:patient", "Patient?_has:Observation:encounter:code=x", "Patient?_has:Nosuch:a:b=c",
    "Patient?gender:exact=male", "Patient?family:in=x", "Patient?gender:in=http://nowhere.example/vs",
    "Patient?identifier:of-type=a|b", "Patient?gender:missing=perhaps", "Location?near=1", "Location?near=91|0|5|km",
    "Location?near=1|1|5|furlong", "Patient?_filter=family", "Patient?_filter=family%20xx%201",
    "Patient?_filter=" + quote("name[given eq x].family eq y"), "Patient?_filter=" + quote("organization[name eq x"),
    "Patient?_filter=" + quote("organization[name eq x] eq y"), "Patient?_filter=" + quote("organization[].name eq y"),
    "Patient?_filter=" + quote("organization[nosuch eq x].name eq y"), "Patient?_filter=" + quote("[a eq b].c eq d"),
    "Observation?_filter=" + quote("patient:Group[code eq x].code eq y"),  # patient is what of subject is a Patient
    "Observation?_filter=" + quote("code-value-quantity[code ne x].value-quantity gt 1"),
    "Observation?_filter=" + quote("code-value-quantity[code eq x].code eq x"),
    "Observation?_filter=" + quote("code-value-quantity[code eq x or code eq y].value-quantity gt 1"),
    "Communication?_filter=" + quote("part-of[_id eq 1]." * 12 + "_id eq 1"),
    "Patient?_filter=(family%20eq%20a", "Patient?_filter=nosuch%20eq%201", "Patient?_filter=gender%20co%20ma",
    "Observation?code:below=http://loinc.org|1", "Patient?_has:AuditEvent:patient:action=R",
    "Observation?" + "encounter.part-of." * 11 + "class=AMB"])
def test_what_cannot_be_asked_is_refused_by_name(hospital: Hospital, linked: dict[str, str], url: str) -> None:
    answer = hospital.feed.get(url)
    assert answer.status_code == 400, answer.text
    [issue] = answer.json()["issue"]
    assert issue["diagnostics"]
    assert issue["expression"][0].startswith("http.")


def ids_of(client: Client, url: str) -> list[str]:
    return client.all_ids(url)


LINKS = (
    "Organization?_has:Patient:organization:family=linkana", "Organization?_has:Patient:organization:gender:not=male",
    "Organization?_has:Patient:organization:birthdate:missing=true",
    f"Practitioner?_has:Observation:performer:code={SECRET}",
    "Practitioner?_has:Patient:general-practitioner:family:contains=nka",
    "Practitioner?_has:Observation:performer:patient.family=linkana",
    "Organization?_filter=" + quote("_has:Patient:organization:family eq linkana"))


@pytest.mark.parametrize("url", LINKS)
def test_a_clinician_without_a_grant_learns_nothing_by_a_link(hospital: Hospital, linked: dict[str, str],
                                                              url: str) -> None:
    assert ids_of(hospital.feed, url)
    doctor = hospital.clinician("links-1")
    assert set(ids_of(doctor, f"Organization?_id={linked['west']}")) == {linked["west"]}
    assert ids_of(doctor, url) == []
    assert doctor.get(url + "&_summary=count").json()["total"] == 0


def test_a_grant_of_one_type_opens_no_link_to_another(hospital: Hospital, linked: dict[str, str]) -> None:
    doctor = hospital.clinician("links-2")
    hospital.grant(linked["ana"], "Practitioner/links-2", types=frozenset({"Observation"}))
    seen = f"Observation?code={SECRET}"
    assert ids_of(doctor, seen) == [linked["ana-obs"]]
    for asked in ("patient.family=linkana", "patient.gender=female", "patient.gender:not=male",
                  "encounter.class=AMB", "patient.family:contains=nka"):
        assert ids_of(doctor, f"{seen}&{asked}") == [], asked
    hospital.grant(linked["ana"], "Practitioner/links-2", types=frozenset({"Patient"}))
    assert ids_of(doctor, f"{seen}&patient.family=linkana") == [linked["ana-obs"]]
    assert ids_of(doctor, f"{seen}&patient.family:contains=nka") == [linked["ana-obs"]]
    assert ids_of(doctor, f"Patient?_has:Observation:patient:code={SECRET}") == [linked["ana"]]
    assert ids_of(doctor, f"{seen}&encounter.class=AMB") == []
    assert ids_of(doctor, "Patient?_has:Encounter:patient:class=AMB") == []


def test_a_link_to_a_type_outside_the_scopes_is_forbidden(hospital: Hospital, linked: dict[str, str]) -> None:
    app = hospital.clinician("links-3", scope="user/Observation.rs user/Group.rs")
    for url in ("Observation?patient.family=linkana", "Observation?subject:Patient.family=linkana",
                "Observation?_filter=" + quote("patient.family eq linkana")):
        assert app.get(url).status_code == 403, url
    assert app.get("Observation?subject.identifier=urn:links|ana").json().get("entry", []) == []
    assert hospital.clinician("links-3", scope="user/Patient.rs").get(
        "Patient?_has:Observation:patient:code=x").status_code == 403


def test_a_patient_reaches_only_their_own(hospital: Hospital, linked: dict[str, str]) -> None:
    ana: Client = hospital.patient(linked["ana"])
    assert ids_of(ana, f"Patient?_has:Observation:patient:code={SECRET}") == [linked["ana"]]
    assert ids_of(ana, "Observation?patient.family=linkbob") == []
    assert ids_of(ana, "Organization?_has:Patient:organization:family=linkbob") == []


def test_a_condition_may_follow_a_link_but_opens_nothing(hospital: Hospital, linked: dict[str, str]) -> None:
    body: dict[str, Any] = {"resourceType": "Basic", "code": {"text": "x"}}
    answer = hospital.feed.post("Basic", body, If_None_Exist="subject:Patient.family=linknobody")
    assert answer.status_code == 201, answer.text
    answer = hospital.feed.post("Basic", body, If_None_Exist="subject:Patient.family:contains=linknobody")
    assert answer.status_code in (400, 412, 422), answer.text


@pytest.mark.parametrize("criterion", ["patient.family=linkana", "_has:Provenance:target:agent=x",
                                       "value-string:contains=x"])
def test_a_granular_scope_asks_one_resource_alone(hospital: Hospital, criterion: str) -> None:
    with pytest.raises(OAuthError):
        hospital.clinician("links-2", scope=f"user/Observation.rs?{criterion}")


@pytest.mark.parametrize("links", ["partof." * 10, "_has:Organization:partof:" * 10])
def test_links_behind_links_to_very_many_are_refused(hospital: Hospital, linked: dict[str, str], links: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite bears expressions 1,000 deep: what more than a thousand resources meet is asked in one statement."""
    assert hospital.feed.ids(f"Organization?{links}name=north") == []
    monkeypatch.setattr(index_links, "FOUND_MAX", 0)
    answer = hospital.feed.get(f"Organization?{links}name=north")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "too-costly"), answer.text
    assert hospital.feed.get(f"Organization?{links[:len(links) // 10 * 4]}name=north").status_code == 200
