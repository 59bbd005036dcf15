"""Search over HTTP: every kind of parameter, order, counts and pages. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.store.sql import now_ms
from tests.journeys.hospital import UCUM, Client, Hospital, next_link, observation, places

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def ward(hospital: Hospital) -> dict[str, str]:
    """A small ward: what the parameters are asked about. Names to logical ids."""
    ids = {}
    ids["ana"] = hospital.new_patient(
        identifier=[{"system": "urn:ward", "value": "A1"}, {"value": "nosystem"}], gender="female", active=True,
        name=[{"family": "Ångström-Ward", "given": ["Ana", "María"]}], birthDate="1970-02-03",
        telecom=[{"system": "phone", "value": "555"}], address=[{"city": "Wardville", "line": ["1 Main Street"]}])
    ids["bob"] = hospital.new_patient(
        identifier=[{"system": "urn:ward", "value": "B2"}], gender="male", active=False, birthDate="1970-11",
        name=[{"family": "Brown", "given": ["Bob"], "text": "Bob of the Wardens"}],
        link=[{"type": "seealso", "other": {"reference": f"Patient/{ids['ana']}"}}])
    ids["org"] = hospital.new({"resourceType": "Organization", "name": "Ward Clinic"})
    for name, value, when, status in (("o1", "1.10", "2024-03-01", "final"),
    ("o2", "99.95", "2024-03-02T10:00:00Z", "final"),
                                      ("o3", "100", "2023", "amended")):
        ids[name] = hospital.feed.post("Observation", observation(
            ids["ana"], value, code="ward", when=when, status=status,
            performer=[{"reference": f"Organization/{ids['org']}"}], component=[
                {"code": {"coding": [{"code": f"part-{name}"}]}, "valueQuantity": {
                    "value": 5, "unit": "drops" if name == "o1" else "puffs"}}])).json()["id"]
    ids["o4"] = hospital.new({
        "resourceType": "Observation", "status": "final", "code": {"coding": [{"code": "ward", "display": "x"}]},
        "subject": {"reference": f"{hospital.base}/Patient/{ids['bob']}"},
        "effectivePeriod": {"start": "2024-02-28T23:00:00Z", "end": "2024-03-01T01:00:00Z"},
        "valueCodeableConcept": {"coding": [{"system": "urn:v", "code": "yes"}]}})
    ids["risk"] = hospital.new({
        "resourceType": "RiskAssessment", "status": "final", "subject": {"reference": f"Patient/{ids['ana']}"},
        "prediction": [{"probabilityDecimal": 0.85}]})
    ids["vs"] = hospital.new({"resourceType": "ValueSet", "status": "active", "url": "http://ward.example/vs",
                              "version": "2"})
    return ids


PATIENTS = [
    # token
    ("identifier=urn:ward|A1", "ana"), ("identifier=A1", "ana"), ("identifier=urn:ward|", "ana bob"),
    ("identifier=|nosystem", "ana"), ("identifier=|A1", ""), ("identifier=urn:ward|A1,urn:ward|B2", "ana bob"),
    ("gender=female&identifier=urn:ward|", "ana"), ("gender:not=female&identifier=urn:ward|", "bob"),
    ("active=true&identifier=urn:ward|", "ana"), ("telecom=555&identifier=urn:ward|", "ana"),
    # string
    ("family=angstrom", "ana"), ("family=ANGSTR", "ana"), ("name=warden&identifier=urn:ward|", "bob"),
    ("name=maria&identifier=urn:ward|", "ana"), ("family:exact=Ångström-Ward", "ana"),
    ("family:exact=angstrom-ward", ""),
    ("given=ana,bob&identifier=urn:ward|", "ana bob"), ("address=wardv", "ana"), ("address-city=wardville", "ana"),
    ("family=ngstrom", ""), ("phonetic=angstrom", "ana"),
    # date, as a ladder
    ("birthdate=1970&identifier=urn:ward|", "ana bob"), ("birthdate=1970-02-03&identifier=urn:ward|", "ana"),
    ("birthdate=gt1970-06&identifier=urn:ward|", "bob"), ("birthdate=le1970-02-03&identifier=urn:ward|", "ana"),
    ("birthdate=ne1970-02-03&identifier=urn:ward|", "bob"), ("birthdate=lt1970&identifier=urn:ward|", ""),
    # reference
    ("link=Patient/{ana}", "bob"), ("link={ana}", "bob"), ("link:Patient={ana}", "bob"),
    ("link={base}/Patient/{ana}", "bob"), ("link=Patient/nobody", ""),
    # by version
    ("_id={ana}", "ana"), ("_id={ana},{bob}", "ana bob"), ("_id={ana}&_id={bob}", ""),
    ("_lastUpdated=ge2020&_id={ana}", "ana"), ("_lastUpdated=lt2020&_id={ana}", "")]
OBSERVATIONS = [
    # quantity
    ("value-quantity=1.10", "o1"), ("value-quantity=1.1", "o1"), ("value-quantity=1.15", ""),
    ("value-quantity=1e2", "o2 o3"), ("value-quantity=100.00", "o3"), ("value-quantity=gt99.95", "o3"),
    ("value-quantity=ge99.95", "o2 o3"), ("value-quantity=lt50", "o1"), ("value-quantity=ne100.00", "o1 o2"),
    ("value-quantity=ap100", "o2 o3"), (f"value-quantity=1.10|{UCUM}|/min", "o1"), ("value-quantity=1.10||/min", "o1"),
    ("value-quantity=1.10||bpm", "o1"), ("value-quantity=1.10|urn:other|/min", ""),
    ("value-quantity=sa50,lt2", "o1 o2 o3"),
    # date
    ("date=2024-03-01", "o1"), ("date=2024", "o1 o2 o4"), ("date=ge2024-03-01", "o1 o2"),
    ("date=lt2024-03-01", "o3 o4"),
    ("date=sa2024-03-01", "o2"), ("date=eb2024", "o3"), ("date=ap2024-03-01T00:30:00Z", "o1 o2 o3 o4"),
    ("date=2024-03-02T10:00:00Z", "o2"), ("date=2024-03-02T12:00:00%2B02:00", "o2"), ("date=ne2024", "o3"),
    # reference
    ("subject=Patient/{ana}", "o1 o2 o3"), ("patient={bob}", "o4"), ("subject:Patient={ana}&date=2023", "o3"),
    ("performer=Organization/{org}", "o1 o2 o3"), ("performer={org}&patient={bob}", ""),
    # token and composite
    ("status=amended", "o3"), ("status:not=final", "o3"), ("value-concept=urn:v|yes", "o4"),
    ("component-code=part-o2", "o2"),
    ("code-value-quantity=ward$gt50", "o2 o3"), ("code-value-quantity=http://loinc.org|ward$1.10", "o1"),
    ("code-value-concept=ward$yes", "o4"), ("code-value-quantity=other$gt50", ""),
    ("component-code-value-quantity=part-o1$5", "o1"), ("component-code-value-quantity=part-o1$6", ""),
    ("combo-code=part-o3", "o3"), ("component-value-quantity=5||drops", "o1"),
    ("component-value-quantity=5||puffs", "o2 o3"),
    ("combo-value-quantity=5||puffs", "o2 o3")]


def asked(client: Client, ward: dict[str, str], type_: str, query: str) -> set[str]:
    names = {id_: name for name, id_ in ward.items()}
    query = query.format(base=client.hospital.base, **ward)
    return {names.get(id_, id_) for id_ in client.all_ids(f"{type_}?{query}")}


@pytest.mark.parametrize(("query", "expected"), PATIENTS)
def test_patients_are_found_by_every_kind_of_parameter(hospital: Hospital, ward: dict[str, str], query: str,
                                                       expected: str) -> None:
    found = asked(hospital.feed, ward, "Patient", query)
    assert found == set(expected.split())


@pytest.mark.parametrize(("query", "expected"), OBSERVATIONS)
def test_observations_are_found_by_every_kind_of_parameter(hospital: Hospital, ward: dict[str, str], query: str,
                                                           expected: str) -> None:
    assert asked(hospital.feed, ward, "Observation", f"code=ward&{query}") == set(expected.split())


@pytest.mark.parametrize(("type_", "query", "expected"), [
    ("RiskAssessment", "probability=0.85", "risk"), ("RiskAssessment", "probability=gt0.8", "risk"),
    ("RiskAssessment", "probability=lt0.8&subject=Patient/{ana}", ""),
    ("ValueSet", "url=http://ward.example/vs", "vs"), ("ValueSet", "url=http://ward.example/v", "")])
def test_numbers_and_uris_are_found(hospital: Hospital, ward: dict[str, str], type_: str, query: str,
                                    expected: str) -> None:
    assert asked(hospital.feed, ward, type_, query) == set(expected.split())


def test_post_search_finds_what_get_finds(hospital: Hospital, ward: dict[str, str]) -> None:
    answer = hospital.feed.post("Patient/_search?gender=female", b"identifier=urn:ward%7C", Content_Type=FORM)
    assert [entry["resource"]["id"] for entry in answer.json()["entry"]] == [ward["ana"]]


def test_a_searchset_says_what_it_is(hospital: Hospital, ward: dict[str, str]) -> None:
    bundle = hospital.feed.get(f"Patient?identifier=urn:ward{quote('|')}A1&_count=5").json()
    assert (bundle["type"], bundle["total"]) == ("searchset", 1)
    assert bundle["link"] == [{"relation": "self", "url": f"{hospital.base}/Patient?identifier=urn:ward|A1&_count=5"}]
    [entry] = bundle["entry"]
    assert entry["fullUrl"] == f"{hospital.base}/Patient/{ward['ana']}"
    assert entry["search"] == {"mode": "match"}
    assert hospital.feed.get("Patient?identifier=nowhere").json()["total"] == 0
    assert "entry" not in hospital.feed.get("Patient?identifier=nowhere").json()


@pytest.mark.parametrize("query", ["code=ward&_summary=count", "code=ward&_count=0"])
def test_a_count_is_told_without_resources(hospital: Hospital, ward: dict[str, str], query: str) -> None:
    bundle = hospital.feed.get(f"Observation?{query}").json()
    assert bundle["total"] == 4
    assert "entry" not in bundle


@pytest.mark.parametrize(("sort", "expected"), [
    ("date", "o3 o4 o1 o2"), ("-date", "o2 o1 o4 o3"), ("value-quantity", "o1 o2 o3 o4"),
    ("-value-quantity", "o3 o2 o1 o4"),
    ("_lastUpdated", "o1 o2 o3 o4"), ("-_lastUpdated", "o4 o3 o2 o1"), ("status,-date", "o3 o2 o1 o4"),
    ("-status,date", "o4 o1 o2 o3"), ("subject,value-quantity", None), ("_id", None),
    ("value-quantity,date", "o1 o2 o3 o4")])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_order_asked_is_kept_over_pages(hospital: Hospital, ward: dict[str, str], sort: str, expected: str | None,
                                            count: int) -> None:
    names = {id_: name for name, id_ in ward.items()}
    found = [names[id_] for id_ in hospital.feed.all_ids(f"Observation?code=ward&_sort={sort}&_count={count}")]
    if expected is not None:
        assert found == expected.split()
    elif sort == "_id":
        assert [ward[name] for name in found] == sorted(ward[name] for name in found)
    assert sorted(found) == ["o1", "o2", "o3", "o4"]


@pytest.mark.parametrize("count", [2, 50])
def test_names_are_sorted_by_the_resources_own_values(hospital: Hospital, count: int) -> None:
    names = ["Zoë", "adam", "Çelik", "Brown", "brown"]
    for name in names:
        hospital.new_patient(identifier=[{"system": f"urn:sorted:{count}", "value": name}], name=[{"family": name}])
    nameless = hospital.new_patient(identifier=[{"system": f"urn:sorted:{count}", "value": "none"}], birthDate="1950")

    def families(sort: str) -> list[str]:
        found, following = [], f"Patient?identifier=urn:sorted:{count}|&_sort={sort}&_count={count}"
        while following is not None:
            answer = hospital.feed.get(following)
            found += [entry["resource"].get("name", [{"family": "-"}])[0]["family"] for entry in answer.json()["entry"]]
            following = next_link(answer)
        return found

    assert families("family") == ["adam", "Brown", "brown", "Çelik", "Zoë", "-"]
    assert families("-family") == ["Zoë", "Çelik", "Brown", "brown", "adam", "-"]
    assert families("name,-_lastUpdated") == ["adam", "brown", "Brown", "Çelik", "Zoë", "-"]
    assert families("birthdate") == ["-", *names]
    assert nameless in hospital.feed.ids(f"Patient?identifier=urn:sorted:{count}|&_sort=-birthdate&_count=1")


def test_sorting_too_many_by_a_text_is_too_costly(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        hospital.new({"resourceType": "Organization", "name": "Costly"})
    monkeypatch.setattr("gateway.records.sorting.MOST", 2)
    answer = hospital.feed.get("Organization?name=costly&_sort=name")
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["code"] == "too-costly"
    assert places(answer) == ["http._sort"]


@pytest.mark.parametrize("sort", ["", "&_sort=-_lastUpdated", "&_sort=date", "&_sort=-date", "&_sort=code,date",
                                  "&_sort=date,_id"])
def test_pages_show_the_moment_of_the_first_whatever_is_written_meanwhile(hospital: Hospital, sort: str) -> None:
    code = "snapshot" + str(now_ms())
    ids = [hospital.feed.post("Observation", observation(None, code=code, when=f"2024-01-0{day}")).json()["id"]
           for day in range(1, 8)]
    answer = hospital.feed.get(f"Observation?code={code}&_count=2{sort}")
    seen: list[dict[str, Any]] = []
    step = 0
    while True:
        seen += [entry["resource"] for entry in answer.json().get("entry", ())]
        hospital.feed.delete(f"Observation/{ids[step]}")
        hospital.feed.post("Observation", observation(None, code=code, when=f"2024-01-0{step + 1}"))
        changed = observation(None, code="moved", when="2030-01-01", id=ids[6 - step])
        hospital.feed.put(f"Observation/{ids[6 - step]}", changed)
        step += 1
        link = next_link(answer)
        if link is None:
            break
        answer = hospital.feed.get(link)
        assert answer.status_code == 200, answer.text
        assert "total" not in answer.json()
    assert sorted(one["id"] for one in seen) == sorted(ids)
    assert {one["meta"]["versionId"] for one in seen} == {"1"}


def test_a_page_link_opens_the_same_page_every_time(hospital: Hospital) -> None:
    code = "stateless"
    for _ in range(5):
        hospital.feed.post("Observation", observation(None, code=code))
    link = next_link(hospital.feed.get(f"Observation?code={code}&_count=2"))
    assert link is not None
    again = [hospital.feed.ids(link) for _ in range(3)]
    assert again[0] == again[1] == again[2]
    assert len(again[0]) == 2


def test_an_update_moves_a_resource_between_searches(hospital: Hospital) -> None:
    id_ = hospital.new({"resourceType": "Organization", "name": "Beforehand"})
    hospital.feed.put(f"Organization/{id_}", {"resourceType": "Organization", "id": id_, "name": "Afterwards"})
    assert hospital.feed.ids("Organization?name=beforehand") == []
    assert hospital.feed.ids("Organization?name=afterwards") == [id_]


def test_the_largest_page_is_a_setting(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(max_page="2")
    for _ in range(5):
        hospital.new({"resourceType": "Organization", "name": "Many"})
    assert len(hospital.feed.ids("Organization?name=many&_count=100")) == 2
    assert len(hospital.feed.all_ids("Organization?name=many&_count=100")) == 5


values = st.text(max_size=12) | st.from_regex(
    r"(eq|ne|gt|lt|ge|le|sa|eb|ap|zz)?(\d{1,4}(-\d\d?(-\d\d?)?)?(T\d\d:\d\d)?|\d+\.?\d*(e\d+)?)?([|$,]\w{0,4})*",
    fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([
    "code", "date", "value-quantity", "subject", "patient", "_id", "_lastUpdated", "code-value-quantity", "status:not",
    "_sort", "_count", "_summary", "_page", "component-code-value-quantity", "based-on", "subject:Patient",
        "combo-code",
    "value-string", "value-string:exact", "derived-from", "_tag", "_profile", "_security", "_has:x:y:z", "a.b", ""]),
    value=values, lenient=st.booleans())
def test_no_query_at_all_makes_the_search_door_stumble(hospital: Hospital, name: str, value: str,
    lenient: bool) -> None:
    query = f"{quote(name)}={quote(value)}"
    answer = hospital.feed.get(f"Observation?{query}", Prefer="handling=lenient" if lenient else "")
    assert answer.status_code in (200, 400), (name, value, answer.text)
    assert answer.json()["resourceType"] == ("Bundle" if answer.status_code == 200 else "OperationOutcome")


def test_no_match_in_the_order_of_a_name_is_an_empty_page(hospital: Hospital, ward: dict[str, str]) -> None:
    """Also where there is a match that may not be seen: it must not answer otherwise."""
    assert hospital.feed.ids("Patient?identifier=nobody-has-it&_sort=family") == []
    assert hospital.clinician("dr-blind").ids("Patient?identifier=A1&_sort=family") == []
