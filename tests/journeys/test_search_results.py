"""What a search answers besides its matches: includes, order, totals, summaries. https://hl7.org/fhir/R4/search.html#return

What the caller may not see is simply not there (invariant 4), in every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.records import pace
from gateway.records.pace import Pace
from tests.journeys.hospital import UCUM, Client, Hospital, next_link, observation, places

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def ward(hospital: Hospital) -> dict[str, str]:
    """Ana's and Bob's records, which name each other; names to logical ids."""
    ids = {"org": hospital.new({"resourceType": "Organization", "name": "Include Clinic"})}
    ids["above"] = hospital.new({"resourceType": "Organization", "name": "Above"})
    ids["org2"] = hospital.new({"resourceType": "Organization", "name": "Below",
                                "partOf": {"reference": f"Organization/{ids['above']}"}})
    ids["ana"] = hospital.new_patient(name=[{"family": "Incl"}], managingOrganization={
        "reference": f"Organization/{ids['org2']}"}, text={
            "status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">Ana</div>'},
        photo=[{"url": "http://x.example/a"}], contact=[{"name": {"family": "C"}}], gender="female")
    ids["bob"] = hospital.new_patient(name=[{"family": "Incl"}])
    ids["o1"] = made(hospital, ids["ana"], performer=[{"reference": f"Organization/{ids['org']}"}])
    ids["o2"] = made(hospital, ids["ana"], derivedFrom=[{"reference": f"{hospital.base}/Observation/{ids['o1']}"}])
    ids["o3"] = made(hospital, ids["bob"], derivedFrom=[{"reference": f"Observation/{ids['o2']}/_history/1"}],
                     hasMember=[{"reference": "http://elsewhere.example/fhir/Observation/1"}])
    return ids


def made(hospital: Hospital, patient: str | None, *, code: str = "incl", **elements: Any) -> str:
    answer = hospital.feed.post("Observation", observation(patient, code=code, **elements))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def told(client: Client, ward: dict[str, str], url: str) -> tuple[str, str]:
    """Names of matches and of included resources of one page, in order."""
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    names = {id_: name for name, id_ in ward.items()}
    found: dict[str, list[str]] = {"match": [], "include": [], "outcome": []}
    for entry in answer.json().get("entry", ()):
        found[entry["search"]["mode"]].append(names.get(entry["resource"].get("id", ""), "?"))
        if entry["search"]["mode"] != "outcome":
            place = f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
            assert entry["fullUrl"] == f"{client.hospital.base}/{place}"
    return " ".join(found["match"]), " ".join(sorted(found["include"]))


@pytest.mark.parametrize(("query", "included"), [
    ("_id={o1}&_include=Observation:subject", "ana"), ("_id={o1},{o2}&_include=Observation:patient", "ana"),
    ("_id={o1}&_include=Observation:subject:Patient", "ana"), ("_id={o1}&_include=Observation:subject:Group", ""),
    ("_id={o1}&_include=Observation:performer&_include=Observation:subject", "ana org"),
    ("_id={o1}&_include=*", "ana org"), ("_id={o1}&_include=Observation:*", "ana org"),
    ("_id={o1}&_include=Patient:organization", ""),
    ("_id={o2}&_include=Observation:derived-from", "o1"), ("_id={o3}&_include=Observation:derived-from", "o2"),
    ("_id={o3}&_include=Observation:has-member", ""), ("_id={o1},{o2}&_include=Observation:derived-from", ""),
    # https://hl7.org/fhir/R4/search.html#iterate
    ("_id={o3}&_include:iterate=Observation:derived-from", "o1 o2"),
    ("_id={o1}&_include=Observation:subject&_include:iterate=Patient:organization", "ana org2"),
    ("_id={o1}&_include=Observation:subject&_include:iterate=Patient:organization&_include:iterate=Organization:partof",
     "above ana org2"),
    ("_id={o1}&_include:iterate=*", "above ana org org2"),
    ("_id={o1}&_revinclude=Observation:derived-from", "o2"),
    ("_id={o1}&_revinclude:iterate=Observation:derived-from", "o2 o3"),
    ("_id={o1}&_revinclude=Observation:*", "o2"), ("_id={o1}&_revinclude=*", "o2"),
    ("_id={o1}&_revinclude=Observation:has-member", "")])
def test_what_is_referred_to_comes_along(hospital: Hospital, ward: dict[str, str], query: str, included: str) -> None:
    assert told(hospital.feed, ward, f"Observation?{query.format(**ward)}")[1] == included


def test_what_refers_to_a_match_comes_along(hospital: Hospital, ward: dict[str, str]) -> None:
    url = f"Patient?_id={ward['ana']}&_revinclude=Observation:subject"
    assert told(hospital.feed, ward, url) == ("ana", "o1 o2")
    assert hospital.feed.total(url) == 1
    assert told(hospital.feed, ward, url + "&_revinclude:iterate=Observation:derived-from") == ("ana", "o1 o2 o3")
    assert hospital.feed.get(url).json()["link"][0]["url"] == (
        f"{hospital.base}/Patient?_id={ward['ana']}&_revinclude=Observation:subject")


def test_a_circle_ends(hospital: Hospital) -> None:
    first = made(hospital, None, code="circle", id="circle-1")
    second = made(hospital, None, code="circle", derivedFrom=[{"reference": f"Observation/{first}"}])
    again = observation(None, code="circle", id=first, derivedFrom=[{"reference": f"Observation/{second}"}])
    assert hospital.feed.put(f"Observation/{first}", again).status_code == 200
    url = f"Observation?_id={first}&_include:iterate=Observation:derived-from&_revinclude:iterate=Observation:*"
    assert hospital.feed.ids(url) == [first, second]


def test_a_canonical_is_followed_to_the_version_it_names(hospital: Hospital) -> None:
    for version in ("1", "2"):
        hospital.new({"resourceType": "Questionnaire", "status": "active", "url": "http://ward.example/q",
                      "version": version})
    asked = [hospital.new({"resourceType": "QuestionnaireResponse", "status": "completed", "questionnaire": canonical})
             for canonical in ("http://ward.example/q|1", "http://ward.example/q")]
    for id_, version in zip(asked, "12", strict=True):
        bundle = hospital.feed.get(
            f"QuestionnaireResponse?_id={id_}&_include=QuestionnaireResponse:questionnaire").json()
        assert [entry["resource"].get("version") for entry in bundle["entry"]] == [None, version]


def test_a_clinician_is_included_nothing_that_no_patient_granted(hospital: Hospital, ward: dict[str, str]) -> None:
    """Bob's grant shows his Observation; what it names of Ana's is as absent as what never was."""
    doctor = hospital.clinician("dr-incl")
    hospital.grant(ward["bob"], "Practitioner/dr-incl")
    everything = "_include:iterate=*&_revinclude:iterate=*"
    assert told(doctor, ward, f"Observation?_id={ward['o3']}&{everything}") == ("o3", "bob")
    assert told(doctor, ward, f"Observation?_id={ward['o3']}&_include=Observation:derived-from") == ("o3", "")
    assert told(doctor, ward, f"Patient?_id={ward['ana']}&{everything}") == ("", "")
    assert told(doctor, ward, f"Patient?_id={ward['bob']}&_revinclude=Observation:subject") == ("bob", "o3")


def test_a_denied_type_or_a_scope_not_had_is_not_included(hospital: Hospital, ward: dict[str, str]) -> None:
    hospital.grant(ward["bob"], "Practitioner/dr-part", types=frozenset({"Observation"}))
    doctor = hospital.clinician("dr-part")
    assert told(doctor, ward, f"Observation?_id={ward['o3']}&_include=Observation:subject") == ("o3", "")
    narrow = hospital.client(scope="system/Observation.rs")
    assert told(narrow, ward, f"Observation?_id={ward['o1']}&_include=*") == ("o1", "")
    assert told(narrow, ward, f"Observation?_id={ward['o1']}&_revinclude=*") == ("o1", "o2")


def test_an_inclusion_is_audited_for_the_patient_it_is_about(hospital: Hospital, ward: dict[str, str]) -> None:
    hospital.feed.get(f"Observation?_id={ward['o3']}&_include:iterate=Observation:derived-from")
    entry = hospital.audited(ward["ana"])[0]
    assert {what.split("/_")[0] for what in entry.what} == {f"Observation/{ward['o1']}", f"Observation/{ward['o2']}"}
    assert hospital.audited(ward["bob"])[0].what[0].startswith(f"Observation/{ward['o3']}/")


def test_includes_follow_every_page_and_a_revocation_ends_them_at_once(hospital: Hospital) -> None:
    patients = [hospital.new_patient() for _ in range(3)]
    consents = [hospital.grant(patient, "Practitioner/dr-page") for patient in patients]
    code = "incl-pages"
    for patient in patients:
        made(hospital, patient, code=code)
    doctor = hospital.clinician("dr-page")
    answer = doctor.get(f"Observation?code={code}&_count=1&_include=Observation:subject&_total=accurate")
    bundle = answer.json()
    assert (bundle["total"], [entry["resource"]["id"] for entry in bundle["entry"]][1:]) == (3, patients[:1])
    second = next_link(answer)
    assert second is not None
    page = doctor.get(second).json()
    assert (page["total"], page["entry"][1]["resource"]["id"]) == (3, patients[1])
    assert {link["relation"] for link in page["link"]} == {"self", "next", "previous", "first"}
    hospital.revoke(consents[1])
    after = doctor.get(second).json()
    assert [entry["resource"]["id"] for entry in after["entry"] if entry["search"]["mode"] == "include"] == [
        patients[2]]
    assert "total" not in after


def test_previous_and_first_lead_back_over_the_same_snapshot(hospital: Hospital) -> None:
    ids = [made(hospital, None, code="back") for _ in range(5)]
    url: str | None = "Observation?code=back&_count=2"
    pages = []
    while url is not None:
        pages.append(hospital.feed.get(url).json())
        url = next((link["url"] for link in pages[-1]["link"] if link["relation"] == "next"), None)
    made(hospital, None, code="back")
    last = {link["relation"]: link["url"] for link in pages[-1]["link"]}
    assert hospital.feed.ids(last["previous"]) == ids[2:4]
    assert hospital.feed.all_ids(last["first"]) == ids
    before = {link["relation"]: link["url"] for link in hospital.feed.get(last["previous"]).json()["link"]}
    assert hospital.feed.ids(before["previous"]) == ids[:2]
    assert hospital.clinician("dr-x").get(last["first"]).status_code == 400


def test_more_than_a_page_bears_is_said(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = hospital.new_patient()
    for _ in range(4):
        made(hospital, patient, code="bound")
    monkeypatch.setattr("gateway.records.including.MOST", 2)
    bundle = hospital.feed.get(f"Patient?_id={patient}&_revinclude=Observation:subject").json()
    modes = [entry["search"]["mode"] for entry in bundle["entry"]]
    assert modes == ["match", "include", "include", "outcome"]
    assert bundle["entry"][-1]["resource"]["issue"][0]["code"] == "too-costly"
    monkeypatch.setattr("gateway.records.including.REFERENCES_MAX", 0)
    answer = hospital.feed.get(f"Patient?_id={patient}&_revinclude=Observation:subject")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "too-costly")


@pytest.mark.parametrize(("query", "code"), [
    ("_include=Observation", "value"), ("_include=:subject", "value"), ("_include=Observation:nosuch", "not-supported"),
    ("_include=Nosuch:subject", "not-supported"), ("_include=Observation:code", "not-supported"),
    ("_include=Observation:patient:Device", "not-supported"), ("_include:recurse=Observation:subject", "not-supported"),
    ("_include=a:b:c:d", "value"), ("_revinclude=AuditEvent:entity", "not-supported"), ("_include=", "value"),
    ("_contained=perhaps", "value"), ("_containedType=inner", "value"), ("_contained=true&_contained=true", "invalid"),
    ("_query=named", "not-supported"), ("_list=$current-allergies", "not-supported"),
    ("_list=a b", "value"), ("_total=many", "value"), ("_summary=short", "value"), ("_elements=nosuch",
                                                                                    "not-supported"),
    ("_elements=name.family", "not-supported"), ("_summary=text&_include=*", "invalid"),
    ("_summary=true&_elements=code", "invalid"), ("_count=1&_count=2", "invalid"), ("_sort=code-value-quantity",
                                                                                     "not-supported")])
def test_what_no_answer_can_be_is_refused_by_name(hospital: Hospital, query: str, code: str) -> None:
    answer = hospital.feed.get(f"Observation?{query}")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, code), answer.text
    assert places(answer)[0] == f"http.{query.partition('=')[0]}" or code == "invalid"


def test_lenient_drops_an_unknown_include_with_a_word(hospital: Hospital, ward: dict[str, str]) -> None:
    answer = hospital.feed.get(f"Observation?_id={ward['o1']}&_include=Observation:nosuch",
                               Prefer="handling=lenient").json()
    assert answer["entry"][-1]["search"]["mode"] == "outcome"
    assert "_include" not in answer["link"][0]["url"]


def test_totals_are_told_as_asked(hospital: Hospital) -> None:
    for _ in range(3):
        made(hospital, None, code="totals")
    totals = {total: hospital.feed.get(f"Observation?code=totals&_count=2&_total={total}").json().get("total")
              for total in ("none", "estimate", "accurate")}
    assert totals == {"none": None, "estimate": 3, "accurate": 3}
    assert "total" not in hospital.feed.get("Observation?code=totals&_count=2").json()
    assert "total" not in hospital.feed.get("Observation?code=totals&_total=none").json()
    assert hospital.clinician("dr-blind").total("Observation?code=totals&_total=accurate&_count=1") == 0


def matches(client: Client, url: str | None) -> list[str]:
    """Logical ids of the matches of every page."""
    found: list[str] = []
    while url is not None:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        found += [entry["resource"]["id"] for entry in answer.json().get("entry", ())
                  if entry["search"]["mode"] == "match"]
        url = next_link(answer)
    return found


def one(hospital: Hospital, url: str) -> dict[str, Any]:
    answer = hospital.feed.get(url)
    assert answer.status_code == 200, answer.text
    [entry] = answer.json()["entry"]
    return dict(entry["resource"])


SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


@pytest.mark.parametrize(("query", "kept"), [
    ("_summary=true", "name managingOrganization gender"), ("_summary=text", "text"),
    ("_summary=data", "name managingOrganization gender photo contact"), ("_elements=name,gender", "name gender"),
    ("_elements=Patient.photo", "photo"), ("_summary=false", "name managingOrganization gender photo contact text")])
def test_a_part_is_marked_as_one(hospital: Hospital, ward: dict[str, str], query: str, kept: str) -> None:
    found = one(hospital, f"Patient?_id={ward['ana']}&{query}")
    assert found.keys() - {"resourceType", "id", "meta"} == set(kept.split())
    assert (found["meta"].get("tag") == [SUBSETTED]) is (query != "_summary=false")
    assert found["meta"]["versionId"] == "1"


@pytest.mark.parametrize("place", ["", "/_history/1"])
def test_a_read_shows_the_part_asked(hospital: Hospital, ward: dict[str, str], place: str) -> None:
    url = f"Patient/{ward['ana']}{place}"
    assert hospital.feed.get(f"{url}?_elements=gender").json().keys() == {"resourceType", "id", "meta", "gender"}
    summary = hospital.feed.get(f"{url}?_summary=true")
    assert "photo" not in summary.json()
    assert summary.json()["meta"]["tag"] == [SUBSETTED]
    assert summary.headers["etag"] == 'W/"1"'
    assert places(hospital.feed.get(f"{url}?_elements=nosuch")) == ["http._elements"]
    assert places(hospital.feed.get(f"{url}?_summary=count")) == ["http._summary"]


def test_the_audit_takes_what_it_can_keep(hospital: Hospital, ward: dict[str, str]) -> None:
    patient = hospital.patient(ward["ana"])
    [entry] = patient.get("AuditEvent?_count=1&_elements=action").json()["entry"]
    assert entry["resource"].keys() == {"resourceType", "id", "meta", "type", "action", "recorded", "agent", "source"}
    for query in ("_include=AuditEvent:patient", "_revinclude=Provenance:target", "_total=accurate"):
        assert places(patient.get(f"AuditEvent?{query}")) == [f"http.{query.partition('=')[0]}"]


def test_mandatory_elements_modifiers_and_decimals_are_kept(hospital: Hospital, ward: dict[str, str]) -> None:
    text = hospital.feed.get(f"Observation?_id={ward['o1']}&_elements=value").text
    [entry] = json.loads(text)["entry"]
    assert entry["resource"].keys() == {"resourceType", "id", "meta", "status", "code", "valueQuantity"}
    assert '"value":1.10' in text
    assert entry["resource"]["valueQuantity"]["system"] == UCUM


def test_elements_of_a_type_speak_of_what_is_included(hospital: Hospital, ward: dict[str, str]) -> None:
    bundle = hospital.feed.get(
        f"Observation?_id={ward['o1']}&_include=Observation:subject&_elements=code,Patient.gender").json()
    first, second = (entry["resource"] for entry in bundle["entry"])
    assert "subject" not in first
    assert second.keys() == {"resourceType", "id", "meta", "gender"}
    plain = hospital.feed.get(f"Observation?_id={ward['o1']}&_include=Observation:subject&_elements=code").json()
    assert "name" in plain["entry"][1]["resource"]


def test_the_system_is_searched_over_types(hospital: Hospital, ward: dict[str, str]) -> None:
    url = f"?_id={ward['ana']},{ward['o1']},{ward['org']}"
    assert told(hospital.feed, ward, f"{url}&_type=Patient,Observation") == ("ana o1", "")
    assert told(hospital.feed, ward, url)[0] == "org ana o1"
    assert told(hospital.feed, ward, f"{url}&_sort=-_lastUpdated&_type=Organization,Patient,Observation")[0] == (
        "o1 ana org")
    assert hospital.feed.total(f"{url}&_summary=count") == 3
    assert hospital.feed.all_ids(f"{url}&_type=Organization,Patient,Observation&_count=1") == [
        ward["org"], ward["ana"], ward["o1"]]
    assert hospital.feed.all_ids(f"{url}&_type=Organization,Patient,Observation&_count=2&_sort=-_id,_lastUpdated") == (
        sorted([ward["org"], ward["ana"], ward["o1"]], reverse=True))
    posted = hospital.feed.post(f"_search?_id={ward['ana']},{ward['o1']}", b"_type=Patient", Content_Type=FORM)
    assert [entry["resource"]["id"] for entry in posted.json()["entry"]] == [ward["ana"]]
    assert posted.json()["link"][0]["url"] == f"{hospital.base}?_id={ward['ana']},{ward['o1']}&_type=Patient"
    events = hospital.patient(ward["ana"]).get("?_type=AuditEvent&_count=1")
    assert events.json()["entry"][0]["resource"]["id"].startswith("log-")


@pytest.mark.parametrize(("query", "place"), [
    ("_type=Nosuch", "http._type"), ("_type=Patient,AuditEvent", "http._type"), ("gender=male", "http.gender"),
    ("_sort=date", "http._sort"), ("_type=Patient,Observation&gender=male", "http.gender"), ("_nosuch=1",
                                                                                           "http._nosuch")])
def test_what_not_all_types_have_is_refused(hospital: Hospital, query: str, place: str) -> None:
    answer = hospital.feed.get(f"?{query}")
    assert (answer.status_code, places(answer)) == (400, [place]), answer.text


def test_the_system_search_keeps_to_scopes_and_grants(hospital: Hospital, ward: dict[str, str]) -> None:
    hospital.grant(ward["bob"], "Practitioner/dr-sys")
    doctor = hospital.clinician("dr-sys")
    found = told(doctor, ward, f"?_id={','.join(ward.values())}")[0].split()
    assert {"bob", "o3"} <= set(found)
    assert not {"ana", "o1", "o2"} & set(found)
    narrow = hospital.client(scope="system/Observation.rs")
    assert told(narrow, ward, f"?_id={ward['ana']},{ward['o1']}") == ("o1", "")
    assert narrow.get("?_type=Patient").status_code == 403


def test_compartments_hold_what_the_definition_puts_there(hospital: Hospital, ward: dict[str, str]) -> None:
    assert told(hospital.feed, ward, f"Patient/{ward['ana']}/Observation") == ("o1 o2", "")
    assert told(hospital.feed, ward, f"Patient/{ward['ana']}/Observation?_id={ward['o2']},{ward['o3']}") == ("o2", "")
    assert told(hospital.feed, ward, f"Patient/{ward['ana']}/*") == ("ana o1 o2", "")
    assert told(hospital.feed, ward, f"Patient/{ward['ana']}/Organization") == ("", "")
    posted = hospital.feed.post(f"Patient/{ward['ana']}/Observation/_search", b"code=incl", Content_Type=FORM)
    assert posted.json()["total"] == 2
    encounter = hospital.new({"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"}})
    inside = made(hospital, ward["ana"], code="enc", encounter={"reference": f"Encounter/{encounter}"})
    assert hospital.feed.ids(f"Encounter/{encounter}/Observation") == [inside]
    assert matches(hospital.feed, f"Encounter/{encounter}/*") == [encounter, inside]
    practitioner = hospital.new({"resourceType": "Practitioner"})
    done = made(hospital, ward["ana"], code="enc", performer=[{"reference": f"Practitioner/{practitioner}"}])
    assert hospital.feed.ids(f"Practitioner/{practitioner}/Observation") == [done]
    assert hospital.feed.get(f"Organization/{ward['org']}/Observation").status_code in (404, 405)


def test_a_compartment_of_a_stranger_is_as_empty_as_that_of_nobody(hospital: Hospital, ward: dict[str, str]) -> None:
    doctor = hospital.clinician("dr-stranger")
    for type_ in ("Observation", "*"):
        known, nobody = (doctor.get(f"Patient/{id_}/{type_}?_summary=count").json() for id_ in (ward["ana"], "nobody"))
        assert known["total"] == nobody["total"] == 0
    doctor.get(f"Patient/{ward['ana']}/Observation")
    assert hospital.audited(ward["ana"])[0].outcome == "4"
    events = hospital.feed.get(f"Patient/{ward['ana']}/AuditEvent")
    assert events.status_code in (200, 403)


def test_compartment_pages_lead_on(hospital: Hospital, ward: dict[str, str]) -> None:
    url = f"Patient/{ward['ana']}/*?_count=1"
    assert set(matches(hospital.feed, url)) >= {ward["ana"], ward["o1"], ward["o2"]}
    link = next_link(hospital.feed.get(url))
    assert link is not None
    assert f"/Patient/{ward['ana']}/*?_page=" in link
    assert hospital.feed.get(f"Observation?_page={link.partition('_page=')[2]}").status_code == 400


def test_a_list_that_may_be_seen_is_searched_by(hospital: Hospital, ward: dict[str, str]) -> None:
    listed = hospital.new({"resourceType": "List", "status": "current", "mode": "changes", "subject": {
        "reference": f"Patient/{ward['ana']}"}, "entry": [
            {"item": {"reference": f"Observation/{ward['o1']}"}}, {"item": {"reference": f"Patient/{ward['bob']}"}},
            {"item": {"reference": f"Observation/{ward['o3']}"}, "deleted": True}]})
    assert told(hospital.feed, ward, f"Observation?_list={listed}") == ("o1", "")
    assert told(hospital.feed, ward, f"Observation?_list={listed}&code=nosuch") == ("", "")
    assert told(hospital.feed, ward, f"?_list={listed}")[0] in ("bob o1", "o1 bob")
    assert told(hospital.feed, ward, "Observation?_list=nobody") == ("", "")
    hospital.grant(ward["bob"], "Practitioner/dr-list")
    doctor = hospital.clinician("dr-list")
    assert told(doctor, ward, f"Patient?_list={listed}") == ("", "")  # Ana's list is not theirs to see


@pytest.mark.parametrize("sort", [
    "code", "subject", "-subject", "combo-code", "_tag", "-_profile", "combo-value-quantity", "value-string,-date",
    "performer,_id"])
@pytest.mark.parametrize("count", [2, 50])
def test_any_parameter_sorts_and_pages_stay_whole(hospital: Hospital, sort: str, count: int,
                                                  sorted_ones: list[str]) -> None:
    found = hospital.feed.all_ids(f"Observation?code=sorts&_sort={sort}&_count={count}")
    assert sorted(found) == sorted(sorted_ones)
    assert found == hospital.feed.all_ids(f"Observation?code=sorts&_sort={sort}&_count=7")


@pytest.fixture(scope="module")
def sorted_ones(hospital: Hospital) -> list[str]:
    patients = [hospital.new_patient() for _ in range(2)]
    return [made(hospital, patients[number % 2], code="sorts", meta={"tag": [{"code": f"t{number}"}]} if number else {
        "profile": ["http://p.example/1"]}) for number in range(5)]


@pytest.mark.parametrize("bound", ["INLINE_MATCHES", "INLINE_BYTES", "INLINE_UNSEALED", "INLINE_S"])
def test_includes_and_a_record_are_the_same_on_the_event_loop_and_off_it(
        hospital_with: Callable[..., Hospital], monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    hospital = hospital_with()
    patient = hospital.new_patient(name=[{"family": "Paced"}])
    for _ in range(12):
        hospital.feed.post("Observation", observation(patient, code="paced"))
    threads: list[bool] = []
    monkeypatch.setattr(pace, "Pace", lambda *, on_loop: threads.append(on_loop) or Pace(on_loop=on_loop))
    asked = ("Observation?code=paced&_include=Observation:subject", f"Patient/{patient}/$everything",
             f"Patient?_id={patient}&_revinclude=Observation:subject")
    on_loop = [[entry["fullUrl"] for entry in hospital.feed.get(one).json()["entry"]] for one in asked]
    assert [len(found) for found in on_loop] == [13, 13, 13]
    assert threads == [True, True, True]
    monkeypatch.setattr(pace, "_STEPS", 1)
    monkeypatch.setattr(pace, bound, -1 if bound == "INLINE_S" else 3)
    assert [[entry["fullUrl"] for entry in hospital.feed.get(one).json()["entry"]] for one in asked] == on_loop
    nothing_parsed = bound == "INLINE_BYTES"  # by _revinclude
    assert threads[3:] == [True, False, True, False, True, *([] if nothing_parsed else [False])]


def test_a_long_page_is_made_off_the_event_loop(hospital_with: Callable[..., Hospital],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that takes too long for the event loop is asked again in a thread, or refused there."""
    hospital = hospital_with()
    for _ in range(30):
        hospital.feed.post("Observation", observation(None, code="long"))
    monkeypatch.setattr("gateway.records.pace._STEPS", 50)
    monkeypatch.setattr("gateway.records.pace.INLINE_S", -1.0)
    assert len(hospital.feed.ids("Observation?code=long&_count=30")) == 30
    monkeypatch.setattr("gateway.records.pace.STATEMENTS_S", -1.0)
    answer = hospital.feed.get("Observation?code=long&_count=30")
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "too-costly")
    monkeypatch.undo()
    assert len(hospital.feed.ids("Observation?code=long&_count=30")) == 30
