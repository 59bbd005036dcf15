"""create, read, vread, update, delete and history over HTTP. https://hl7.org/fhir/R4/http.html"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journeys.hospital import Client, Hospital, next_link, observation, places

DECIMALS = ("1.10", "0.0100", "1.0E-22", "100", "-0.0", "1e2", "0.1000000000000000055511151231257827", "-0")
decimals = st.from_regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][+-]?[1-9]?[0-9])?", fullmatch=True)


def value_text(body: bytes) -> str:
    return body.decode().partition('"valueQuantity":{"value":')[2].partition(",")[0]


def test_create_answers_201_with_the_place_the_version_and_the_resource(hospital: Hospital) -> None:
    answer = hospital.feed.post("Patient", {"resourceType": "Patient", "id": "mine", "birthDate": "1970-02-03"})
    made = answer.json()
    assert answer.status_code == 201
    assert made["id"] != "mine"
    assert made["meta"]["versionId"] == "1"
    assert answer.headers["etag"] == 'W/"1"'
    assert answer.headers["location"] == f"{hospital.base}/Patient/{made['id']}/_history/1"
    assert answer.headers["last-modified"].endswith("GMT")
    assert answer.headers["content-type"] == "application/fhir+json; charset=utf-8"


def test_what_was_acknowledged_is_what_is_read(hospital: Hospital) -> None:
    written = hospital.feed.post("Observation", observation(hospital.new_patient()))
    place = f"Observation/{written.json()['id']}"
    assert hospital.feed.get(place).content == written.content
    assert hospital.feed.get(f"{place}/_history/1").content == written.content
    assert hospital.feed.get(place).headers["etag"] == 'W/"1"'
    head = hospital.feed.request("HEAD", place)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", 'W/"1"')
    assert int(head.headers["content-length"]) == len(written.content)


@pytest.mark.parametrize("text", DECIMALS)
def test_a_decimal_keeps_its_text_through_every_door(hospital: Hospital, text: str) -> None:
    patient = hospital.new_patient()
    written = hospital.feed.post("Observation", observation(patient, text))
    assert written.status_code == 201, written.text
    place = f"Observation/{written.json()['id']}"
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [{"resource": "@", "request": {
        "method": "POST", "url": "Observation"}}]}
    hospital.feed.post("", json.dumps(bundle).encode().replace(b'"@"', observation(patient, text, code="2")))
    for url in (place, f"{place}/_history/1", f"{place}/_history", f"Observation?patient={patient}&code=8867-4",
                f"Observation?patient={patient}&code=2"):
        assert value_text(hospital.feed.get(url).content) == text
    updated = observation(patient, text, id=place.partition("/")[2], note=[{"text": "again"}])
    assert value_text(hospital.feed.put(place, updated).content) == text


@settings(max_examples=30, deadline=None)
@given(text=decimals)
def test_any_decimal_keeps_its_text(hospital: Hospital, text: str) -> None:
    written = hospital.feed.post("Observation", observation(None, text))
    assert written.status_code == 201, written.text
    assert value_text(hospital.feed.get(f"Observation/{written.json()['id']}").content) == text


def test_conditional_read_answers_304_without_a_body(hospital: Hospital) -> None:
    place = f"Patient/{hospital.new_patient()}"
    answer = hospital.feed.get(place, If_None_Match='W/"1"')
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", 'W/"1"')
    assert hospital.feed.get(place, If_None_Match='W/"2"').status_code == 200


def test_update_makes_the_next_version_and_keeps_the_last(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male")
    answer = hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "gender": "female"})
    assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"2"')
    assert hospital.feed.get(f"Patient/{id_}").json()["gender"] == "female"
    assert hospital.feed.get(f"Patient/{id_}/_history/1").json()["gender"] == "male"
    assert hospital.feed.get(f"Patient/{id_}/_history/3").status_code == 404


@pytest.mark.parametrize("text", ["1.10", "0.0100", "7"])
def test_an_unchanged_update_makes_no_version(hospital: Hospital, text: str) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient, text)).json()["id"]
    before = hospital.stored()
    answer = hospital.feed.put(f"Observation/{id_}", observation(patient, text, id=id_))
    assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"1"')
    own = hospital.feed.get(f"Observation/{id_}").content
    assert hospital.feed.put(f"Observation/{id_}", own).headers["etag"] == 'W/"1"'
    assert hospital.stored() == before


def test_a_decimal_written_with_other_digits_is_a_change(hospital: Hospital) -> None:
    id_ = hospital.feed.post("Observation", observation(None, "1.10")).json()["id"]
    answer = hospital.feed.put(f"Observation/{id_}", observation(None, "1.1", id=id_))
    assert answer.headers["etag"] == 'W/"2"'


def test_if_match_guards_an_update_and_a_deletion(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    resource = {"resourceType": "Patient", "id": id_, "active": True}
    assert hospital.feed.put(f"Patient/{id_}", resource, If_Match='W/"7"').status_code == 412
    assert hospital.feed.put(f"Patient/{id_}", resource, If_Match='"1"').status_code == 200
    assert hospital.feed.put(f"Patient/{id_}", {**resource, "active": False}, If_Match='W/"1"').status_code == 412
    assert hospital.feed.put(f"Patient/{id_}", {**resource, "active": False}, If_Match="*").status_code == 200
    assert hospital.feed.delete(f"Patient/{id_}", If_Match='W/"1"').status_code == 412
    assert hospital.feed.delete(f"Patient/{id_}", If_Match='W/"3"').status_code == 204
    assert hospital.feed.put("Patient/nobody-1", {**resource, "id": "nobody-1"}, If_Match="*").status_code == 412
    assert hospital.feed.put("Patient/nobody-1", {**resource, "id": "nobody-1"}, If_Match='W/"1"').status_code == 412


def test_if_none_match_star_creates_but_never_replaces(hospital: Hospital) -> None:
    resource = {"resourceType": "Patient", "id": "none-match-1"}
    assert hospital.feed.put("Patient/none-match-1", resource, If_None_Match="*").status_code == 201
    again = hospital.feed.put("Patient/none-match-1", {**resource, "active": True}, If_None_Match="*")
    assert again.status_code == 412
    assert hospital.feed.get("Patient/none-match-1").headers["etag"] == 'W/"1"'


def test_update_as_create_is_a_setting(hospital: Hospital, hospital_with: Callable[..., Hospital]) -> None:
    resource = {"resourceType": "Patient", "id": "given-1"}
    answer = hospital.feed.put("Patient/given-1", resource)
    assert (answer.status_code, answer.headers["etag"]) == (201, 'W/"1"')
    strict = hospital_with(update_creates="false")
    assert {one["updateCreate"] for one in strict.feed.get("metadata").json()["rest"][0]["resource"]} == {False}
    assert {one["updateCreate"] for one in hospital.feed.get("metadata").json()["rest"][0]["resource"]} == {True}
    before = strict.stored()
    answer = strict.feed.put("Patient/given-1", resource)
    assert answer.status_code == 405
    assert strict.stored() == before
    assert strict.feed.get("Patient/given-1").status_code == 404


def test_a_deleted_resource_is_gone_and_its_past_is_not(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="other")
    answer = hospital.feed.delete(f"Patient/{id_}")
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (204, b"", 'W/"2"')
    gone = hospital.feed.get(f"Patient/{id_}")
    assert (gone.status_code, gone.headers["etag"]) == (410, 'W/"2"')
    assert places(gone) == []
    assert hospital.feed.get(f"Patient/{id_}/_history/2").status_code == 410
    assert hospital.feed.get(f"Patient/{id_}/_history/1").json()["gender"] == "other"
    assert hospital.feed.ids(f"Patient?_id={id_}") == []
    assert hospital.feed.delete(f"Patient/{id_}").status_code == 204
    back = hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_})
    assert (back.status_code, back.headers["etag"]) == (201, 'W/"3"')
    assert hospital.feed.ids(f"Patient?_id={id_}") == [id_]


def test_deleting_what_never_was_is_no_error(hospital: Hospital) -> None:
    """http.html#delete: 204 if the resource does not exist at all."""
    before = hospital.stored()
    assert hospital.feed.delete("Patient/never-was").status_code == 204
    assert hospital.stored() == before


def test_history_gives_every_version_newest_first(hospital: Hospital) -> None:
    id_ = hospital.new_patient(gender="male")
    hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "gender": "female"})
    hospital.feed.delete(f"Patient/{id_}")
    bundle = hospital.feed.get(f"Patient/{id_}/_history").json()
    assert (bundle["type"], bundle["total"]) == ("history", 3)
    assert [(one["request"]["method"], one["request"]["url"], one["response"]["status"], one["response"]["etag"])
            for one in bundle["entry"]] == [
        ("DELETE", f"Patient/{id_}", "204", 'W/"3"'), ("PUT", f"Patient/{id_}", "200", 'W/"2"'),
        ("POST", "Patient", "201", 'W/"1"')]
    assert [one["resource"]["gender"] for one in bundle["entry"][1:]] == ["female", "male"]
    assert "resource" not in bundle["entry"][0]


def history_versions(client: Client, url: str) -> list[list[str]]:
    pages, following = [], url
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200, answer.text
        pages.append([one["response"]["etag"][3:-1] for one in answer.json().get("entry", ())])
        following = next_link(answer)
    return pages


def test_history_pages_hold_every_version_once_while_others_write(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    for number in range(6):
        hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": number})
    first = hospital.feed.get(f"Patient/{id_}/_history?_count=3")
    hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": 9})
    following = next_link(first)
    assert following is not None
    assert history_versions(hospital.feed, following) == [["4", "3", "2"], ["1"]]
    assert "total" not in first.json()


def test_history_counts_are_limits_and_nothing_is_lost_beyond_the_largest(
        hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(max_page="2")
    id_ = hospital.new_patient()
    for number in range(4):
        hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": number})
    assert history_versions(hospital.feed, f"Patient/{id_}/_history?_count=50") == [["5", "4"], ["3", "2"], ["1"]]
    assert hospital.feed.get(f"Patient/{id_}/_history?_count=0").status_code == 200


def test_prefer_return_minimal_leaves_the_body_out(hospital: Hospital) -> None:
    answer = hospital.feed.post("Patient", {"resourceType": "Patient"}, Prefer="return=minimal")
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer.headers["location"].startswith(f"{hospital.base}/Patient/")


def test_of_many_updates_with_one_if_match_one_wins(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    answers = hospital.together(*(hospital.feed.send(
        "PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": number},
        If_Match='W/"1"') for number in range(12)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 11}
    assert hospital.feed.get(f"Patient/{id_}").headers["etag"] == 'W/"2"'


def test_updates_at_the_same_time_each_get_a_version_of_their_own(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    answers = hospital.together(*(hospital.feed.send(
        "PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": number})
        for number in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["meta"]["versionId"] for answer in answers) == ["2", "3", "4", "5", "6", "7"]


def test_creates_with_one_id_make_it_once(hospital: Hospital) -> None:
    answers = hospital.together(*(hospital.feed.send(
        "PUT", "Patient/race-1", {"resourceType": "Patient", "id": "race-1", "multipleBirthInteger": number},
        If_None_Match="*") for number in range(8)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 412: 7}


def test_if_none_exist_creates_once_however_many_ask(hospital: Hospital) -> None:
    resource = {"resourceType": "Patient", "identifier": [{"system": "urn:race", "value": "1"}]}
    answers = hospital.together(*(hospital.feed.send(
        "POST", "Patient", resource, If_None_Exist="identifier=urn:race|1") for _ in range(12)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 11}
    assert hospital.feed.total("Patient?identifier=urn:race|1&_summary=count") == 1
    assert {answer.headers["location"] for answer in answers} == {answers[0].headers["location"]}


def test_if_none_exist_with_several_matches_is_refused(hospital: Hospital) -> None:
    for _ in range(2):
        hospital.new_patient(identifier=[{"system": "urn:twice", "value": "1"}])
    before = hospital.stored()
    answer = hospital.feed.post("Patient", {"resourceType": "Patient"}, If_None_Exist="identifier=urn:twice|1")
    assert answer.status_code == 412
    assert hospital.stored() == before


def test_if_none_exist_keeps_decimals_and_needs_no_right_to_read(hospital: Hospital) -> None:
    writer = hospital.client(scope="system/Observation.cs")
    answer = writer.post("Observation", observation(None, "5.50", code="once-1"), If_None_Exist="code=once-1")
    assert answer.status_code == 201, answer.text
    assert value_text(answer.content) == "5.50"
    again = writer.post("Observation", observation(None, "5.50", code="once-1"), If_None_Exist="code=once-1")
    assert again.status_code == 200, again.text
    assert again.headers["location"] == answer.headers["location"]


def test_metadata_is_told_to_anyone(hospital: Hospital) -> None:
    anyone = Client(hospital, None)
    statement = anyone.get("metadata").json()
    assert (statement["resourceType"], statement["fhirVersion"]) == ("CapabilityStatement", "4.0.1")
    types = {one["type"]: one for one in statement["rest"][0]["resource"]}
    assert len(types) == 146 or len(types) == 148
    offered = {one["code"] for one in types["Observation"]["interaction"]}
    assert offered == {"create", "read", "vread", "update", "patch", "delete", "history-instance", "history-type",
                       "search-type"}
    assert {one["code"] for one in statement["rest"][0]["interaction"]} >= {"batch", "transaction", "history-system"}
    assert types["Observation"]["conditionalUpdate"] is True
    assert types["Observation"]["conditionalDelete"] == "single"
    assert "enforced" in types["Observation"]["referencePolicy"]
    assert "application/json-patch+json" in statement["patchFormat"]
    assert anyone.get("Patient/1").status_code == 401


def test_a_document_keeps_the_links_between_its_entries(hospital: Hospital) -> None:
    """Inside a stored Bundle a urn names an entry: https://hl7.org/fhir/R4/bundle.html#references"""
    composition, author, stranger = (f"urn:uuid:{uuid.uuid4()}" for _ in range(3))
    document: dict[str, Any] = {
        "resourceType": "Bundle", "type": "document", "timestamp": "2024-03-01T10:00:00Z",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{uuid.uuid4()}"}, "entry": [
            {"fullUrl": composition, "resource": {
                "resourceType": "Composition", "status": "final", "type": {"text": "note"}, "date": "2024-03-01",
                "title": "Note", "author": [{"reference": author}]}},
            {"fullUrl": author, "resource": {"resourceType": "Practitioner", "active": True}}]}
    answer = hospital.feed.post("Bundle", document)
    assert answer.status_code == 201, answer.text
    assert answer.json()["entry"] == document["entry"]
    document["entry"][0]["resource"]["author"] = [{"reference": stranger}]
    answer = hospital.feed.post("Bundle", document)
    assert answer.status_code == 422
    assert places(answer) == ["Bundle.entry[0].resource.author[0].reference"]
