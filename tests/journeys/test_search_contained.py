"""``_contained``: what other resources contain is found where it is asked for, by who may see the container alone.

https://hl7.org/fhir/R4/search.html#contained
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.fhir.search_results import LATER
from gateway.store import journal, search_parameters
from tests.journeys.hospital import Client, Hospital, next_link, places
from tests.journeys.test_search_parameters import carry_out_jobs

RX = "urn:rx"


def medication(id_: str, code: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Medication", "id": id_, "code": {"coding": [{"system": RX, "code": code}]}, **elements}


def request(patient: str, *inside: dict[str, Any], **elements: Any) -> dict[str, Any]:
    return {"resourceType": "MedicationRequest", "status": "active", "intent": "order",
            "subject": {"reference": f"Patient/{patient}"}, "contained": list(inside),
            "medicationReference": {"reference": f"#{inside[0]['id']}"},
            "supportingInformation": [{"reference": f"#{one['id']}"} for one in inside], **elements}


@pytest.fixture(scope="module")
def ward(hospital: Hospital) -> dict[str, str]:
    ids = {"ana": hospital.new_patient(), "bob": hospital.new_patient()}
    ids["maker"] = hospital.new({"resourceType": "Organization", "name": "Makers of pills"})
    ids["alone"] = hospital.new(medication("x", "pill"))
    ids["one"] = hospital.new(request(ids["ana"], medication("m1", "pill", manufacturer={
        "reference": f"Organization/{ids['maker']}"}), medication("m2", "drops", status="active")))
    ids["two"] = hospital.new(request(ids["bob"], medication("m1", "pill", status="active"),
                                      medication("m2", "pill", form={"text": "flat"})))
    ids["given"] = hospital.new({"resourceType": "MedicationAdministration", "status": "completed",
                                 "subject": {"reference": f"Patient/{ids['bob']}"}, "effectiveDateTime": "2024-01-01",
                                 "medicationReference": {"reference": "#g"}, "contained": [medication("g", "pill")]})
    return ids


def told(client: Client, ward: dict[str, str], url: str) -> list[str]:
    """Names of what came, a contained one with its id behind it."""
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    names = {id_: name for name, id_ in ward.items()}
    found = []
    for entry in answer.json().get("entry", ()):
        place, _, fragment = entry["fullUrl"].removeprefix(client.hospital.base + "/").partition("#")
        assert entry["search"] == {"mode": "match"}
        assert entry["resource"]["resourceType"] == ("Medication" if fragment else place.partition("/")[0])
        assert entry["resource"]["id"] == (fragment or place.partition("/")[2])
        found.append(names[place.partition("/")[2]] + ("#" + fragment if fragment else ""))
    return found


@pytest.mark.parametrize(("query", "found"), [
    ("", "alone"), ("&_contained=false", "alone"), ("&_contained=false&_containedType=contained", "alone"),
    ("&_contained=true", "one two given"), ("&_contained=both", "alone one two given"),
    ("&_contained=both&_containedType=container", "alone one two given"),
    ("&_contained=true&_containedType=contained", "one#m1 two#m1 two#m2 given#g"),
    ("&_contained=both&_containedType=contained", "alone one#m1 two#m1 two#m2 given#g")])
def test_what_is_contained_is_found_where_it_is_asked_for(hospital: Hospital, ward: dict[str, str], query: str,
                                                          found: str) -> None:
    assert told(hospital.feed, ward, f"Medication?code={RX}|pill{query}") == found.split()


@pytest.mark.parametrize(("query", "found"), [
    # Every criterion is met by the same contained resource.
    ("code=pill&status=active", "two#m1"), ("code=drops&status=active", "one#m2"),
    ("code:not=pill", "one#m2"), ("_id=m2", "one#m2 two#m2"),
    ("status:missing=true&code=pill", "one#m1 two#m2 given#g"),
    ("manufacturer.name=makers", "one#m1"), ("_filter=code eq pill and status eq active", "two#m1"),
    ("_lastUpdated=ge2000", ""), ("_content=flat", "two#m2"), ("code=nosuch", "")])
def test_criteria_are_those_of_one_contained_resource(hospital: Hospital, ward: dict[str, str], query: str,
                                                      found: str) -> None:
    url = f"Medication?{query}&_contained=true&_containedType=contained"
    assert told(hospital.feed, ward, url) == found.split()
    assert hospital.feed.total(url) == len(found.split())
    assert hospital.feed.get(url + "&_summary=count").json()["total"] == len(found.split())


def test_a_container_of_its_own_type_is_found_by_both(hospital: Hospital) -> None:
    def seen(code: str, *inside: dict[str, Any]) -> dict[str, Any]:
        return {"resourceType": "Observation", "status": "final", "code": {"coding": [{"system": RX, "code": code}]},
                **({"contained": [{**one, "id": f"c{place}"} for place, one in enumerate(inside)],
                    "hasMember": [{"reference": f"#c{place}"} for place in range(len(inside))]} if inside else {})}

    plain, holder = hospital.new(seen("self")), hospital.new(seen("self", seen("self"), seen("other")))
    outer = hospital.new(seen("outer", seen("self")))
    ward = {"plain": plain, "holder": holder, "outer": outer}
    url = f"Observation?code={RX}|self"
    assert told(hospital.feed, ward, url) == ["plain", "holder"]
    assert told(hospital.feed, ward, url + "&_contained=true") == ["holder", "outer"]
    assert told(hospital.feed, ward, url + "&_contained=both") == ["plain", "holder", "outer"]
    answer = hospital.feed.get(url + "&_contained=both&_containedType=contained").json()
    assert [entry["fullUrl"].rpartition("/")[2] for entry in answer["entry"]] == [
        plain, holder, f"{holder}#c0", f"{outer}#c0"]
    assert answer["total"] == 4


def test_pages_hold_whole_containers_and_stay_at_their_snapshot(hospital: Hospital, ward: dict[str, str]) -> None:
    url: str | None = f"Medication?code={RX}|pill&_contained=both&_containedType=contained&_count=2"
    found = []
    while url is not None:
        answer = hospital.feed.get(url)
        found.append([entry["fullUrl"].rpartition("/")[2].partition("#")[2] for entry in answer.json()["entry"]])
        url = next_link(answer)
    assert found == [["", "m1"], ["m1", "m2"], ["g"]]


def test_more_is_opened_than_a_statement_takes_variables(hospital: Hospital) -> None:
    """SQLite takes 32,766 of them: what opened resources answered is one."""
    patient = hospital.new_patient()
    for _ in range(9):
        hospital.new({"resourceType": "Observation", "status": "final", "code": {"text": "opened"},
                      "subject": {"reference": f"Patient/{patient}"}, "contained": [
                          {"resourceType": "Observation", "id": f"c{place}", "status": "final", "code": {"text": "x"},
                           "valueString": "strawberries"} for place in range(400)],
                      "hasMember": [{"reference": f"#c{place}"} for place in range(400)]})
    asked = "&".join(f"value-string:contains={'strawberries'[-1 - number:]}" for number in range(10))
    answer = hospital.feed.get(f"Observation?{asked}&_contained=true&_containedType=contained&_summary=count")
    assert (answer.status_code, answer.json().get("total")) == (200, 3_600), answer.text


def test_what_came_with_a_version_goes_with_it(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.new(request(patient, medication("m", "salve")))
    url = f"Medication?code={RX}|salve&_contained=true"
    assert hospital.feed.ids(url) == [id_]
    assert hospital.feed.put(f"MedicationRequest/{id_}", {**request(patient, medication("m", "paste")),
                                                          "id": id_}).status_code == 200
    assert hospital.feed.ids(url) == []
    assert hospital.feed.ids(url.replace("salve", "paste")) == [id_]
    assert hospital.feed.delete(f"MedicationRequest/{id_}").status_code in (200, 204)
    assert hospital.feed.ids(url.replace("salve", "paste")) == []


def test_who_may_not_see_the_container_learns_nothing_of_what_it_contains(hospital: Hospital,
                                                                          ward: dict[str, str]) -> None:
    """Invariant 4: the bound and the decision are the container's."""
    doctor = hospital.clinician("dr-contained")
    hospital.grant(ward["ana"], "Practitioner/dr-contained", types=frozenset({"MedicationRequest"}))
    url = f"Medication?code={RX}|pill&_contained=true"
    assert told(doctor, ward, url) == ["one"]
    assert told(doctor, ward, url + "&_containedType=contained") == ["one#m1"]
    assert doctor.total(url) == 1
    assert doctor.get(url + "&_containedType=contained&_summary=count").json()["total"] == 1
    narrow = hospital.clinician("dr-contained", scope="user/Medication.rs")
    assert told(narrow, ward, url) == []


def test_a_hidden_container_of_another_type_changes_no_answer(hospital_with: Callable[..., Hospital]) -> None:
    """Invariant 4: which types contain any is known of all that is stored, whoever may see it."""
    own = hospital_with()
    ana, bob = own.new_patient(), own.new_patient()
    for _ in range(3):
        own.new(request(ana, medication("m", "balm"), medication("n", "balm")))
    own.grant(ana, "Practitioner/dr-none")
    doctor = own.clinician("dr-none")
    urls = [f"Medication?code={RX}|balm&_contained={contained}&_containedType={kind}{sort}"
            for contained in ("true", "both") for kind in ("container", "contained")
            for sort in ("", "&_sort=_id", "&_sort=-_lastUpdated", "&_sort=_lastUpdated,_id", "&_summary=count")]

    def answers() -> list[tuple[int, object, list[str]]]:
        got = [doctor.get(url) for url in urls]
        return [(one.status_code, one.json().get("total"), [entry["fullUrl"] for entry in one.json().get("entry", ())])
                for one in got]
    before = answers()
    for type_ in ("MedicationAdministration", "MedicationStatement"):
        own.new({"resourceType": type_, "status": "completed", "subject": {"reference": f"Patient/{bob}"},
                 "effectiveDateTime": "2024-01-01", "medicationReference": {"reference": "#g"},
                 "contained": [medication("g", "balm")]})
    assert answers() == before


@pytest.mark.parametrize(("url", "place"), [
    ("Medication?_contained=true&_sort=status", "_sort"),
    ("Medication?_contained=true&_sort=_id,_lastUpdated", "_sort"),
    ("Medication?_contained=true&_containedType=contained&_include=Medication:manufacturer", "_containedType"),
    ("?_type=Medication,Substance&_contained=true", "_contained"), ("?_contained=both", "_contained"),
    ("AuditEvent?_contained=true", "_contained"),
    ("Patient?_contained=true&identifier=urn:fhir-gateway:wallet|0x" + "1" * 40, "identifier")])
def test_what_cannot_be_asked_of_contained_resources_is_refused_by_name(hospital: Hospital, url: str,
                                                                        place: str) -> None:
    answer = hospital.feed.get(url)
    assert answer.status_code == 400, answer.text
    assert places(answer) == [f"http.{place}"]


def test_a_condition_asks_nothing_of_contained_resources(hospital: Hospital) -> None:
    answer = hospital.feed.post("Medication", medication("n", "new"), **{"If-None-Exist": "code=pill&_contained=true"})
    assert answer.status_code in (400, 412), answer.text


def test_an_index_made_before_it_held_what_is_contained_refuses_until_a_pass(
        hospital_with: Callable[..., Hospital]) -> None:
    """What the index holds in part is not asked of it."""
    own = hospital_with()
    id_ = own.new(request(own.new_patient(), medication("m", "salve")))
    seqs = [seq for (seq,) in own.database.reader.execute("SELECT seq FROM version")]
    own.database.transact(lambda tx: journal.drop_rows(tx, [one for seq in seqs for one in journal.places_of(tx, seq)]))
    own.database.transact(lambda tx: search_parameters.settle_words(tx, frozenset({"_text"})))
    url = f"Medication?code={RX}|salve&_contained=true"
    answer = own.feed.get(url)
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (400, "not-supported")
    assert own.feed.get(f"MedicationRequest?medication.code={RX}|salve").json()["total"] == 1
    assert own.feed.post("$reindex", None).status_code == 202
    carry_out_jobs(own)
    assert LATER in search_parameters.words(own.database.reader)
    assert own.feed.ids(url) == [id_]
