"""batch and transaction over HTTP. https://hl7.org/fhir/R4/http.html#transaction"""

from __future__ import annotations

import gzip
import json
import uuid
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.records import conditional, preparing, search
from tests.journeys.hospital import Hospital, observation, places
from tests.running import REPOSITORY

SYNTHEA = REPOSITORY / "tests" / "fixtures" / "demo"


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def entry(method: str, url: str, resource: Any = None, *, full_url: str | None = None, **request: Any) -> dict[str,
    Any]:
    return {**({"fullUrl": full_url} if full_url else {}), **({"resource": resource} if resource is not None else {}),
            "request": {"method": method, "url": url, **request}}


def named() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def ids_of(answer: httpx.Response) -> list[str]:
    return [one["response"]["location"].rsplit("/", 3)[1] for one in answer.json()["entry"]]


def measured(subject: str, **elements: Any) -> dict[str, Any]:
    resource: dict[str, Any] = json.loads(observation(None, **elements))
    return {**resource, "subject": {"reference": subject}}


def test_links_between_new_resources_become_their_ids(hospital: Hospital) -> None:
    patient, org = named(), named()
    div = f'<div xmlns="http://www.w3.org/1999/xhtml"><a href="{patient}">x</a></div>'
    answer = hospital.feed.post("", bundle(
        entry("POST", "Observation", {**measured(patient), "performer": [{"reference": org}, {"reference": "#p"}],
                                      "contained": [{"resourceType": "Practitioner", "id": "p"}],
                                      "text": {"status": "generated", "div": div}}, full_url=named()),
        entry("POST", "Patient", {"resourceType": "Patient", "managingOrganization": {"reference": org}},
              full_url=patient),
        entry("PUT", "Organization/link-org", {"resourceType": "Organization", "id": "link-org", "name": "L"},
              full_url=org)))
    assert answer.status_code == 200, answer.text
    assert [one["response"]["status"] for one in answer.json()["entry"]] == ["201 Created"] * 3
    obs, pat, org_id = ids_of(answer)
    assert org_id == "link-org"
    made = hospital.feed.get(f"Observation/{obs}").json()
    assert made["subject"] == {"reference": f"Patient/{pat}"}
    assert made["performer"] == [{"reference": "Organization/link-org"}, {"reference": "#p"}]
    assert f'href="Patient/{pat}"' in made["text"]["div"]
    assert hospital.feed.get(f"Patient/{pat}").json()["managingOrganization"] == {
        "reference": "Organization/link-org"}
    assert hospital.feed.ids(f"Observation?patient={pat}") == [obs]


def test_a_circle_of_links_is_resolved(hospital: Hospital) -> None:
    one, two = named(), named()
    answer = hospital.feed.post("", bundle(*(entry("POST", "Patient", {"resourceType": "Patient", "link": [
        {"other": {"reference": other}, "type": "seealso"}]}, full_url=own) for own, other in ((one, two),
        (two, one)))))
    first, second = ids_of(answer)
    assert hospital.feed.get(f"Patient/{first}").json()["link"][0]["other"]["reference"] == f"Patient/{second}"
    assert hospital.feed.get(f"Patient/{second}").json()["link"][0]["other"]["reference"] == f"Patient/{first}"


def test_answers_stand_in_the_order_of_the_requests_and_are_carried_out_in_that_of_the_standard(
        hospital: Hospital) -> None:
    old = hospital.new_patient(identifier=[{"system": "urn:order", "value": "1"}])
    answer = hospital.feed.post("", bundle(
        entry("GET", "Patient?identifier=urn:order|1"),
        entry("PUT", "Patient/order-put", {"resourceType": "Patient", "id": "order-put"}),
        entry("POST", "Patient", {"resourceType": "Patient", "identifier": [{"system": "urn:order", "value": "1"}]}),
        entry("DELETE", f"Patient/{old}"), entry("GET", "Patient/order-put"), entry("GET",
            "Patient/order-put/_history/1"),
        entry("DELETE", "Patient/order-never")))
    assert answer.status_code == 200, answer.text
    made = answer.json()["entry"]
    assert [one["response"]["status"][:3] for one in made] == ["200", "201", "201", "204", "200", "200", "204"]
    assert made[3]["response"]["etag"] == 'W/"2"'
    assert [one["resource"]["id"] for one in made[0]["resource"]["entry"]] == [ids_of_entry(made[2])]
    assert made[4]["resource"]["id"] == "order-put"
    assert hospital.feed.get(f"Patient/{old}").status_code == 410


def ids_of_entry(one: dict[str, Any]) -> str:
    return str(one["response"]["location"].rsplit("/", 3)[1])


def test_conditional_references_are_resolved(hospital: Hospital) -> None:
    id_ = hospital.new_patient(identifier=[{"system": "urn:cond", "value": "1"}])
    answer = hospital.feed.post("", bundle(entry("POST", "Observation", measured("Patient?identifier=urn:cond|1"))))
    assert answer.status_code == 200, answer.text
    [obs] = ids_of(answer)
    assert hospital.feed.get(f"Observation/{obs}").json()["subject"] == {"reference": f"Patient/{id_}"}


def test_a_conditional_reference_without_or_with_several_matches_refuses_the_whole(hospital: Hospital) -> None:
    for _ in range(2):
        hospital.new_patient(identifier=[{"system": "urn:cond", "value": "2"}])
    before = hospital.stored()
    good = entry("POST", "Patient", {"resourceType": "Patient"})
    for value, status in (("none", 422), ("2", 412)):
        answer = hospital.feed.post("", bundle(good, entry(
            "POST", "Observation", measured(f"Patient?identifier=urn:cond|{value}"))))
        assert answer.status_code == status
        assert places(answer) == ["Bundle.entry[1].resource.subject.reference"]
        assert "urn:cond" not in answer.text  # a condition may hold an identifier: a refusal does not repeat it
    assert hospital.stored() == before


def test_a_condition_many_entries_name_is_asked_once(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once again within the commit, where every other writer waits."""
    hospital.new_patient(identifier=[{"system": "urn:cond", "value": "many"}])
    asked: list[str] = []

    def counted(node: Any, caller: Any, connection: Any, query: Any, *, limit: int) -> Any:
        asked.append(query.type)
        return search.matching(node, caller, connection, query, limit=limit)

    monkeypatch.setattr(conditional, "matching", counted)
    answer = hospital.feed.post("", bundle(*(entry("POST", "Observation", measured("Patient?identifier=urn:cond|many"))
                                             for _ in range(20))))
    assert answer.status_code == 200, answer.text
    assert asked == ["Patient", "Patient"]


def test_if_none_exist_uses_what_is_there_and_links_lead_to_it(hospital: Hospital) -> None:
    org = named()
    sent = bundle(
        entry("POST", "Organization", {"resourceType": "Organization", "name": "Once", "identifier": [
            {"system": "urn:once", "value": "1"}]}, full_url=org, ifNoneExist="identifier=urn:once|1"),
        entry("POST", "Patient", {"resourceType": "Patient", "managingOrganization": {"reference": org}}))
    first, second = (hospital.feed.post("", sent) for _ in range(2))
    assert [one["response"]["status"] for one in first.json()["entry"]] == ["201 Created", "201 Created"]
    assert [one["response"]["status"] for one in second.json()["entry"]] == ["200 OK", "201 Created"]
    assert ids_of(first)[0] == ids_of(second)[0]
    assert hospital.feed.get(f"Patient/{ids_of(second)[1]}").json()["managingOrganization"] == {
        "reference": f"Organization/{ids_of(first)[0]}"}


@pytest.mark.parametrize("kind", ["transaction", "batch"])
def test_if_none_exist_creates_once_however_many_bundles_race(hospital: Hospital, kind: str) -> None:
    sent = bundle(entry("POST", "Organization", {"resourceType": "Organization", "name": "Race", "identifier": [
        {"system": f"urn:race:{kind}", "value": "1"}]}, ifNoneExist=f"identifier=urn:race:{kind}|1"), kind=kind)
    answers = hospital.together(*(hospital.feed.send("POST", "", sent) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert Counter(answer.json()["entry"][0]["response"]["status"] for answer in answers) == {
        "201 Created": 1, "200 OK": 9}
    assert hospital.feed.total(f"Organization?identifier=urn:race:{kind}|1") == 1


def test_two_entries_with_one_condition_are_refused(hospital: Hospital) -> None:
    """Their identities overlap: R4 refuses such a transaction, and two resources would be one too many."""
    before = hospital.stored()
    one = entry("POST", "Organization", {"resourceType": "Organization", "name": "Twice"},
                ifNoneExist="identifier=urn:twin|1")
    answer = hospital.feed.post("", bundle(one, one))
    assert answer.status_code == 422
    assert places(answer) == ["Bundle.entry[1]"]
    assert hospital.stored() == before


def test_if_match_in_a_transaction_guards_the_whole(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    other = entry("POST", "Patient", {"resourceType": "Patient"})

    def sent(match: str, value: int) -> httpx.Response:
        return hospital.feed.post("", bundle(other, entry("PUT", f"Patient/{id_}", {
            "resourceType": "Patient", "id": id_, "multipleBirthInteger": value}, ifMatch=match)))

    before = hospital.stored()
    for match in ('W/"2"', 'W/"x"'):
        answer = sent(match, 1)
        assert answer.status_code == 412
        assert places(answer) == ["Bundle.entry[1]"]
    nothing = hospital.feed.post("", bundle(entry("PUT", "Patient/tx-none", {
        "resourceType": "Patient", "id": "tx-none"}, ifMatch="*")))
    assert nothing.status_code == 412
    there = hospital.feed.post("", bundle(entry("PUT", f"Patient/{id_}", {
        "resourceType": "Patient", "id": id_, "active": True}, ifNoneMatch="*")))
    assert there.status_code == 412
    assert hospital.stored() == before
    assert sent('W/"1"', 1).status_code == 200
    assert sent("*", 2).status_code == 200


def test_of_many_transactions_with_one_if_match_one_wins_whole(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    answers = hospital.together(*(hospital.feed.send("POST", "", bundle(
        entry("POST", "Organization", {"resourceType": "Organization", "name": "Whole", "alias": [str(number)]}),
        entry("PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "multipleBirthInteger": number},
              ifMatch='W/"1"'))) for number in range(8)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 7}
    assert hospital.feed.total("Organization?name=whole&_summary=count") == 1


def test_a_batch_carries_out_each_entry_alone(hospital: Hospital) -> None:
    id_ = hospital.new_patient()
    answer = hospital.feed.post("", bundle(
        entry("POST", "Patient", {"resourceType": "Patient", "shoe": 1}), entry("GET", f"Patient/{id_}"),
        entry("PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "active": True}, ifMatch='W/"1"'),
        entry("PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_, "active": False}, ifMatch='W/"1"'),
        entry("DELETE", f"Patient/{id_}"), entry("GET", f"Patient/{id_}"), entry("GET", "Patient?_id=" + id_),
            kind="batch"))
    assert [one["response"]["status"][:3] for one in answer.json()["entry"]] == [
        "400", "200", "200", "412", "204", "410", "200"]
    assert answer.json()["type"] == "batch-response"


def test_decimals_keep_their_text_through_a_bundle(hospital: Hospital) -> None:
    sent = json.dumps(bundle(entry("POST", "Observation", "@"), entry("GET", "Observation?code=bundletext"))).encode()
    answer = hospital.feed.post("", sent.replace(b'"@"', observation(None, "0.0100", code="bundletext")))
    assert b'"value":0.0100,' in answer.content
    assert b'"value":0.0100,' in hospital.feed.get(f"Observation/{ids_of_entry(answer.json()['entry'][0])}").content


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_an_empty_bundle_is_answered(hospital: Hospital, kind: str) -> None:
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": kind})
    assert answer.json() == {"resourceType": "Bundle", "type": f"{kind}-response"}


def test_a_synthea_patient_goes_in_whole_and_comes_back_equal(hospital: Hospital) -> None:
    sent = json.loads(gzip.decompress(next(SYNTHEA.glob("Desmond_Gutmann*")).read_bytes()))
    for name in ("hospital", "practitioner"):
        hospital.feed.post("", gzip.decompress(next(SYNTHEA.glob(f"{name}Information*")).read_bytes()))
    answer = hospital.feed.post("", sent)
    assert answer.status_code == 200, answer.text[:2000]
    targets = {one["fullUrl"]: made["response"]["location"].removeprefix(f"{hospital.base}/").partition("/_history")[0]
               for one, made in zip(sent["entry"], answer.json()["entry"], strict=True)}
    for one, made in zip(sent["entry"], answer.json()["entry"], strict=True):
        stored = hospital.feed.get(made["response"]["location"]).json()
        expected = linked(one["resource"], targets)
        for resource in (stored, expected):
            resource.pop("id", None)
            meta = {key: value for key, value in resource.pop("meta", {}).items()
                    if key not in ("versionId", "lastUpdated")}
            resource["meta"] = meta
        assert without_links(stored) == without_links(expected)
    patient = next(target for target in targets.values() if target.startswith("Patient/")).partition("/")[2]
    wanted = sum(one["resource"]["resourceType"] == "Observation" for one in sent["entry"])
    assert hospital.feed.total(f"Observation?patient={patient}&_summary=count") == wanted


def linked(value: Any, targets: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: linked(item, targets) for key, item in value.items()}
    if isinstance(value, list):
        return [linked(item, targets) for item in value]
    return targets.get(value, value) if isinstance(value, str) else value


def without_links(value: Any) -> Any:
    """Conditional references of the bundle are resolved by the server: only their being there is compared."""
    if isinstance(value, dict):
        return {key: "…" if key == "reference" and isinstance(item, str) and (
            "?" in item or item.split("/")[0] in ("Practitioner", "Organization", "Location")) else without_links(item)
                for key, item in value.items() if key != "div"}
    return [without_links(item) for item in value] if isinstance(value, list) else value


requests = st.fixed_dictionaries({
    "method": st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", ""]),
    "url": st.sampled_from(["Patient", "Patient/fuzz-tx", "Patient?name=x", "Observation", "", "/",
        "Patient/fuzz-tx/_history/1",
                            "http://else.example/Patient/1", "Patient/a_b", "Zzyzx", "AuditEvent/log-1", "metadata",
                            "Patient/fuzz-tx?x=y", "Patient//", "%", "Patient?_page=x", "AuditEvent"])},
    optional={"ifMatch": st.sampled_from(['W/"1"', "x", "*"]), "ifNoneMatch": st.sampled_from(["*", "x"]),
              "ifNoneExist": st.sampled_from(["", "identifier=a|b", "x=y", "_id=fuzz-tx", "name=zz,"])})
resources = st.sampled_from([
    {"resourceType": "Patient"}, {"resourceType": "Patient", "id": "fuzz-tx"}, {"resourceType": "Patient", "id": 7},
    {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "urn:uuid:1"}},
    {"resourceType": "Observation", "status": "final", "code": {"text": "x"},
        "subject": {"reference": "Patient?_id=fuzz-tx"}},
    {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient?"}},
    {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Zzyzx?a=b"}},
    {}, [], "x", None])
entries = st.lists(st.fixed_dictionaries({}, optional={
    "fullUrl": st.sampled_from(["urn:uuid:1", "http://a/Patient/1", "x", ""]), "request": requests,
        "resource": resources,
    "search": st.just({"mode": "match"})}), max_size=4)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["batch", "transaction"]), items=entries)
def test_no_bundle_at_all_makes_the_door_stumble(hospital: Hospital, kind: str, items: list[Any]) -> None:
    answer = hospital.feed.post("", {"resourceType": "Bundle", "type": kind, "entry": items})
    assert answer.status_code < 500, answer.text
    for one in answer.json().get("entry", ()):
        assert one["response"]["status"][0] != "5", one


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_what_was_stored_is_answered_though_the_token_ended_meanwhile(hospital: Hospital, kind: str,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries before are durable: a refusal of the whole would say they are not."""
    sending = hospital.client()
    patient = hospital.new_patient()
    place = hospital.new(json.loads(observation(patient)))
    commit_prepared = preparing.commit_prepared

    def meanwhile(connection: Any, *given: Any) -> None:
        commit_prepared(connection, *given)
        hospital.smart.tokens.revoke(connection, str(sending.token), 1)

    monkeypatch.setattr(preparing, "commit_prepared", meanwhile)
    answer = sending.post("", {"resourceType": "Bundle", "type": kind, "entry": [
        {"resource": json.loads(observation(patient)), "request": {"method": "POST", "url": "Observation"}},
        {"request": {"method": "GET", "url": f"Observation/{place}"}}]})
    assert answer.status_code == 200, answer.text
    assert [entry["response"]["status"][:3] for entry in answer.json()["entry"]] == ["201", "401"]
