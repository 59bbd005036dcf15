"""Conditional update, patch and delete over HTTP. https://hl7.org/fhir/R4/http.html#cond-update"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.hospital import Hospital, places

JSON_PATCH = "application/json-patch+json"
ACTIVE = json.dumps([{"op": "add", "path": "/active", "value": True}]).encode()


def patient(value: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:if", "value": value}], **elements}


def test_an_update_goes_to_the_one_match_or_creates(hospital: Hospital) -> None:
    made = hospital.feed.put("Patient?identifier=urn:if|one", patient("one"))
    assert (made.status_code, made.headers["etag"]) == (201, 'W/"1"'), made.text
    id_ = made.json()["id"]
    again = hospital.feed.put("Patient?identifier=urn:if|one", patient("one", gender="male"))
    assert (again.status_code, again.headers["etag"], again.json()["id"]) == (200, 'W/"2"', id_)
    same = hospital.feed.put("Patient?identifier=urn:if|one", patient("one", gender="male", id=id_))
    assert (same.status_code, same.headers["etag"]) == (200, 'W/"2"')


def test_an_update_with_an_id_of_its_own(hospital: Hospital) -> None:
    """R4: none, id given: update as create; one, another id given: 400."""
    made = hospital.feed.put("Patient?identifier=urn:if|own", patient("own", id="own-1"))
    assert (made.status_code, made.json()["id"]) == (201, "own-1")
    wrong = hospital.feed.put("Patient?identifier=urn:if|own", patient("own", id="own-2"))
    assert wrong.status_code == 400
    assert places(wrong) == ["Patient.id"]
    taken = hospital.feed.put("Patient?identifier=urn:if|none", patient("none", id="own-1"))
    assert taken.status_code == 409


def test_several_matches_refuse_every_conditional_write(hospital: Hospital) -> None:
    for _ in range(2):
        hospital.new(patient("two"))
    before, url = hospital.stored(), "Patient?identifier=urn:if|two"
    for answer in (hospital.feed.put(url, patient("two")), hospital.feed.delete(url),
                   hospital.feed.request("PATCH", url, ACTIVE, Content_Type=JSON_PATCH)):
        assert answer.status_code == 412, answer.text
        assert places(answer) == ["http.url"]
        assert "urn:if" not in answer.text
    assert hospital.stored() == before


def test_a_delete_takes_the_one_match_and_is_idempotent(hospital: Hospital) -> None:
    id_ = hospital.new(patient("gone"))
    for etag in ('W/"2"', None):
        answer = hospital.feed.delete("Patient?identifier=urn:if|gone")
        assert (answer.status_code, answer.headers.get("etag")) == (204, etag)
    assert hospital.feed.get(f"Patient/{id_}").status_code == 410


def test_a_delete_of_several_is_a_setting(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(conditional_delete="multiple")
    ids = [hospital.new(patient("many")) for _ in range(3)]
    kept = hospital.new(patient("other"))
    assert hospital.feed.delete("Patient?identifier=urn:if|many").status_code == 204
    assert {hospital.feed.get(f"Patient/{id_}").status_code for id_ in ids} == {410}
    assert hospital.feed.get(f"Patient/{kept}").status_code == 200
    statement = hospital.feed.get("metadata").json()["rest"][0]["resource"]
    assert {one["conditionalDelete"] for one in statement} == {"multiple"}


def test_a_patch_goes_to_the_one_match(hospital: Hospital) -> None:
    id_ = hospital.new(patient("patch"))
    url = "Patient?identifier=urn:if|patch"
    answer = hospital.feed.request("PATCH", url, ACTIVE, Content_Type=JSON_PATCH)
    assert (answer.status_code, answer.json()["id"], answer.json()["active"]) == (200, id_, True)
    assert hospital.feed.request("PATCH", url, ACTIVE, Content_Type=JSON_PATCH, If_Match='W/"1"').status_code == 412
    nothing = hospital.feed.request("PATCH", "Patient?identifier=urn:if|0", ACTIVE, Content_Type=JSON_PATCH)
    assert nothing.status_code == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(("query", "status"), [("", 400), ("?shoe=9", 400), ("?_format=json", 400)])
def test_a_condition_that_is_none_is_refused(hospital: Hospital, method: str, query: str, status: int) -> None:
    body = {"PUT": json.dumps(patient("x")).encode(), "PATCH": ACTIVE}.get(method)
    headers = {"Content_Type": JSON_PATCH} if method == "PATCH" else {}
    answer = hospital.feed.request(method, f"Patient{query}", body, **headers)
    assert answer.status_code == status, answer.text


def test_a_condition_sees_what_the_caller_may_see(hospital: Hospital) -> None:
    """Invariant 4: neither the status nor a count tells that something hidden matches."""
    hidden = hospital.new(patient("hidden"))
    clinician = hospital.clinician("dr-if")
    for value in ("hidden", "nothing"):
        url = f"Patient?identifier=urn:if|{value}"
        assert clinician.request("PATCH", url, ACTIVE, Content_Type=JSON_PATCH).status_code == 404
    hospital.grant(hidden, "Practitioner/dr-if", writes=True)
    assert clinician.request("PATCH", "Patient?identifier=urn:if|hidden", ACTIVE,
                             Content_Type=JSON_PATCH).status_code == 200
    assert hospital.audited(hidden)[0].outcome == "0"


def test_conditional_writes_need_the_search_scope(hospital: Hospital) -> None:
    hospital.new(patient("scope"))
    url = "Patient?identifier=urn:if|scope"
    for scope in ("system/Patient.cu", "system/Patient.crud"):
        assert hospital.client(scope=scope).put(url, patient("scope")).status_code == 403
    assert hospital.client(scope="system/Patient.crud").delete(url).status_code == 403
    assert hospital.client(scope="system/Patient.rs").delete(url).status_code == 403
    assert hospital.client(scope="system/Patient.us").put(url, patient("scope", gender="male")).status_code == 200


def test_of_many_conditional_updates_one_creates(hospital: Hospital) -> None:
    answers = hospital.together(*(hospital.feed.send("PUT", "Patient?identifier=urn:if|race", patient(
        "race", multipleBirthInteger=number)) for number in range(8)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 7}, [one.text for one in answers]
    assert hospital.feed.total("Patient?identifier=urn:if|race&_summary=count") == 1


def test_conditions_in_a_transaction(hospital: Hospital) -> None:
    old = hospital.new(patient("tx-gone"))
    here = hospital.new(patient("tx-here"))
    link = "urn:uuid:6f1ac2d5-2f3b-4c52-9d6e-0c1b6f4b7a10"
    sent = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": {"resourceType": "Patient", "link": [{"other": {"reference": link}, "type": "seealso"}]},
         "request": {"method": "POST", "url": "Patient"}},
        {"fullUrl": link, "resource": patient("tx-here", gender="male"),
         "request": {"method": "PUT", "url": "Patient?identifier=urn:if|tx-here"}},
        {"resource": patient("tx-new"), "request": {"method": "PUT", "url": "Patient?identifier=urn:if|tx-new"}},
        {"request": {"method": "DELETE", "url": "Patient?identifier=urn:if|tx-gone"}},
        {"request": {"method": "DELETE", "url": "Patient?identifier=urn:if|tx-never"}},
        {"request": {"method": "GET", "url": "Patient?identifier=urn:if|tx-new"}}]}
    answer = hospital.feed.post("", sent, Prefer="return=representation")
    assert answer.status_code == 200, answer.text
    made = answer.json()["entry"]
    assert [one["response"]["status"][:3] for one in made] == ["201", "200", "201", "204", "204", "200"]
    assert made[0]["resource"]["link"][0]["other"]["reference"] == f"Patient/{here}"
    assert made[5]["resource"]["entry"][0]["resource"]["id"] == made[2]["resource"]["id"]
    assert hospital.feed.get(f"Patient/{old}").status_code == 410


def test_two_entries_that_come_to_one_resource_are_refused(hospital: Hospital) -> None:
    here = hospital.new(patient("overlap"))
    before = hospital.stored()
    put = {"resource": patient("overlap"), "request": {"method": "PUT", "url": "Patient?identifier=urn:if|overlap"}}
    new = {"resource": patient("lap"), "request": {"method": "PUT", "url": "Patient?identifier=urn:if|lap"}}
    for entries in ([put, {"resource": patient("x", id=here), "request": {"method": "PUT", "url": f"Patient/{here}"}}],
                    [put, {"request": {"method": "DELETE", "url": f"Patient/{here}"}}], [put, put], [new, new]):
        answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
        assert answer.status_code in (400, 409, 422), answer.text
        assert places(answer) == ["Bundle.entry[1]"]
    assert hospital.stored() == before


def test_what_a_condition_found_is_audited_though_the_write_is_refused(hospital: Hospital) -> None:
    """Invariant 8: a refusal for another reason, or for several matches, says that something matched."""
    one = hospital.new_patient(identifier=[{"system": "urn:told", "value": "1"}])
    several = [hospital.new_patient(identifier=[{"system": "urn:told", "value": "2"}]) for _ in range(2)]

    def found(id_: str) -> int:
        return sum(entry.interaction == "search-type" for entry in hospital.audited(id_))

    link = {"resource": {"resourceType": "Observation", "status": "final", "code": {"text": "x"},
                         "subject": {"reference": "Patient?identifier=urn:told|1"}},
            "request": {"method": "POST", "url": "Observation"}}
    faulty = {"resource": {"resourceType": "Patient", "gender": "x"}, "request": {"method": "POST", "url": "Patient"}}
    gone = {"resource": {"resourceType": "Patient", "id": "p"},
            "request": {"method": "PUT", "url": "Patient/p", "ifMatch": 'W/"7"'}}
    for count, other in enumerate((faulty, gone), 1):
        answer = hospital.feed.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [link, other]})
        assert answer.status_code in (412, 422), answer.text
        assert found(one) == count
    assert hospital.feed.put("Patient?identifier=urn:told|2", {"resourceType": "Patient"}).status_code == 412
    assert [found(id_) for id_ in several] == [1, 1]
    stale = hospital.feed.put("Patient?identifier=urn:told|1", {"resourceType": "Patient"}, If_Match='W/"9"')
    assert (stale.status_code, found(one)) == (412, 3)
    assert hospital.audit_is_whole()
